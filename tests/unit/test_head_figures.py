"""Figures of heads by hand: effects beside controls, means over groups of unequal size, which heads are chosen."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_up import make_probe
from made_up_store import made_up_capture

from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.attribution import LayerReading, ProbeReading
from cliffstore.analyze.example_means import Means
from cliffstore.model.undisturbed import Prompt
from cliffstore.records import NormShape
from cliffstore.run.heads import attention, shares, trace
from cliffstore.run.heads.choices import Choices, Wish, choose_heads, random_sets
from cliffstore.run.heads.effects import Facts, knockout_rows, set_figures
from cliffstore.run.heads.knocking import KnockoutWorker
from cliffstore.run.heads.parts import Part
from cliffstore.run.heads.results import write_heads
from cliffstore.run.interventions import steps
from cliffstore.run.interventions.files import ScaleHeadsConfig
from cliffstore.run.interventions.steps import suppressors
from cliffstore.schema import HEADS, HeadsDocument, ProbeDocument
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights

FACTS = Facts("refusal", "template", "zero", True)
FIGURES = ("mean", "control_mean", "control_low", "control_high", "n_controls")


def means_of(*means: float, n: int = 4) -> Means:
    mean_X = np.array(means)
    return Means(np.full(len(means), n), mean_X, mean_X - 1, mean_X + 2)


def figures(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row.get(name) for name in FIGURES)


def test_a_set_stands_beside_the_random_sets_and_a_head_alone_beside_none() -> None:
    choices = Choices(((0, 1), (2, 0)), ((0, 1), (2, 0)), (((0, 0),),) * 3, False, 4)
    first, second, whole = knockout_rows(means_of(1.0, 2.0, 9.0, 10.0, 20.0, 40.0, 99.0), choices, FACTS, "a")
    assert figures(first) == (1.0, None, None, None, None)
    assert (second["layer"], second["head"], second["low"], second["high"]) == (2, 0, 1.0, 4.0)
    assert whole["heads"] == "0:1,2:0"
    assert figures(whole) == pytest.approx((9.0, 70 / 3, 10.5, 39.0, 3))
    assert {(row["group"], row["n"]) for row in (first, second, whole)} == {("a", 4)}


def test_a_shortlist_of_one_head_has_the_random_sets_beside_it() -> None:
    choices = Choices(((1, 3),), ((1, 3),), (((1, 0),),) * 2, False, 4)
    (row,) = knockout_rows(means_of(5.0, 5.0, 1.0, 2.0, 99.0), choices, FACTS, None)
    assert (row["layer"], row["head"], row["heads"]) == (1, 3, "1:3")
    assert figures(row) == pytest.approx((5.0, 1.5, 1.025, 1.975, 2))


def test_each_of_all_heads_stands_beside_the_others_of_its_layer() -> None:
    every = tuple((layer, head) for layer in range(2) for head in range(3))
    rows = knockout_rows(means_of(1.0, 2.0, 3.0, 10.0, 40.0, 90.0, 7.0), Choices(every, None, (), True, 3), FACTS, None)
    assert figures(rows[0]) == pytest.approx((1.0, 2.5, 2.025, 2.975, 2))
    assert figures(rows[4]) == pytest.approx((40.0, 50.0, 12.0, 88.0, 2))


def test_effects_over_groups_weigh_examples_and_not_groups() -> None:
    choices = Choices(((0, 0),), ((0, 0),), (((0, 1),), ((0, 2),)), False, 4)
    groups = [means_of(0.0, 8.0, 4.0, 0.0, 1.0, n=1), means_of(0.0, 4.0, 0.0, 0.0, 1.0, n=3)]
    effect, controls = set_figures(groups, choices)
    assert (effect, controls) == (5.0, pytest.approx((0.5, 0.025, 0.975)))


def test_scores_over_groups_weigh_examples_at_the_last_distance_that_there_is() -> None:
    """Of a position: two heads, the score, what biases add. No example of the second group reaches distance 0."""
    both = means_of(1.0, 2.0, 30.0, 4.0, 10.0, 20.0, 300.0, 40.0, n=1)
    short = means_of(9.0, 6.0, 70.0, 8.0, np.nan, np.nan, np.nan, np.nan, n=3)
    short.n_X[4:] = 0
    assert trace._summary([both, short], Distances(-1, 0), 4) == (300.0, 30.0, 40.0)
    assert trace._summary([both, short], Distances(-1, -1), 4) == (60.0, 12.0, 7.0)


@pytest.mark.parametrize("centred", [False, True])
def test_behind_a_final_norm_shares_biases_and_score_have_its_scale(centred: bool) -> None:
    """Layer 5 is the only one: its heads stand first, whatever its number. Rows 0 and 2 of three are filled."""
    gain_D, shift_D = np.array([1.0, 2.0, 3.0], dtype=np.float32), np.array([0.5, 0.0, -1.0], dtype=np.float32)
    reading = ProbeReading(
        {5: LayerReading(np.array([[1.0], [10.0]], dtype=np.float32), 0.25, 0.0, None)},
        NormShape(gain_D, shift_D, 1e-3, centred),
    )
    w_D, h_ND = np.array([1.0, -1.0, 2.0], dtype=np.float32), np.array([[1.0, 2.0, 3.0], [0.0, 4.0, -4.0]])
    figures = shares._Figures(reading, ProbeWeights(w_D, 0.75), 2, np.zeros((3, 4)))
    rows_N = np.array([0, 2])
    figures.take_z(5, rows_N, np.array([[[3.0], [4.0]], [[5.0], [6.0]]], dtype=np.float32))
    figures.take_stream(rows_N, h_ND.astype(np.float32))
    x_ND = h_ND - h_ND.mean(axis=1, keepdims=True) if centred else h_ND
    scale_N = 1 / np.sqrt((x_ND**2).mean(axis=1) + 1e-3)
    expected_NF = np.column_stack(
        [
            *(np.array([[3.0, 40.0], [5.0, 60.0]]) * scale_N[:, None]).T,
            (x_ND * scale_N[:, None] * gain_D + shift_D) @ w_D + 0.75,
            0.25 * scale_N,
        ]
    )
    np.testing.assert_allclose(figures.values_RF[rows_N], expected_NF, rtol=1e-5)
    assert not figures.values_RF[1].any()


def test_random_sets_have_other_heads_of_the_same_layers_and_a_seed() -> None:
    heads = ((0, 1), (0, 2), (3, 5))
    sets = random_sets(heads, 6, 40, 1)
    for one in sets:
        assert [layer for layer, _ in one] == [0, 0, 3]
        assert len(set(one)) == 3
        assert not set(one) & set(heads)
    assert len(set(sets)) > 10
    assert sets == random_sets(heads, 6, 40, 1) != random_sets(heads, 6, 40, 2)
    assert all(set(one) <= {(0, head) for head in range(3)} for one in random_sets(heads[:2], 3, 5, 0))


def _probe() -> ProbeDocument:
    capture = made_up_capture("c", 3)
    model = capture.model.model_copy(update={"n_heads": 4, "d_head": 2})
    return make_probe(capture.model_copy(update={"model": model}), "refusal", layer=1)[0]


def _traced(objects: ObjectStore, probe: ProbeDocument, rows: list[tuple[int, int, int, float]]) -> HeadsDocument:
    """Write a trace of rows: head of layer 0, distance, examples, mean share."""
    table = [
        {"layer": 0, "head": head, "heads": f"0:{head}", "to_decision": at, "n": n, "mean": mean, "kind": "direct"}
        for head, at, n, mean in rows
    ]
    facts = {
        "name": "refusal-direct", "kind": "direct", "probe": probe.name, "probe_digest": probe.digest, "capture": "c",
        "site": "resid_post", "layer": 1, "source": "z", "where": None, "positions": "-1..0", "resamples": 0,
        "level": 0.95, "seed": 0, "examples": 10, "score": 0.0, "cliffstore_version": "0",
    }  # fmt: skip
    return write_heads(objects, table, facts)


def test_a_shortlist_weighs_groups_by_their_examples_and_looks_at_the_decision(tmp_path: Path) -> None:
    """Head 0 is the most negative over ten examples; head 1 in one of them, and head 2 before the decision."""
    objects, probe = ObjectStore(str(tmp_path)), _probe()
    _traced(objects, probe, [(0, 0, 9, -1.0), (0, 0, 1, 0.0), (1, 0, 9, 0.0), (1, 0, 1, -5.0), (2, 0, 9, -0.5),
                             (2, -1, 9, -90.0), (3, 0, 10, 8.0)])  # fmt: skip
    chosen = choose_heads(objects, probe, Wish(None, 3, None, 2, seed=5), lambda _: None)
    assert chosen.single == chosen.whole == ((0, 0), (0, 1), (0, 2))
    assert chosen.controls == random_sets(chosen.whole, 4, 2, 5)


@pytest.mark.parametrize(("kind", "order"), [("direct", [(0, 0), (0, 1)]), ("knockout", [(0, 3), (0, 2)])])
def test_heads_that_hold_the_score_down_have_negative_shares_or_positive_effects(
    kind: str, order: list[tuple[int, int]]
) -> None:
    rows = [(0, 9, -1.0), (0, 1, 0.0), (1, 9, 0.0), (1, 1, -5.0), (2, 1, 7.0), (2, 9, 0.0), (3, 9, 1.0), (3, 1, 0.0)]
    table = pa.Table.from_pylist([{"layer": 0, "head": head, "n": n, "mean": mean} for head, n, mean in rows] +
                                 [{"layer": None, "head": None, "n": 9, "mean": 50.0}], schema=HEADS)  # fmt: skip
    document = HeadsDocument.model_construct(kind=kind, name="made-up")
    assert suppressors(document, table, 2) == order


def test_a_factor_is_of_the_heads_that_have_none_of_their_own(tmp_path: Path) -> None:
    objects, probe = ObjectStore(str(tmp_path)), _probe()
    _traced(objects, probe, [(0, 0, 1, -1.0), (1, 0, 1, -3.0), (2, 0, 1, 5.0)])
    for step, expected in (
        ({"heads": [[1, 2, 0.5], [1, 0]], "factor": 0.25}, [(1, 0, 0.25), (1, 2, 0.5)]),
        ({"heads": "3:1"}, [(3, 1, 0.0)]),
        ({"table": "refusal-direct", "top": 2, "factor": 2}, [(0, 0, 2.0), (0, 1, 2.0)]),
    ):
        wish = ScaleHeadsConfig(kind="scale_heads", positions="template", keep_norm=True, **step)
        found = steps._heads(wish, str(tmp_path), {})
        assert [(one.layer, one.head, *one.factors) for one in found.heads] == expected
        assert (found.positions, found.keep_norm) == ("template", True)


def test_the_mean_of_z_is_over_the_positions_that_are_ablated() -> None:
    class Model:
        def z_of(self, prompt: Prompt) -> dict[int, np.ndarray]:
            n = len(prompt.token_ids_T) - prompt.first
            return {2: np.full((n, 2, 3), float(n), dtype=np.float32)}

    worker = KnockoutWorker.__new__(KnockoutWorker)
    worker._model, worker._stopped = Model(), threading.Event()  # type: ignore[assignment]
    part = Part(0, ((0,), (1,)))
    sums = worker._sums_of_z(part, [[Prompt(np.arange(9), 8)], [Prompt(np.arange(5), 2)]])
    assert list(sums) == [2]
    np.testing.assert_array_equal(sums[2][:-1] / sums[2][-1], np.full(6, (1 + 3 * 3) / 4))


def test_attention_per_token_is_the_mean_of_ratios_and_what_no_token_gets_has_a_row() -> None:
    """Two examples, of which the first alone has the second segment; a fifth of the second's attention goes nowhere."""
    mass_EHG = np.zeros((2, 1, 8), dtype=np.float32)
    share_EHG = np.zeros((2, 1, 8), dtype=np.float32)
    mass_EHG[:, 0, :2], share_EHG[:, 0, :2] = [[0.5, 0.5], [0.8, 0.0]], [[0.25, 0.75], [1.0, 0.0]]
    first, second, sink = attention._table([(3, 1)], mass_EHG, share_EHG).to_pylist()
    assert (first["layer"], first["head"], first["segment"], first["n"]) == (3, 1, "system", 2)
    assert (first["mass"], first["share"]) == pytest.approx((0.65, 0.625))
    assert first["per_token"] == pytest.approx((2.0 + 0.8) / 2)
    assert first["per_token_low"] == pytest.approx(0.8)
    assert first["per_token_high"] == pytest.approx(2.0)
    assert (second["n"], second["mass"], second["per_token"]) == pytest.approx((1, 0.5, 2 / 3))
    assert (sink["segment"], sink["n"], sink["mass"], sink["per_token"]) == ("sink", 2, pytest.approx(0.1), None)
