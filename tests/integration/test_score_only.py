"""Scores while the model runs: the scores of a store with activations, and nothing else of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import Result, ok, run_cli, snapshot
from conftest import PROBE, Built
from made_up import add_probe, make_probe
from quick import quick_runs

from cliffstore import Store
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import write_probe

UNIT_ROWS = ("--unit-rows", "256")
NORM = "of-norm"
SITES = ("--sites", "resid_post,resid_mid,final_norm,z")
JOINED = (
    "SELECT e.id, s.position, t.token, s.segment, s.to_decision, s.probe, s.score FROM scores s "
    "JOIN tokens t USING (example, position) JOIN examples e USING (example) "
    "WHERE t.segment = s.segment AND t.to_decision = s.to_decision ORDER BY s.probe, e.id, s.position"
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def probes(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with several sites in units as small as may be, and probes that are called after what they read."""
    store = tmp_path_factory.mktemp("probes") / "store"
    ok("extract", built.corpus, "--model", built.model, "--store", store, *SITES, *UNIT_ROWS)
    for number, (name, site, layer) in enumerate(
        [
            ("post-0", "resid_post", 0),
            ("post-3", "resid_post", 3),
            ("mid-1", "resid_mid", 1),
            ("heads-2", "z", 2),
            (NORM, "final_norm", 3),
        ]
    ):
        add_probe(store, name, site, layer, seed=number)
    return store


ALL = ("post-0", "post-3", "mid-1", "heads-2", NORM)


def score_live(built: Built, store: Path, probes: Sequence[str | Path], *more: str | Path) -> Result:
    given = [part for probe in probes for part in ("--probe", str(probe))]
    return run_cli("extract", built.corpus, "--model", built.model, "--store", store, *UNIT_ROWS, *given, *more)


def brought(probes: Path, *names: str) -> list[str]:
    return [f"{probes}/probes/{name}" for name in names]


def joined(store: Path) -> list[dict[str, object]]:
    return ok("sql", str(store), JOINED, "--json").json


def assert_same_scores(found: list[dict[str, object]], expected: list[dict[str, object]]) -> float:
    """Everything but the score is equal; scores differ by 1e-5 of the largest at most. Returns by how much."""
    assert found
    assert [row | {"score": None} for row in found] == [row | {"score": None} for row in expected]
    mine, theirs = (np.array([row["score"] for row in rows]) for rows in (found, expected))
    difference = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
    assert difference <= 1e-5
    return difference


@pytest.mark.parametrize("positions", ["all", "decision,think", "last:3,stride:5"])
def test_scores_are_those_of_stored_activations(built: Built, probes: Path, positions: str, tmp_path: Path) -> None:
    """Five probes of four sites and four layers, in one pass, however passes are made."""
    stored = probes
    if positions != "all":
        stored = tmp_path / "stored"
        where = ("--positions", positions)
        ok("extract", built.corpus, "--model", built.model, "--store", stored, *SITES, *UNIT_ROWS, *where)
        shutil.copytree(probes / "probes", stored / "probes")
    for name in ALL:
        ok("score", stored, "--probe", name)
    expected = [row for row in joined(stored) if row["probe"] in ALL]
    assert {row["probe"] for row in expected} == set(ALL)
    n_tokens = ok("sql", stored, "SELECT count(*) AS n FROM tokens WHERE row IS NOT NULL", "--json").json[0]["n"]
    assert len(expected) == n_tokens * len(ALL)
    for passes in ("auto", "tree", "padded"):
        live = tmp_path / passes
        result = score_live(built, live, brought(probes, *ALL), "--positions", positions, "--passes", passes, "--json")
        assert result.code == 0, result.stderr
        report = result.json
        assert report["units_done_now"] == report["units"] >= (3 if positions == "all" else 1)
        assert report["capture"] == ""
        assert report["bytes"] == report["rows"] * len(ALL) * 4
        difference = assert_same_scores(joined(live), expected)
        print(f"{positions}, {passes}: {difference:.1e} of the largest score")


