"""Sweeps over layers and positions of a store of synthetic vectors: what is chosen, held against what, and kept."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import ok, run_cli
from told import Told
from vector_store import VectorStore

from cliffstore.analyze import cells
from cliffstore.analyze.inputs import find_inputs
from cliffstore.analyze.samples import MOST_OF_SEGMENT
from cliffstore.config import ProbeConfig
from cliffstore.errors import ProbeError
from cliffstore.publish import heatmap
from cliffstore.run.fitting import probe_settings
from cliffstore.run.store import Store
from cliffstore.schema import ProbeDocument
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe

MADE = VectorStore(n_units=2, width=12, n_layers=3, strength=6.0)
"""512 examples of four tokens; their labels are drawn by the last layer at the decision position."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "store"
    MADE.make(ObjectStore(str(folder)))
    return folder


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(path: Path, told: Told):
    with Store(str(path), reporter=told) as opened:
        yield opened


def test_the_layer_and_position_that_made_the_labels_are_chosen(store: Store, told: Told) -> None:
    document = store.fit_probe("sweep", positions="-2..0", replace=True)
    cells = {(cell.positions, cell.layer): cell for cell in document.cells}
    assert set(cells) == {(place, layer) for place in ("-2", "-1", "decision") for layer in range(3)}
    assert (document.positions, document.layer) == ("decision", 2)
    chosen = cells.pop(("decision", 2))
    assert chosen == document.chosen
    assert chosen.auroc > 0.95
    assert chosen.auroc_low < chosen.auroc < chosen.auroc_high
    assert chosen.cv_auroc is not None
    assert chosen.cv_auroc > 0.9
    assert all(abs(cell.auroc - 0.5) < 0.2 for cell in cells.values()), "labels hang on nothing else"
    assert document.n_train + document.n_validation == 512
    assert document.shuffled_auroc is not None
    assert abs(document.shuffled_auroc - 0.5) < 0.1
    assert document.bag_auroc == 0.5, "all examples have the same tokens"
    assert told.notices == []


def test_views_have_a_line_a_probe_and_a_line_a_cell(store: Store) -> None:
    document = store.fit_probe("sweep", positions="-2..0", replace=True)
    found = store.sql(
        "SELECT positions, layer, auroc, auroc_low, auroc_high, c, n_train, n_validation, recall_at_1_fpr, "
        "calibration_error, test_auroc, chosen FROM probe_metrics WHERE probe = 'sweep'"
    ).fetchall()
    assert found == [
        (
            cell.positions, cell.layer, cell.auroc, cell.auroc_low, cell.auroc_high, cell.c, cell.n_train,
            cell.n_validation, cell.recall_at_1_fpr, cell.calibration_error, None, cell == document.chosen,
        )
        for cell in document.cells
    ]  # fmt: skip
    (line,) = store.sql(
        "SELECT kind, positions, layer, auroc, shuffled_auroc, bag_auroc FROM probes WHERE probe = 'sweep'"
    ).fetchall()
    assert line == (
        "logistic", "decision", 2, document.chosen.auroc, document.shuffled_auroc, document.bag_auroc,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["logistic", "mean_difference", "lda"])
def test_every_kind_finds_the_direction_and_scores_in_sql(kind: str, store: Store) -> None:
    document = store.fit_probe(kind, kind=kind, layers="2")
    assert document.chosen is not None
    # The loud dimensions, which have nothing to do with the label, are in a difference of 512 means by their noise.
    assert document.chosen.auroc > (0.7 if kind == "mean_difference" else 0.9)
    assert document.chosen.calibration_error < 0.15
    assert (document.c is None, document.shrinkage is None) == (kind != "logistic", kind != "lda")
    _, weights = read_probe(store.reader.objects, kind)
    rows_N, y_N = MADE.rows_and_labels()
    expected_N = weights.scores(store.vectors("resid_post", 2, rows_N))
    found_N = store.sql(f"SELECT score('{kind}', row) FROM tokens WHERE to_decision = 0 ORDER BY example").fetchnumpy()
    np.testing.assert_allclose(next(iter(found_N.values())), expected_N, rtol=1e-5, atol=1e-4)
    assert np.mean((expected_N > 0) == y_N) > (0.65 if kind == "mean_difference" else 0.85)


