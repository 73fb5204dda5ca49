"""A planted model through the real commands: extracted, scored, ranked by cliffs, found by a fitted probe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import ok, run_cli
from quick import quick_runs
from safetensors.numpy import load_file

import cliffstore
from cliffstore import Store
from cliffstore.model.planted.model import Planted, PlantSettings, plant

SETTINGS = PlantSettings(seed=6, layers=5, heads=6, suppressors=4)
EXAMPLES = 90
SITES = "resid_pre,resid_mid,resid_post,attn_out,mlp_out,z"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("planted") / "model"
    sizes = ("--layers", "5", "--heads", "6", "--suppressors", "4", "--examples", str(EXAMPLES))
    found = ok("heads", "planted", place, "--seed", "6", *sizes, "--json").json
    assert found["folder"] == str(place)
    assert len(found["suppressors"]) == 4
    assert sorted(path.name for path in place.iterdir()) == found["files"]
    assert [path.name for path in place.parent.iterdir()] == ["model"]
    return place


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(SETTINGS)


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    """Run the commands that `heads planted` proposes, with activations of every layer."""
    url = folder.parent / "store"
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    with quick_runs():
        ok("extract", folder / "corpus.jsonl", "--model", folder, "--store", url, "--sites", SITES)
        ok("probe", "import", url, folder / "probe.safetensors", "--name", "planted", "--layer", str(truth["layer"]))
        ok("score", url, "--probe", "planted")
        ok("cliff", url, "--probe", "planted")
    with Store(str(url)) as opened:
        yield opened


def test_cliffs_are_those_of_jailbroken_prompts(store: Store) -> None:
    figures = {
        row["kind"]: row
        for row in store.sql(
            "SELECT kind, count(*) AS n, min(plateau) AS low, max(plateau) AS high, min(final) AS last_low, "
            "max(final) AS last_high, min(cliff) AS least, max(cliff) AS most, min(n_steep) AS steep "
            "FROM cliffs JOIN examples USING (example) WHERE probe = 'planted' GROUP BY kind"
        )
        .arrow()
        .read_all()
        .to_pylist()
    }
    assert {kind: row["n"] for kind, row in figures.items()} == {"benign": 30, "harmful": 30, "jailbroken": 30}
    jailbroken, harmful, benign = figures["jailbroken"], figures["harmful"], figures["benign"]
    assert jailbroken["low"] > 0.5
    assert jailbroken["last_high"] < -1
    assert jailbroken["least"] > 4
    assert harmful["last_low"] > 1
    assert max(abs(harmful["least"]), abs(harmful["most"])) < 0.6
    assert max(abs(benign["low"] + 3), abs(benign["last_high"] + 3), abs(benign["most"])) < 1e-4


def test_curves_stay_high_over_thinking_and_fall_at_the_closing_mark(store: Store) -> None:
    table = store.curves("planted", positions="-12..0", group_by="kind", resamples=0).to_pylist()
    curves = {kind: [row["mean"] for row in table if row["group"] == kind] for kind in ("harmful", "jailbroken")}
    assert all(len(curve) == 13 for curve in curves.values())
    assert min(curves["harmful"]) > 2
    assert min(curves["jailbroken"][:11]) > 2  # thinking and the newline after it
    assert max(curves["jailbroken"][11:]) < -2  # </think> and the blank line
    assert min(row["mean"] for row in table if row["group"] == "benign") == pytest.approx(-3, abs=1e-4)


def test_the_largest_cliffs_are_what_a_selection_takes(store: Store) -> None:
    store.select("largest", top="30", replace=True)
    kinds = store.sql(
        "SELECT DISTINCT kind FROM selections JOIN examples USING (example) WHERE selection = 'largest'"
    ).fetchall()
    assert kinds == [("jailbroken",)]


def test_stored_scores_are_those_of_the_closed_form(store: Store, planted: Planted) -> None:
    for example in range(9):
        rows = store.sql(
            f"SELECT token_id, score FROM tokens JOIN scores USING (example, position) "
            f"WHERE example = {example} AND probe = 'planted' ORDER BY position"
        ).fetchall()
        expected_T = planted.truth.scores([token for token, _ in rows])
        assert np.abs(np.array([score for _, score in rows]) - expected_T).max() < 3e-5


def test_stored_z_gives_the_contributions_of_the_closed_form(store: Store, planted: Planted) -> None:
    truth = planted.truth
    w_D = truth.w_D.astype(np.float64)
    tokens = store.sql(
        "SELECT token_id, row FROM tokens JOIN examples USING (example) WHERE id = 'planted-6-00002' ORDER BY position"
    ).fetchall()
    expected_LHT = truth.contributions([token for token, _ in tokens])
    assert min(expected_LHT[head][-1] for head in truth.suppressors) < -1  # a jailbroken prompt, its answer included
    for layer in range(truth.layer + 1):
        z_THC = store.vectors("z", layer, np.array([row for _, row in tokens])).reshape(len(tokens), 6, -1)
        w_o_DHC = planted.model.model.layers[layer].self_attn.o_proj.weight.double().numpy().reshape(len(w_D), 6, -1)
        found_HT = np.einsum("thc,dhc,d->ht", z_THC.astype(np.float64), w_o_DHC, w_D)
        assert np.abs(found_HT - expected_LHT[layer]).max() < 1e-5


# at the decision the model has little noise, and much that differs with the class besides the direction: the difference
# of means is not misled by that, a regression on standardised vectors is, and finds the direction over thinking
@pytest.mark.parametrize(
    ("kind", "positions", "least"),
    [("mean_difference", "decision", 0.97), ("mean_difference", "think", 0.99), ("logistic", "think", 0.85)],
)
def test_a_fitted_probe_finds_the_direction(
    store: Store, planted: Planted, tmp_path: Path, kind: str, positions: str, least: float
) -> None:
    layer = str(planted.truth.layer)
    document = store.fit_probe(
        "fitted", kind=kind, positions=positions, layers=layer, where="kind <> 'jailbroken'", replace=True
    )
    assert document.chosen is not None
    assert document.chosen.auroc == 1
    path = tmp_path / "probe.safetensors"
    store.export_probe("fitted", str(path))
    w_D = load_file(path)["w"]
    assert w_D @ planted.truth.w_D / np.linalg.norm(w_D) > least


def test_saved_folder_is_the_model_of_its_settings(folder: Path, planted: Planted) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, weight in planted.model.state_dict().items():
        assert np.array_equal(weights[name], weight.numpy()), name


def test_people_read_what_was_written_and_what_to_try(tmp_path: Path) -> None:
    place = tmp_path / "a folder"
    printed = ok("heads", "planted", place, "--examples", "3").text
    assert "suppressors  1:" in printed
    assert f"cliffstore extract '{place}/corpus.jsonl' --model '{place}' --store '{place}-store'" in printed
    assert f"cliffstore probe import '{place}-store' '{place}/probe.safetensors' --name planted --layer 4" in printed
    assert f"cliffstore cliff '{place}-store' --probe planted" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suppressors", "99"), "suppressors must be 1 to 27 with 6 layers of 8 heads, not 99"),
        (("--layers", "1"), "layers must be 3 to 64, not 1"),
        (("--examples", "2"), "examples must be at least 3, one of each kind, not 2"),
        (("--seed", "-1"), "seed must be 0 or more, not -1"),
    ],
)
def test_mistakes_leave_no_folder(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run_cli("heads", "planted", tmp_path / "new", *arguments)
    assert (result.code, result.stderr) == (2, f"error: {message}\n")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    result = run_cli("heads", "planted", tmp_path)
    assert result.code == 2
    assert "is there and not an empty folder: name a new one" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_url_or_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is no local folder" in run_cli("heads", "planted", "s3://bucket/model").stderr
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        result = run_cli("heads", "planted", place)
        assert result.code == 2
        assert len(result.stderr.splitlines()) == 1


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    result = run_cli("heads", "planted", tmp_path / "new")
    assert (result.code, result.stderr) == (2, f"error: {tmp_path}/new cannot be written: No space left on device\n")
    assert not list(tmp_path.iterdir())


def test_python_has_the_same(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = cliffstore.plant_folder(str(tmp_path / "empty"), suppressors=1, examples=3)
    assert len(report.suppressors) == 1
    assert (tmp_path / "empty" / "model.safetensors").is_file()
