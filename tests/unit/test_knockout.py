"""Heads switched off: held prefixes, shared stems and lines that join give what whole passes with hand hooks give."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, heads_of, names_of
from torch import nn
from transformers import PreTrainedModel

from cliffstore.errors import ModelError
from cliffstore.model.knockout import Knockouts
from cliffstore.model.knockout_hooks import Heads
from cliffstore.model.undisturbed import Prompt
from cliffstore.schema import ArrayIdentity, ModelIdentity

TOKENS = np.array([5, 9, 1, 7, 3, 22, 60, 13, 9, 9, 41, 5])
"""Longer than the sliding window, so that a window matters."""
OTHERS = (np.array([5, 9, 1, 7, 3, 44, 8, 2]), np.array([5, 9, 1, 7, 3, 22, 60, 13, 9, 4, 3, 2, 6, 6]))
B = 0.3
CASES = ("llama", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "mixtral")


def _identity(model: PreTrainedModel) -> ModelIdentity:
    config, heads = model.config, heads_of(model)
    return ModelIdentity(
        name="m", revision=None, config_digest="0", weights_digest=None, model_type=config.model_type,
        n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=heads.n_heads, d_head=heads.d_head,
    )  # fmt: skip


def _direction(width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=width).astype(np.float32)


def _by_hand(
    model: PreTrainedModel, prompt: Prompt, heads: Heads, means: dict[int, np.ndarray] | None, site: str, layer: int
) -> float:
    """Score one prompt by itself with eager attention and hooks on modules by their own names."""
    names, shape = names_of(model), heads_of(model)
    blocks = model.get_submodule(names.blocks)
    read: list[torch.Tensor] = []
    handles = []

    def off(layer: int, head: int, module: nn.Module) -> None:
        def hook(_module: nn.Module, inputs: tuple) -> tuple:
            z = inputs[0].clone()
            place = slice(head * shape.d_head, (head + 1) * shape.d_head)
            z[..., prompt.first :, place] = 0.0 if means is None else torch.from_numpy(means[layer][head])
            return (z, *inputs[1:])

        handles.append(module.register_forward_pre_hook(hook))

    for at, head in heads:
        off(at, head, blocks[at].get_submodule(names.projection))
    module = model.get_submodule(names.norm) if site == "final_norm" else blocks[layer]
    handles.append(
        module.register_forward_hook(
            lambda _m, _i, output: read.append((output[0] if isinstance(output, tuple) else output)[0, -1].clone())
        )
    )
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(prompt.token_ids_T)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return float(read[0].double() @ torch.from_numpy(_direction(read[0].shape[-1])).double()) + B


def _choices(layers: Sequence[int], n_heads: int) -> list[Heads]:
    single = [((layer, head),) for layer in layers for head in range(n_heads)]
    return [*single, ((0, 1), (1, 2), (1, 3)), ((1, 0), (0, 0))]


def _knockouts(model: PreTrainedModel, site: str, layer: int, tokens: int) -> Knockouts:
    identity = _identity(model)
    array = ArrayIdentity(site=site, layer=layer, shape=[identity.d_model])
    return Knockouts(model, identity, array, _direction(identity.d_model), B, tokens=tokens)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("site", ["resid_post", "final_norm"])
def test_every_head_as_by_hand_at_any_positions(name: str, site: str) -> None:
    make = ARCHITECTURES[name]
    plain, n_layers = make(), make().config.num_hidden_layers
    layer = n_layers - 1 if site == "final_norm" else 1
    means = {
        at: np.random.default_rng(at).normal(size=(4, heads_of(plain).d_head)).astype(np.float32)
        for at in range(n_layers)
    }
    knockouts = {tokens: _knockouts(make(), site, layer, tokens) for tokens in (40, 10_000)}
    choices = _choices(range(layer + 1), 4)
    for prompts in ([Prompt(TOKENS, 8)], [Prompt(TOKENS, 11)], [Prompt(TOKENS, 0)], _together()):
        for put in (None, means):
            expected = np.array(
                [[_by_hand(plain, one, heads, put, site, layer) for heads in choices] for one in prompts]
            )
            as_it_is = np.array([_by_hand(plain, one, (), None, site, layer) for one in prompts])
            for tokens, model in knockouts.items():
                assert model.shared
                scored, before = model.scores(prompts, choices, put)
                scale = max(np.abs(expected).max(), 1.0)
                assert np.abs(scored - expected).max() <= 1e-5 * scale, (prompts[0].first, tokens)
                assert np.abs(before - as_it_is[:, None]).max() <= 1e-5 * scale
    assert np.abs(expected - as_it_is[:, None]).max() > 0.1


def _together() -> list[Prompt]:
    return [Prompt(TOKENS, 0), *(Prompt(one, 0) for one in OTHERS)]


def test_in_16_bits_a_head_that_gives_nothing_has_no_effect() -> None:
    """Score and effect are of one batch: rounding that depends on the size of a batch is in both."""
    model = ARCHITECTURES["llama"]()
    shape = heads_of(model)
    for layer in model.layers:
        layer.self_attn.v_proj.weight[: shape.d_head] = 0  # heads 0 and 1 share these values
    for tokens in (30, 10_000):
        knockouts = _knockouts(copy.deepcopy(model).bfloat16(), "resid_post", 2, tokens)
        choices = [((layer, head),) for layer in range(3) for head in range(4)]
        for prompts in ([Prompt(TOKENS, 8)], [Prompt(TOKENS, 0)], _together()):
            scored, plain = knockouts.scores(prompts, choices)
            idle = [number for number, ((_, head),) in enumerate(choices) if head < 2]
            np.testing.assert_allclose(scored[:, idle], plain[:, idle], rtol=0, atol=1e-5)
            whole, before = knockouts.by_whole_passes(prompts, choices)
            scale = max(np.abs(whole).max(), 1.0)
            assert np.abs(scored - whole).max() <= 0.06 * scale
            assert np.abs(plain - before).max() <= 0.06 * scale
            assert np.abs(scored - plain).max() > 0.1


def test_equal_prompts_and_one_that_begins_another_go_together() -> None:
    model = _knockouts(ARCHITECTURES["llama"](), "resid_post", 2, 10_000)
    prompts = [Prompt(TOKENS, 0), Prompt(TOKENS[:7], 0), Prompt(TOKENS, 0)]
    assert model.fit_together(prompts)
    choices = _choices(range(3), 4)
    np.testing.assert_allclose(
        model.scores(prompts, choices)[0], model.by_whole_passes(prompts, choices)[0], rtol=0, atol=1e-4
    )


def test_prompts_go_together_where_they_share_a_stem() -> None:
    model = _knockouts(ARCHITECTURES["llama"](), "resid_post", 1, 400)
    assert model.fit_together(_together())
    assert not model.fit_together([Prompt(TOKENS, 0), Prompt(TOKENS[::-1].copy() + 1, 0)])
    assert not model.fit_together([Prompt(TOKENS, 8), Prompt(OTHERS[0], 5)])
    assert not _knockouts(ARCHITECTURES["llama"](), "resid_post", 1, 60).fit_together(_together())


def test_whole_passes_agree_and_so_does_z() -> None:
    model = _knockouts(ARCHITECTURES["gemma3"](), "resid_post", 2, 10_000)
    choices = _choices(range(3), 4)
    prompt = Prompt(TOKENS, 7)
    shared, z = model.scores([prompt], choices)[0], model.z_of(prompt)
    np.testing.assert_allclose(model.by_whole_passes([prompt], choices)[0], shared, rtol=0, atol=1e-4)
    model.leave_sharing()
    np.testing.assert_allclose(model.scores([prompt], choices)[0], shared, rtol=0, atol=1e-4)
    assert {layer: one.shape for layer, one in z.items()} == dict.fromkeys(range(3), (5, 4, 12))
    for layer, one in model.z_of(prompt).items():
        np.testing.assert_allclose(one, z[layer], rtol=0, atol=1e-5)


def test_heads_above_what_is_read_are_none_of_it() -> None:
    assert _knockouts(ARCHITECTURES["llama"](), "resid_pre", 2, 100).layers == range(2)
    assert _knockouts(ARCHITECTURES["llama"](), "attn_out", 1, 100).layers == range(2)
    with pytest.raises(ModelError, match="resid_mid was not found"):
        _knockouts(ARCHITECTURES["gpt_neox"](), "resid_mid", 1, 100)