def test_given_c_and_shrinkage_are_taken(store: Store) -> None:
    assert store.fit_probe("c", layers="2", c=0.05).chosen.c == 0.05
    assert store.fit_probe("g", layers="2", kind="lda", shrinkage=0.5).chosen.shrinkage == 0.5


def test_several_processes_find_what_one_finds(store: Store, path: Path) -> None:
    alone = store.fit_probe("alone", positions="-1..0", workers=1)
    shared = store.fit_probe("shared", positions="-1..0", workers=2, executor="local")
    assert shared.cells == alone.cells
    assert (shared.digest, shared.inputs) == (alone.digest, alone.inputs)


def test_equal_inputs_are_not_fitted_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.fit_probe("again", layers="2", seed=3)

    def never(*_: object, **__: object) -> None:
        pytest.fail("fitted again")

    monkeypatch.setattr("cliffstore.run.fitting.fit_probe", never)
    assert store.fit_probe("again", layers="2", seed=3, workers=2, memory_budget="3GB") == first
    with pytest.raises(ProbeError, match="pass --replace"):  # before anything is fitted
        store.fit_probe("again", layers="2", seed=4)
    with pytest.raises(pytest.fail.Exception):
        store.fit_probe("again", layers="2", seed=4, replace=True)


def test_choice_of_layer_does_not_see_the_test_set(store: Store) -> None:
    """The same probe with and without a test set, though another layer may be better on it."""
    where = "example % 4 <> 0"
    plain = store.fit_probe("plain", where=where)
    tested = store.fit_probe("tested", where=where, test_where="example % 4 = 0")
    assert (tested.digest, tested.layer) == (plain.digest, plain.layer)
    assert tested.n_test == 128
    assert all(cell.test_auroc is not None for cell in tested.cells)
    assert tested.chosen.test_auroc > 0.9
    assert [(cell.auroc, cell.c) for cell in tested.cells] == [(cell.auroc, cell.c) for cell in plain.cells]


def test_another_store_of_the_same_model_is_a_test_set(store: Store, told: Told, tmp_path: Path) -> None:
    other = replace(MADE, n_units=1)  # the prompts of the first unit, and the same vectors
    other.make(ObjectStore(str(tmp_path / "other")))
    with pytest.raises(ProbeError, match="one class"):
        store.fit_probe("elsewhere", layers="2", test_store=str(tmp_path / "other"))
    assert "256 test examples have a prompt that the probe was fitted with and are left out" in told.notices
    half = "example >= 128"
    document = store.fit_probe("elsewhere", layers="2", where=half, test_store=str(tmp_path / "other"))
    assert document.n_test == 128
    assert document.test_store == str(tmp_path / "other")
    assert document.chosen.test_auroc > 0.85
    here = store.fit_probe("here", layers="2", where=half, test_where="example < 128")
    assert here.chosen.test_auroc == pytest.approx(document.chosen.test_auroc, abs=1e-12)


def test_a_store_of_another_model_is_no_test_set(store: Store, tmp_path: Path) -> None:
    for name, made, told in (
        ("wide", replace(MADE, width=16, n_units=1), "another model|shape"),
        ("half", replace(MADE, dtype="float16", n_units=1), "another model"),
        ("flat", replace(MADE, n_layers=2, n_units=1), "layer 2"),
    ):
        made.make(ObjectStore(str(tmp_path / name)))
        with pytest.raises(ValueError, match=told):
            store.fit_probe("elsewhere", layers="2", where="example >= 256", test_store=str(tmp_path / name))


