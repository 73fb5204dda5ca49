"""Given tokens through a changed model: alone or in a batch, what a plain forward pass with plain hooks gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, heads_of, names_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from cliffstore.model.forced import ForcedPasses, Line
from cliffstore.model.interventions import place
from cliffstore.model.sites import locate
from cliffstore.model.steps import ModelShape
from cliffstore.plan.choices import chosen
from cliffstore.records import SEGMENTS, Segment
from cliffstore.schema import ArrayIdentity, HeadFactors, HeadScaling, Interventions

LAYER, OFF = 1, (1, 2)
REFUSING, COMPLYING = [3, 8], [11]
LENGTHS = ((12, 7), (5, 4), (9, 8))
"""Tokens of a line, and its decision position; the last has no answer."""


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(ARCHITECTURES[request.param]().config).eval().requires_grad_(False)
    for weight in made.parameters():
        if weight.dim() > 1:
            weight.mul_(5)
    return made


def _lines() -> list[Line]:
    generator, found = np.random.default_rng(5), []
    for length, decision in LENGTHS:
        roles = np.full(length, SEGMENTS.index(Segment.USER), dtype=np.uint8)
        roles[decision - 2 : decision + 1] = SEGMENTS.index(Segment.HEADER)
        roles[decision + 1 :] = SEGMENTS.index(Segment.RESPONSE)
        found.append(Line(generator.integers(3, 60, length), roles, decision))
    return found


def _by_hand(model: PreTrainedModel, line: Line, positions: str, w_D: np.ndarray) -> tuple[float, float, float]:
    names, width = names_of(model.base_model), heads_of(model).d_head
    blocks = model.base_model.get_submodule(names.blocks)
    acts_T = torch.from_numpy(chosen(positions, line.segments_T, line.decision))

    def off(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        z_1TZ = inputs[0].clone()
        z_1TZ[:, acts_T, OFF[1] * width : (OFF[1] + 1) * width] = 0
        return (z_1TZ, *inputs[1:])

    read: list[torch.Tensor] = []
    handles = [
        blocks[OFF[0]].get_submodule(names.projection).register_forward_pre_hook(off),
        blocks[LAYER].register_forward_hook(lambda *a: read.append(a[2][0] if isinstance(a[2], tuple) else a[2])),
    ]
    with torch.inference_mode():
        logits_TV = model(torch.from_numpy(line.token_ids_T)[None]).logits[0].double()
    for handle in handles:
        handle.remove()
    at = line.decision
    score = float(read[0][0, at].double() @ torch.from_numpy(w_D).double()) + 0.5
    difference = float(logits_TV[at, REFUSING].mean() - logits_TV[at, COMPLYING].mean())
    log_p_TV = torch.log_softmax(logits_TV, dim=-1)
    places = range(at, len(line.token_ids_T) - 1)
    return score, difference, -sum(float(log_p_TV[place, line.token_ids_T[place + 1]]) for place in places)


@pytest.mark.parametrize("positions", ["all", "template"])
@pytest.mark.parametrize("tokens", [1, 1_000])
def test_alone_and_side_by_side_as_by_hand(model: PreTrainedModel, positions: str, tokens: int) -> None:
    shape, lines = ModelShape.of(model), _lines()
    w_D = np.random.default_rng(1).normal(size=shape.d_model).astype(np.float32)
    sites = locate(model, shape.n_layers)
    array = ArrayIdentity(site="resid_post", layer=LAYER, shape=[shape.d_model])
    passes = ForcedPasses(
        model, sites, array, shape.n_heads, w_D, 0.5, refusing=REFUSING, complying=COMPLYING, tokens=tokens
    )
    step = HeadScaling(heads=[HeadFactors(layer=OFF[0], head=OFF[1], factors=[0.0])], positions=positions)
    changes = Interventions.of([step])
    with torch.inference_mode():
        placed = place(model, sites, changes, shape, shape.n_layers)

    def masks(line: Line, word: str) -> np.ndarray:
        return chosen(word, line.segments_T, line.decision)

    found = passes.figures(lines, placed, changes.choices, masks)
    for line, one in zip(lines, found, strict=True):
        expected = _by_hand(model, line, positions, w_D)
        assert (one.score, one.difference, one.surprise) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert one.n_answer == len(line.token_ids_T) - line.decision - 1
    unchanged = passes.figures(lines, (), (), masks)
    assert all(abs(one.score - two.score) > 1e-3 for one, two in zip(found, unchanged, strict=True))