@pytest.fixture(scope="module")
def live(built: Built, probes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of scores only, by the probe that the finished store was fitted on and one more. Tests copy it."""
    store = tmp_path_factory.mktemp("live") / "store"
    result = score_live(built, store, [*brought(built.store, PROBE), *brought(probes, NORM)])
    assert result.code == 0, result.stderr
    return store


def test_nothing_but_scores_is_stored(live: Path) -> None:
    assert {path.name for path in live.iterdir()} == {"copies", "manifest.json", "plans", "probes", "scores"}
    assert not [path for path in live.rglob("*") if "activations" in path.parts or path.name == "zarr.json"]
    assert ok("sql", live, "SELECT * FROM captures", "--json").json == []
    units = ok("sql", live, "SELECT unit, extracted, capture, error FROM units ORDER BY unit", "--json").json
    assert len(units) >= 3
    assert all((one["extracted"], one["capture"], one["error"]) == (False, None, None) for one in units)


def test_store_of_scores_is_a_store(live: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(live, tmp_path / "store"))
    assert ok("verify", store, "--json").json["findings"] == []
    assert sorted(ok("info", store, "--json").json["scores"]) == sorted([PROBE, NORM])
    before = snapshot(store)
    scored = ok("score", store, "--probe", PROBE, "--json").json
    assert (scored["units"], scored["units_missing"]) == (0, 0)
    assert scored["units_done_before"] >= 3
    assert snapshot(store) == before


def test_analysis_goes_on_from_scores(built: Built, live: Path, tmp_path: Path) -> None:
    """Cliffs, a selection and its training set are those of the store with activations."""
    store = Path(shutil.copytree(live, tmp_path / "store"))
    found = {}
    for name, url in (("live", store), ("stored", built.store)):
        ranked = ok("cliff", url, "--probe", PROBE, "--json").json
        rows = ok("sql", url, f"SELECT * FROM cliffs WHERE probe = '{PROBE}' ORDER BY example", "--json").json
        found[name] = ({key: value for key, value in ranked.items() if key != "top"}, rows)
    assert found["live"][0] == found["stored"][0]
    assert len(found["live"][1]) == found["live"][0]["examples"] == 40
    for mine, theirs in zip(found["live"][1], found["stored"][1], strict=True):
        assert mine.keys() == theirs.keys()
        for column, value in theirs.items():
            assert mine[column] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), column
    ok("select", store, "--name", "few", "--top", "4", "--probe", PROBE)
    assert ok("sql", store, "SELECT count(*) AS n FROM selections", "--json").json == [{"n": 4}]


def test_again_is_nothing_to_do(built: Built, probes: Path, live: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in live.rglob("*") if path.is_file()}
    result = score_live(built, live, [*brought(built.store, PROBE), *brought(probes, NORM)], "--json")
    assert result.code == 0, result.stderr
    assert "nothing to do" in result.stderr
    assert (result.json["units_done_now"], result.json["units_done_before"]) == (0, result.json["units"])
    by_name = score_live(built, live, [PROBE, NORM], "--json")
    assert (by_name.code, by_name.json["units_done_now"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in live.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("left", ["nothing", "table"])
def test_missing_unit_alone_is_computed(built: Built, probes: Path, live: Path, left: str, tmp_path: Path) -> None:
    """A run that was killed left no receipt of a unit, perhaps its table, and perhaps scores of the other probe."""
    store = Path(shutil.copytree(live, tmp_path / "store"))
    whole = snapshot(store)
    for end in ("json", "parquet") if left == "nothing" else ("json",):
        (store / "scores" / NORM / f"unit-000001.{end}").unlink()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    result = score_live(built, store, [PROBE, NORM], "--json")
    assert result.code == 0, result.stderr
    report = result.json
    assert (report["units_done_now"], report["units_done_before"]) == (1, report["units"] - 1)
    assert snapshot(store).keys() == whole.keys()
    touched = {path.name for path, moment in before.items() if path.stat().st_mtime_ns != moment}
    assert touched <= {"unit-000001.json", "unit-000001.parquet"}
    assert_same_scores(joined(store), joined(live))


def test_second_probe_joins_later(built: Built, probes: Path, live: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(live, tmp_path / "store"))
    before = {name: content for name, content in snapshot(store).items() if name.startswith("scores")}
    result = score_live(built, store, brought(probes, "post-3"), "--json")
    assert result.code == 0, result.stderr
    assert result.json["units_done_now"] == result.json["units"]
    after = snapshot(store)
    assert {name: after[name] for name in before} == before
    ok("score", probes, "--probe", "post-3")
    mine, theirs = ([row for row in joined(url) if row["probe"] == "post-3"] for url in (store, probes))
    assert_same_scores(mine, theirs)


def test_store_with_activations_can_be_scored_live(built: Built, probes: Path, tmp_path: Path) -> None:
    """The probe is in the store, its activations are, and the scores are new: both ways give the same."""
    store = Path(shutil.copytree(probes, tmp_path / "store"))
    shutil.rmtree(store / "scores", ignore_errors=True)
    result = score_live(built, store, ["mid-1"], "--json")
    assert result.code == 0, result.stderr
    live_rows = joined(store)
    shutil.rmtree(store / "scores")
    ok("score", store, "--probe", "mid-1")
    assert_same_scores(live_rows, joined(store))
    with Store(str(store)) as opened:
        assert opened.sql("SELECT count(*) FROM units WHERE extracted").fetchall()[0][0] >= 3


def changed_probe(probes: Path, name: str, **changes: object) -> str:
    """Write a probe that is said to be of another model or dtype, and name it."""
    with Store(str(probes)) as store:
        (capture,) = store.reader.captures()
    if "model" in changes:
        changes["model"] = capture.model.model_copy(update={"config_digest": "other", "name": "another-model"})
    write_probe(ObjectStore(str(probes)), *make_probe(capture, name, **changes), replace=True)
    return f"{probes}/probes/{name}"


def refused_probes(case: str, probes: Path, tmp_path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return what `--probe` is given and what the refusal must say."""
    if case == "other model":
        return [changed_probe(probes, "of-another", model=None)], ("of-another", "another-model")
    if case == "other dtype":
        return [changed_probe(probes, "of-half", dtype="float16")], ("of-half", "float16", "float32")
    if case == "unknown here":
        return ["nowhere"], ("nowhere",)
    if case == "unknown there":
        return brought(probes, "nowhere"), ("nowhere", "post-0")
    if case == "no such store":
        return [f"{tmp_path}/no-store/probes/post-0"], ("no-store", "post-0")
    if case == "not a probe's place":
        return [f"{probes}/post-0"], ("post-0", "<store>/probes/<name>")
    other = Path(shutil.copytree(probes / "probes", tmp_path / "other" / "probes"))
    return [*brought(probes, "post-0"), f"{other}/post-0"], ("post-0", "two")


@pytest.mark.parametrize(
    "case",
    [
        "other model", "other dtype", "unknown here", "unknown there", "no such store", "not a probe's place",
        "two of one name",
    ],
)  # fmt: skip
def test_refused_probe_is_one_line_and_nothing_written(built: Built, probes: Path, case: str, tmp_path: Path) -> None:
    given, words = refused_probes(case, probes, tmp_path)
    before = snapshot(tmp_path)
    result = score_live(built, tmp_path / "fresh", given)
    assert result.code == 2
    assert result.text == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("option", [("--layers", "3"), ("--sites", "z")])
def test_layers_and_sites_are_those_of_the_probes(
    built: Built, probes: Path, option: tuple[str, str], tmp_path: Path
) -> None:
    """No activation is stored, so there is nothing to choose."""
    result = score_live(built, tmp_path / "fresh", brought(probes, "post-0"), *option)
    assert (result.code, f"{option[0][2:]} are those that probes read" in result.stderr) == (2, True)
    assert not (tmp_path / "fresh").exists()


def test_probe_whose_name_is_taken_is_refused(built: Built, probes: Path, live: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(live, tmp_path / "store"))
    other = tmp_path / "other"
    shutil.copytree(probes, other)
    shutil.rmtree(other / "probes" / NORM)
    add_probe(other, NORM, "final_norm", 3, seed=99)
    before = snapshot(store)
    result = score_live(built, store, brought(other, NORM))
    assert result.code == 2
    assert NORM in result.stderr.splitlines()[-1]
    assert snapshot(store) == before


def test_replaced_probe_is_scored_anew(built: Built, probes: Path, live: Path, tmp_path: Path) -> None:
    """Scores of a probe of the same name with other weights do not count as done."""
    store = Path(shutil.copytree(live, tmp_path / "store"))
    with Store(str(probes)) as opened:
        (capture,) = opened.reader.captures()
    document, weights = make_probe(capture, NORM, "final_norm", 3, seed=99)
    for receipt in (store / "scores" / NORM).glob("*.json"):
        assert json.loads(receipt.read_text())["probe_digest"] != document.digest
    shutil.rmtree(store / "probes" / NORM)
    write_probe(ObjectStore(str(store)), document, weights, replace=False)
    result = score_live(built, store, [NORM], "--json")
    assert result.code == 0, result.stderr
    assert result.json["units_done_now"] == result.json["units"]
    with Store(str(store)) as mine, Store(str(probes)) as theirs:
        scores = mine.sql(
            "SELECT t.row, s.score FROM scores s JOIN tokens t USING (example, position) "
            f"WHERE s.probe = '{NORM}' ORDER BY 1"
        ).fetchnumpy()
        expected = theirs.vectors("final_norm", 3, scores["row"]) @ weights.w_D + weights.b
    np.testing.assert_allclose(scores["score"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