class SpacedStore(VectorStore):
    """Prompts have more space between their words."""

    def _examples(self, unit: int) -> pa.Table:
        table = super()._examples(unit)
        spaced = pa.array([f" {prompt.replace(' ', '  ')}\n" for prompt in table["prompt"].to_pylist()])
        return table.set_column(table.schema.get_field_index("prompt"), "prompt", spaced)


def test_a_prompt_that_was_fitted_with_is_no_test_however_it_is_spaced(
    store: Store, told: Told, tmp_path: Path
) -> None:
    SpacedStore(n_units=2, width=12, n_layers=3, strength=6.0).make(ObjectStore(str(tmp_path / "spaced")))
    document = store.fit_probe("spaced", layers="2", where="example >= 100", test_store=str(tmp_path / "spaced"))
    assert document.n_test == 100
    assert told.notices == ["412 test examples have a prompt that the probe was fitted with and are left out"]


class BrokenStore(VectorStore):
    """One vector has Inf in it."""

    def stored_of(self, layer: int, unit: int) -> np.ndarray:
        stored = super().stored_of(layer, unit)
        if (layer, unit) == (0, 0):
            stored[4 * self.tokens - 1, 1] = np.inf
        return stored


def test_infinite_vectors_are_told(tmp_path: Path) -> None:
    BrokenStore(n_units=1, width=4, n_layers=1).make(ObjectStore(str(tmp_path / "store")))
    with Store(str(tmp_path / "store")) as opened:
        for kind in ("logistic", "mean_difference", "lda"):
            with pytest.raises(ProbeError, match="1 of 256 vectors of resid_post layer 0, position decision"):
                opened.fit_probe("p", kind=kind)
        opened.fit_probe("p", where="example <> 3")


def test_singular_covariance_is_told(tmp_path: Path) -> None:
    VectorStore(n_units=1, width=300, n_layers=1, tokens=8).make(ObjectStore(str(tmp_path / "store")))
    with Store(str(tmp_path / "store")) as opened:
        with pytest.raises(ProbeError, match="--shrinkage"):
            opened.fit_probe("p", kind="lda", shrinkage=0.0)
        assert opened.fit_probe("p", kind="lda").shrinkage is not None


def test_duplicated_prompts_stay_on_one_side(tmp_path: Path) -> None:
    """Sixteen examples a prompt, vectors that are noise: a leak would be seen as validation above chance."""
    made = VectorStore(n_units=2, width=64, n_layers=1, strength=0.0, distinct_prompts=32)
    made.make(ObjectStore(str(tmp_path / "store")))
    with Store(str(tmp_path / "store")) as opened:
        document = opened.fit_probe("p")
        assert document.n_train + document.n_validation == 512
        prompts = opened.sql("SELECT prompt FROM examples").fetchall()
    assert len(set(prompts)) == 32
    assert document.n_validation % 16 == 0, "prompts are whole"


def test_tokens_of_a_segment_are_samples_that_stay_together(store: Store, told: Told) -> None:
    document = store.fit_probe("think", positions="think,decision", layers="2")
    think = next(cell for cell in document.cells if cell.positions == "think")
    assert think.n_train + think.n_validation == 3 * 512
    decision = document.chosen
    assert (think.n_train, think.n_validation) == (3 * decision.n_train, 3 * decision.n_validation)
    assert document.positions == "decision"
    assert told.notices == []


