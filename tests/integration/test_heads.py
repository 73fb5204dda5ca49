"""Tracing and switching off heads in a store of a model whose mechanism is known, and of a random one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ok
from quick import quick_runs
from told import Told

from cliffstore import Store
from cliffstore.model.planted.model import Planted, PlantSettings, plant
from cliffstore.run.stages import extract

EXAMPLES = 6
LAST_TOKENS = 4
SETTINGS = (
    PlantSettings(seed=0, suppressors=3),
    PlantSettings(seed=1, suppressors=1, layers=4, heads=6),
    PlantSettings(seed=2, suppressors=5, layers=8),
)


@dataclass(frozen=True)
class Case:
    """A planted model, and a store of its corpus with z and the probe."""

    planted: Planted
    folder: Path
    store: Path

    @property
    def model(self) -> str:
        return str(self.folder)


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda one: f"seed{one.seed}-k{one.suppressors}-l{one.layers}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    planted = plant(request.param)
    place = tmp_path_factory.mktemp("planted")
    folder, store = place / "model", place / "store"
    planted.save(folder, examples=EXAMPLES)
    with quick_runs():
        extract(str(folder / "corpus.jsonl"), model=str(folder), store=str(store), sites="z,resid_post", yes=True)
    with Store(str(store), reporter=Told()) as opened:
        truth = planted.truth
        opened.import_probe("refusal", truth.w_D, layer=truth.layer, bias=float(truth.b))
    return Case(planted, folder, store)


def _prompts(case: Case) -> list[list[int]]:
    """The tokens of each example up to its decision, by ordinal."""
    with Store(str(case.store), reporter=Told()) as opened:
        rows = opened.sql(
            "SELECT example, list(token_id ORDER BY position) FROM tokens WHERE to_decision <= 0 GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return [tokens for _, tokens in rows]


def _means(case: Case, name: str, distance: int = 0) -> dict[tuple[int, int], float]:
    with Store(str(case.store), reporter=Told()) as opened:
        rows = opened.sql(
            "SELECT layer, head, mean FROM heads WHERE name = $1 AND to_decision = $2 AND layer IS NOT NULL",
            [name, distance],
        ).fetchall()
    return {(layer, head): mean for layer, head, mean in rows}


@pytest.mark.parametrize("source", ["z", "model"])
def test_tracing_finds_the_planted_heads_and_equals_the_closed_form(case: Case, source: str) -> None:
    truth, prompts = case.planted.truth, _prompts(case)
    with Store(str(case.store), reporter=Told()) as opened:
        report = opened.trace_heads(
            "refusal", name=f"d-{source}", source=source, model=case.model, positions=f"-{LAST_TOKENS - 1}..0",
            resamples=50,
        )  # fmt: skip
    assert report.examples == EXAMPLES
    assert report.layers == tuple(range(truth.layer + 1))
    for distance in range(1 - LAST_TOKENS, 1):
        expected = np.mean([truth.contributions(ids)[:, :, len(ids) - 1 + distance] for ids in prompts], axis=0)
        found = _means(case, f"d-{source}", distance)
        assert len(found) == (truth.layer + 1) * case.planted.settings.heads
        assert max(abs(value - expected[head]) for head, value in found.items()) <= 1e-5
    most_negative = sorted(found, key=found.__getitem__)[: len(truth.suppressors)]
    assert set(most_negative) == set(truth.suppressors)
    assert max(abs(found[gate]) for gate in truth.gates) < 1e-5  # what direct attribution cannot see
    assert report.score == pytest.approx(np.mean([truth.scores(ids)[-1] for ids in prompts]), abs=1e-4)


@pytest.mark.parametrize("positions", ["template", "all", "decision"])
def test_knock_outs_match_the_closed_form_and_find_the_gate(case: Case, positions: str) -> None:
    truth, prompts = case.planted.truth, _prompts(case)
    with Store(str(case.store), reporter=Told()) as opened:
        report = opened.ablate_heads(
            "refusal", name=f"k-{positions}", positions=positions, model=case.model, resamples=50
        )
    assert report.shared
    found = _means(case, f"k-{positions}")
    assert len(found) == report.heads == (truth.layer + 1) * case.planted.settings.heads
    firsts = _first_ablated(case, positions)
    as_it_is = [truth.scores(ids)[-1] for ids in prompts]
    by_hand = [_by_hand(case.planted, ids, list(found), first) for ids, first in zip(prompts, firsts, strict=True)]
    expected = np.mean(np.subtract(by_hand, np.array(as_it_is)[:, None]), axis=0)
    assert np.abs(np.array(list(found.values())) - expected).max() <= 1e-4
    if positions == "all":
        for head in (*truth.suppressors, *truth.gates, *truth.decoys[:2]):
            without = [truth.scores(ids, {head: 0.0})[-1] for ids in prompts]
            assert found[head] == pytest.approx(np.mean(np.subtract(without, as_it_is)), abs=1e-4), head
    for head in truth.suppressors:
        assert found[head] > 0.01
    others = [abs(found[head]) for head in (*truth.decoys, *truth.idle) if head in found]
    assert min(found[gate] for gate in truth.gates) > max(others)


def _first_ablated(case: Case, positions: str) -> list[int]:
    """The first ablated position of each example, from the plan's segments alone."""
    condition = {
        "template": "segment NOT IN ('header', 'think_open', 'think_close')",
        "decision": "to_decision < 0",
        "all": "false",
    }[positions]
    with Store(str(case.store), reporter=Told()) as opened:
        rows = opened.sql(
            f"SELECT example, max(CASE WHEN {condition} THEN position ELSE -1 END) + 1 FROM tokens "
            "WHERE to_decision <= 0 GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return [first for _, first in rows]


def _by_hand(planted: Planted, ids: list[int], heads: list[tuple[int, int]], first: int) -> list[float]:
    """Score whole forward passes, a line a head, each with its head's output set to zero from a position on."""
    truth, body = planted.truth, planted.model.model
    read: list[torch.Tensor] = []

    def off(layer: int, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        z = inputs[0].clone()
        width = z.shape[-1] // planted.settings.heads
        for line, (at, head) in enumerate(heads):
            if at == layer:
                z[line, first:, head * width : (head + 1) * width] = 0
        return (z, *inputs[1:])

    handles = [
        block.self_attn.o_proj.register_forward_pre_hook(lambda _m, inputs, layer=layer: off(layer, inputs))
        for layer, block in enumerate(body.layers)
    ]
    handles.append(
        body.layers[truth.layer].register_forward_hook(lambda _m, _i, output: read.append(output[:, -1].double()))
    )
    with torch.inference_mode():
        body(input_ids=torch.tensor([ids] * len(heads)), use_cache=False)
    for handle in handles:
        handle.remove()
    return [float(score) for score in read[0].numpy() @ truth.w_D + truth.b]


def test_a_shortlist_is_measured_as_a_set_beside_random_sets(case: Case) -> None:
    truth, store = case.planted.truth, str(case.store)
    k = len(truth.suppressors)
    common = ["--probe", "refusal", "--model", case.folder, "--resamples", "20", "--replace"]
    ok("heads", "trace", store, *common)
    made = ok(
        "heads", "ablate", store, *common, "--name", "set", "--shortlist", k, "--ablation", "mean", "--controls", "6",
        "--json",
    ).json  # fmt: skip
    assert made["heads"] == k
    assert made["set_effect"] > made["control_effects"][2]
    assert {"refusal-direct", "set"} <= set(ok("info", store, "--json").json["heads"])
    rows = made["figures"]
    together = [row for row in rows if row["n_controls"]]
    assert [row["n_controls"] for row in together] == [6]
    assert set(together[0]["heads"].split(",")) == {f"{layer}:{head}" for layer, head in truth.suppressors}
    shown = ok("heads", "show", store, "set").text
    assert "without each head" in shown
    assert together[0]["heads"] in shown


def test_figures_by_group_and_condition(case: Case) -> None:
    with Store(str(case.store), reporter=Told()) as opened:
        opened.trace_heads(
            "refusal", name="grouped", group_by="kind", where="kind <> 'benign'", model=case.model, resamples=0,
            replace=True,
        )  # fmt: skip
        document, table = opened.heads("grouped")
        kinds = {row[0] for row in opened.sql("SELECT DISTINCT kind FROM examples WHERE kind <> 'benign'").fetchall()}
        whole = opened.sql(
            "SELECT sum(n * mean) / sum(n) FROM heads WHERE name = 'grouped' AND layer = $1 AND head = $2",
            list(case.planted.truth.suppressors[0]),
        ).fetchall()
    assert set(table["group"].to_pylist()) == kinds
    assert table["low"].null_count == table.num_rows
    assert document.where == "kind <> 'benign'"
    assert whole[0][0] < -0.01
