"""`cliffstore score` as its user sees it: one probe, several, all; files and options; what it says and prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import ok, run_cli, snapshot
from made_up import make_probe
from vector_store import VectorStore

from cliffstore import Store
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import write_probe
from cliffstore.store.reader import StoreReader

MADE = VectorStore(n_units=3, unit_rows=512, width=24, n_layers=2, tokens=8)
N_TOKENS = MADE.n_units * MADE.n_rows
BY_PROBE = "SELECT probe, count(*) AS n FROM scores GROUP BY 1 ORDER BY 1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("scoring") / "store"
    objects = ObjectStore(str(store))
    MADE.make(objects)
    (capture,) = StoreReader(objects.url).captures()
    for number, (name, layer) in enumerate([("a", 1), ("b", 1), ("c", 0)]):
        write_probe(objects, *make_probe(capture, name, layer=layer, seed=number), replace=False)
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def line(probe: str, units: int, before: int) -> str:
    return f"probe {probe}: {units * MADE.n_rows:,} tokens of {units} units scored now, {before} units had scores"


def test_scores_without_a_receipt_are_not_there(store: Path) -> None:
    """As a run leaves them that was killed between the two."""
    ok("score", store, "--probe", "a")
    (store / "scores" / "a" / "unit-000001.json").unlink()
    with Store(str(store)) as opened:
        assert opened.sql(BY_PROBE).fetchall() == [("a", N_TOKENS - MADE.n_rows)]


def test_one_probe_then_all(store: Path) -> None:
    first = ok("score", store, "--probe", "b", "--json").json
    seconds = first.pop("seconds")
    assert seconds > 0
    assert first == {
        "units": 3, "units_done_before": 0, "units_missing": 0, "tokens": N_TOKENS, "executor": "in this process",
        "probes": [
            {"probe": "b", "units": 3, "units_done_before": 0, "units_missing": 0, "tokens": N_TOKENS},
        ],
    }  # fmt: skip
    everything = ok("score", store, "--probe", "all")
    assert everything.text.splitlines() == [line("a", 3, 0), line("b", 0, 3), line("c", 3, 0)]
    assert "score: 3 units by a, c, in this process" in everything.stderr
    assert ok("sql", store, BY_PROBE, "--json").json == [{"probe": name, "n": N_TOKENS} for name in "abc"]
    before = snapshot(store)
    again = ok("score", store, "--probe", "all", "--json").json
    assert (again["units"], again["tokens"], again["units_done_before"], again["executor"]) == (0, 0, 3, "none")
    assert snapshot(store) == before


def test_several_probes_by_option_file_and_python(store: Path, tmp_path: Path) -> None:
    ok("score", store, "--probe", "a", "--probe", "c", "--probe", "a")
    by_option = snapshot(store / "scores")
    assert {name.split("/")[0] for name in by_option} == {"a", "c"}
    file = tmp_path / "score.yaml"
    for probe, names in ((["a", "c"], ["a", "c"]), ("c", ["c"])):
        shutil.rmtree(store / "scores")
        file.write_text(yaml.safe_dump({"store": str(store), "probe": probe}), encoding="utf-8")
        report = ok("score", "--config", file, "--json").json
        assert [one["probe"] for one in report["probes"]] == names
    shutil.rmtree(store / "scores")
    with Store(str(store)) as opened:
        assert opened.score("a").units == 3
        report = opened.score(["a", "c"])
        assert [(one.probe, one.units) for one in report.probes] == [("a", 0), ("c", 3)]
        assert opened.sql(BY_PROBE).fetchall() == [("a", N_TOKENS), ("c", N_TOKENS)], "the next query sees them"
    tables = {name: content for name, content in by_option.items() if name.endswith(".parquet")}
    assert {name: content for name, content in snapshot(store / "scores").items() if name in tables} == tables


def test_progress_counts_units_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIFFSTORE_LOG", "json")
    result = ok("score", store, "--probe", "all", "--json")
    told = [json.loads(line) for line in result.stderr.splitlines()]
    progress = [one for one in told if one["event"] == "progress"]
    assert [one["units_done"] for one in progress] == [1, 2, 3]
    assert progress[-1]["tokens"] == N_TOKENS == result.json["tokens"]
    assert progress[-1]["bytes"] == 2 * N_TOKENS * MADE.width * 4, "of two layers, not of three probes"
    assert [one["stage"] for one in told if one["event"] in ("stage", "begin", "end")] == ["score"] * 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--probe", "a", "--probe", "nope"], ("'nope'", "a, b, c")),
        (["--probe", "a", "--actors", "2"], ("--actors 2", "--executor ray")),
        (["--probe", "a", "--executor", "slurm"], ("executor", "slurm")),
        (["--probe", "a", "--actors", "0"], ("actors",)),
        ([], ("probe is not given", "--probe")),
    ],
)
def test_mistakes_are_one_line(store: Path, options: list[str], told: tuple[str, ...]) -> None:
    before = snapshot(store)
    result = run_cli("score", store, *options)
    assert (result.code, result.stdout) == (2, b"")
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(text in error for text in told), error
    assert snapshot(store) == before


def test_an_empty_list_of_probes_is_a_mistake(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "score.yaml"
    file.write_text(yaml.safe_dump({"store": str(store), "probe": []}), encoding="utf-8")
    result = run_cli("score", "--config", file)
    assert result.code == 2
    assert "option probe:" in result.stderr