def test_long_segments_are_thinned_evenly_and_told(tmp_path: Path, told: Told) -> None:
    made = VectorStore(n_units=4, tokens=101, unit_rows=1_024, width=4, n_layers=1)
    made.make(ObjectStore(str(tmp_path / "store")))
    with Store(str(tmp_path / "store"), reporter=told) as opened:
        document = opened.fit_probe("p", positions="think")
        asked = probe_settings(ProbeConfig(store="", name="p", positions="think"))
        (samples,) = find_inputs(opened.catalog, asked, lambda _: None).samples
    places_EK = samples.rows_N.reshape(made.n_examples, MOST_OF_SEGMENT)
    steps = np.diff(places_EK, axis=1)
    assert (steps.min(), steps.max()) == (1, 2)
    assert set((places_EK[:, -1] - places_EK[:, 0]).tolist()) <= {98, 99}
    n = document.n_train + document.n_validation
    assert n == MOST_OF_SEGMENT * made.n_examples
    assert told.notices[0] == (
        f"{n:,} of {100 * made.n_examples:,} stored tokens of think are samples: 64 evenly spaced ones of each of "
        f"the {made.n_examples} examples that have more"
    )


def test_positions_without_vectors_are_left_out_and_told(store: Store, told: Told) -> None:
    document = store.fit_probe("some", positions="-9,decision,user", layers="2")
    assert {cell.positions for cell in document.cells} == {"decision"}
    assert told.notices == [
        "position -9 is left out: 0 examples have a vector there, too few to split",
        "position user is left out: 0 examples have a vector there, too few to split",
    ]
    with pytest.raises(ProbeError, match="-9, user"):
        store.fit_probe("none", positions="-9,user")


def test_layers_one_after_the_other_where_memory_is_short(store: Store, told: Told) -> None:
    found = store.fit_probe("short", positions="-3..0", workers=8, executor="local", memory_budget=1_100_000)
    assert told.notices == ["layers are fitted one after the other: 3 at once need more than the memory budget"]
    assert found.cells == store.fit_probe("roomy", positions="-3..0", workers=1).cells


def test_over_units_the_same_probes_are_found(store: Store, told: Told) -> None:
    options = {"where": "example % 4 <> 0", "test_where": "example % 4 = 0", "positions": "-1..0"}
    expected = store.fit_probe("inside", **options)
    found = store.fit_probe("outside", out_of_core=True, **options)
    assert [cell.model_dump() for cell in found.cells] == [
        {
            name: pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
            for name, value in cell.model_dump().items()
        }
        for cell in expected.cells
    ]
    assert found.shuffled_auroc == expected.shuffled_auroc
    assert len(told.notices) == 6
    assert all("was fitted out of core" in notice for notice in told.notices)


def test_options_that_are_wrong_are_told(path: Path) -> None:
    for options, told in (
        (("--kind", "svm"), "kind"),
        (("--c", "big"), "c"),
        (("--c", "0"), "c"),
        (("--shrinkage", "2"), "shrinkage"),
        (("--class-weight", "some"), "class-weight"),
        (("--kind", "lda", "--c", "1"), "option c is of kind logistic"),
        (("--shrinkage", "0.1"), "option shrinkage is of kind lda"),
        (("--memory-budget", "lots"), "memory-budget"),
        (("--positions", "everywhere"), "everywhere"),
        (("--test-store", "nowhere-at-all"), "nowhere-at-all"),
    ):
        result = run_cli("probe", "fit", path, "--name", "wrong", *options)
        assert result.code == 2, options
        assert told in result.stderr
        assert result.stderr.count("\n") == 1
    assert "wrong" not in ok("probe", "list", path).text


class TellingStore(VectorStore):
    """The token before the decision tells the label in all but some examples; vectors tell nothing."""

    def _tokens(self, unit: int) -> pa.Table:
        table = super()._tokens(unit)
        telling_R = np.arange(self.n_rows) % self.tokens == self.tokens - 2
        label_R = np.repeat(self.labels_of(unit), self.tokens)
        ids_R = np.where(telling_R, 100 + label_R, table["token_id"].to_numpy()).astype(np.int32)
        return table.set_column(table.schema.get_field_index("token_id"), table.schema.field("token_id"), [ids_R])


def test_bag_of_tokens_tells_what_the_words_tell(tmp_path: Path) -> None:
    """And nothing of the words that come after the place."""
    made = TellingStore(n_units=1, width=4, n_layers=1, strength=0.0)
    made.make(ObjectStore(str(tmp_path / "store")))
    with Store(str(tmp_path / "store")) as opened:
        for place, expected in (("decision", 1.0), ("-1", 1.0), ("-2", 0.5), ("think", 1.0), ("think_close", 1.0)):
            document = opened.fit_probe(f"at{place}", positions=place, where="example >= 56", test_where="example < 56")
            assert (document.bag_auroc, document.bag_test_auroc) == (expected, expected), place
            assert document.chosen.auroc < 0.75, "a probe cannot tell"


def test_controls_are_those_of_the_chosen_place_and_of_the_store_that_tests(tmp_path: Path) -> None:
    """Tokens tell the label from the one before the decision on, vectors at the decision alone."""
    made = TellingStore(n_units=1, width=4, n_layers=1, strength=9.0)
    made.make(ObjectStore(str(tmp_path / "store")))
    silent = VectorStore(n_units=1, width=4, n_layers=1, strength=9.0)
    silent.make(ObjectStore(str(tmp_path / "silent")))
    with Store(str(tmp_path / "store")) as opened:
        where = {"where": "example >= 56", "test_store": str(tmp_path / "silent")}
        document = opened.fit_probe("p", positions="-2,decision", **where)
        assert document.positions == "decision"
        assert (document.bag_auroc, document.bag_test_auroc) == (1.0, 0.5)
        given = opened.import_probe("d", made.direction_D(0), layer=0, calibrate="label", **where)
        assert (given.n_test, given.test_store) == (56, str(tmp_path / "silent"))
        assert (given.bag_auroc, given.bag_test_auroc) == (1.0, 0.5)
        assert given.chosen is not None
        assert given.chosen.test_auroc is not None


def test_what_crosses_a_process_pickles(store: Store) -> None:
    asked = ProbeConfig(store="", name="p", positions="-1..0", test_where="example < 99", where="example >= 99")
    inputs = find_inputs(store.catalog, probe_settings(asked), lambda _: None)
    sweep = pickle.loads(pickle.dumps(cells.Sweep.of(inputs)))  # noqa: S301
    found = pickle.loads(pickle.dumps(cells.fit_layer((sweep, 2))))  # noqa: S301
    assert [cell.metrics for cell in found] == [cell.metrics for cell in cells.fit_layer((sweep, 2))]
    assert [cell.metrics.positions for cell in found] == ["-1", "decision"]


def test_a_direction_comes_and_goes(store: Store, path: Path, told: Told, tmp_path: Path) -> None:
    fitted = store.fit_probe("fitted", layers="2")
    ok("probe", "export", path, "--name", "fitted", "-o", tmp_path / "d.safetensors")
    shown = ok("probe", "import", path, tmp_path / "d.safetensors", "--name", "back", "--layer", "2", "--json").json
    assert (shown["kind"], shown["digest"], shown["cells"], shown["label"]) == ("imported", fitted.digest, [], None)
    twice = ok("probe", "import", path, tmp_path / "d.safetensors", "--name", "back", "--layer", "2").text
    assert "nothing was measured" in twice
    assert "back" in ok("probe", "list", path).text
    store.refresh()
    same = store.sql(
        "SELECT count(*) FROM tokens WHERE score('back', row) IS DISTINCT FROM score('fitted', row)"
    ).fetchall()
    assert same == [(0,)]
    assert store.score("back").tokens == 2_048
    assert not [finding for finding in store.verify().findings if "probes/" in finding.key]


@pytest.mark.parametrize("factor", [1e-3, 1.0, -50.0])
def test_a_direction_is_calibrated_on_a_label(factor: float, store: Store, told: Told) -> None:
    """Whatever its scale and sign: the logit that fits is one and the same."""
    w_D = torch.tensor(MADE.direction_D(2) / np.where(np.arange(12) % 4, 1, 20))
    document = store.import_probe(f"x{factor}", factor * w_D, layer=2, calibrate="label")
    assert document.kind == "imported"
    assert document.label == "label"
    assert document.chosen.auroc > 0.95
    assert document.chosen.calibration_error < 0.15
    assert ("the direction points away from the positive class: its sign is turned" in told.notices) == (factor < 0)
    _, weights = read_probe(store.reader.objects, document.name)
    cosine = weights.w_D @ w_D.numpy() / np.linalg.norm(weights.w_D) / np.linalg.norm(w_D.numpy())
    assert cosine == pytest.approx(1, abs=1e-4)


def test_what_is_no_direction_of_the_site_is_refused(store: Store) -> None:
    good = np.ones(12)
    for weights, options, told in (
        (np.ones(11), {}, "shape"),
        (np.zeros(12), {}, "zero"),
        (np.where(np.arange(12) == 3, np.nan, 1), {}, "NaN"),
        (good, {"bias": np.inf}, "NaN or Inf"),
        (good, {"bias": 1.0, "calibrate": "label"}, "leave one out"),
        (good, {"positions": "-1..0"}, "position"),
        (good, {"positions": "-1..0", "calibrate": "label"}, "position"),
        (good, {"site": "attn_out"}, "attn_out"),
        (good, {"where": "label = '1'"}, "say --calibrate LABEL too"),
        (good, {"test_store": "elsewhere"}, "say --calibrate LABEL too"),
        (good, {"calibrate": "label", "kind": "lda"}, "of a probe that is fitted"),
    ):
        with pytest.raises(ValueError, match=told):
            store.import_probe("no", weights, layer=2, **options)
    with pytest.raises(ValueError, match="layer 7"):
        store.import_probe("no", good, layer=7)
    assert store.sql("SELECT count(*) FROM probes WHERE probe = 'no'").fetchall() == [(0,)]


def test_a_direction_without_offset_says_so(store: Store, told: Told) -> None:
    store.import_probe("ones", np.ones(12), layer=0)
    assert len(told.notices) == 1
    assert "b = 0" in told.notices[0]
    placed = store.import_probe("placed", np.ones(12), layer=0, bias=1.5, positions="-1")
    assert (placed.positions, read_probe(store.reader.objects, "placed")[1].b) == ("-1", 1.5)


def test_heat_map_is_drawn(path: Path, store: Store, tmp_path: Path) -> None:
    store.fit_probe("drawn", positions="-1..0,think")
    shown = ok("probe", "show", path, "--name", "drawn", "--heatmap", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG\r\n")
    lines = shown.text.splitlines()
    head = lines.index("validation AUROC  position") + 1
    assert lines[head].split() == ["layer", "-1", "decision", "think"]
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["2", "1", "0"]
    assert "*" in lines[head + 1]
    result = run_cli("probe", "show", path, "--name", "drawn", "--heatmap", tmp_path / "map.png" / "x.png")
    assert result.code == 2
    assert "map.png" in result.stderr


def test_grid_has_every_cell_in_its_place(store: Store) -> None:
    document = store.fit_probe("drawn", positions="-1..0,think")
    grid = heatmap.grid_of(document)
    for cell in document.cells:
        assert grid.auroc_LP[grid.layers.index(cell.layer), grid.positions.index(cell.positions)] == cell.auroc
    assert grid.chosen == (2, 1)


def test_documents_of_a_sweep_are_whole(store: Store, path: Path) -> None:
    """What a sweep keeps is found well by `verify`, and is as it was when it is read again."""
    document = store.fit_probe("kept", positions="-1..0")
    assert not [finding for finding in store.verify().findings if "probes/" in finding.key]
    assert read_probe(ObjectStore(str(path)), "kept")[0] == document
    assert ProbeDocument.from_bytes(document.to_bytes(), "key") == document
