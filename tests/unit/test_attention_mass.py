"""Attention by segment is what the own weights of a model say: every kind of attention, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, CONTEXT, HEADS, VOCABULARY, WINDOW, build
from transformers import GptOssConfig, PreTrainedModel
from transformers.models.qwen3_next import Qwen3NextConfig

from cliffstore.errors import ModelError
from cliffstore.model import attention_mass, attention_rows
from cliffstore.model.attention_mass import AttentionMass
from cliffstore.model.attention_rows import Line
from cliffstore.records import SEGMENTS

LIMIT = 1e-5


def gpt_oss() -> PreTrainedModel:
    """Build a model with attention sinks and a sliding window."""
    model = build(
        GptOssConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=HEADS,
            num_key_value_heads=2, head_dim=12, max_position_embeddings=CONTEXT, num_local_experts=4,
            num_experts_per_tok=2, sliding_window=WINDOW, attn_implementation="eager", pad_token_id=None,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )  # fmt: skip
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            weight.normal_(mean=4.0)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {**ARCHITECTURES, "gpt_oss": gpt_oss}


def line(n: int, seed: int, queries: list[int]) -> Line:
    """Return random tokens in segments of uneven lengths."""
    generator = np.random.default_rng(seed)
    segments_T = np.sort(generator.integers(0, len(SEGMENTS), n)).astype(np.uint8)
    return Line(generator.integers(3, VOCABULARY, n), segments_T, np.array(queries))


LINES = [
    line(17, 1, [16]),
    line(40, 2, [5, 20, 39]),
    line(9, 3, list(range(9))),
    line(1, 4, [0]),
    line(33, 5, [2, 30]),  # tokens behind the last that looks
]


def by_hand(model: PreTrainedModel, heads: list[tuple[int, int]], one: Line) -> np.ndarray:
    """Return mass [H, G] from the weights that the model itself gives."""
    assert model.config._attn_implementation == "eager"
    with torch.inference_mode():
        weights = model(torch.from_numpy(one.token_ids_T)[None], output_attentions=True, use_cache=False).attentions
    found = np.zeros((len(heads), len(SEGMENTS)))
    for n, (layer, head) in enumerate(heads):
        rows_QS = weights[layer][0, head].double().numpy()[one.queries_Q][:, : len(one.token_ids_T)]
        for segment in range(len(SEGMENTS)):
            found[n, segment] = rows_QS[:, one.segments_T == segment].sum(1).mean()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_mass_is_that_of_the_models_own_weights(name: str) -> None:
    model = MODELS[name]()
    n_layers = model.config.num_hidden_layers
    heads = [(0, 0), (n_layers - 1, HEADS - 1), (1, 2), (0, 3)]
    expected = [by_hand(model, heads, one) for one in LINES]
    measured = AttentionMass(model, heads, n_layers, HEADS)
    measured.check(LINES[1])
    for one, wanted, found in zip(LINES, expected, measured.measure(LINES), strict=True):
        np.testing.assert_allclose(found.mass_HG, wanted, atol=LIMIT)
        (alone,) = measured.measure([one])
        np.testing.assert_allclose(alone.mass_HG, wanted, atol=LIMIT)
        if name != "gpt_oss":
            np.testing.assert_allclose(found.mass_HG.sum(1), 1, atol=LIMIT)
        np.testing.assert_allclose(found.share_HG.sum(1), 1, atol=LIMIT)


def test_sinks_take_a_part_of_the_mass() -> None:
    model = gpt_oss()
    found = AttentionMass(model, [(1, 0), (1, 1)], 3, HEADS).measure(LINES[:1])[0]
    assert (found.mass_HG.sum(1) < 0.99).all()


def test_share_counts_what_a_head_sees() -> None:
    one = Line(np.arange(3, 23), np.repeat(np.array([0, 1, 4, 5], dtype=np.uint8), 5), np.array([9, 19]))
    model = ARCHITECTURES["gemma3"]()
    sliding, full = AttentionMass(model, [(0, 0), (2, 0)], 4, HEADS).measure([one])[0].share_HG
    assert WINDOW == 6
    np.testing.assert_allclose(full[[0, 1, 4, 5]], [(1 / 2 + 1 / 4) / 2, (1 / 2 + 1 / 4) / 2, 1 / 8, 1 / 8])
    np.testing.assert_allclose(sliding[[0, 1, 4, 5]], [1 / 12, 5 / 12, 1 / 12, 5 / 12], rtol=1e-6)


def test_rows_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = AttentionMass(ARCHITECTURES["llama"](), [(2, 1)], 3, HEADS)
    whole = measured.measure([LINES[2]])[0].mass_HG
    monkeypatch.setattr(attention_rows, "_ROWS", 4)
    np.testing.assert_allclose(measured.measure([LINES[2]])[0].mass_HG, whole, atol=1e-6)


def test_nothing_above_the_highest_head_is_computed() -> None:
    model = ARCHITECTURES["llama"]()
    measured = AttentionMass(model, [(1, 0)], 3, HEADS)
    assert len(model.layers) == 2
    called: list[bool] = []
    model.layers[1].mlp.register_forward_hook(lambda *_: called.append(True))
    measured.measure(LINES[:1])
    assert not called


@pytest.mark.parametrize("heads", [[(3, 0)], [(0, HEADS)], [(-1, 0)], []])
def test_head_that_is_not_there(heads: list[tuple[int, int]]) -> None:
    with pytest.raises(ModelError, match="head"):
        AttentionMass(ARCHITECTURES["llama"](), heads, 3, HEADS)


def test_other_kinds_of_attention_are_refused() -> None:
    config = Qwen3NextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, head_dim=16, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    with pytest.raises(ModelError, match="not plain attention"):
        AttentionMass(build(config), [(1, 0)], 2, HEADS)


def test_model_that_disagrees_with_itself_is_refused() -> None:
    model = ARCHITECTURES["llama"]()
    measured = AttentionMass(model, [(2, 0)], 3, HEADS)
    scaling = model.layers[1].self_attn.scaling

    def other_scale(module: torch.nn.Module, inputs: object) -> None:
        ours = model.config._attn_implementation == attention_mass.NAME
        module.scaling = scaling * 3 if ours else scaling

    model.layers[1].self_attn.register_forward_pre_hook(other_scale)
    with pytest.raises(ModelError, match="differs by"):
        measured.check(LINES[1])


def test_window_that_the_configuration_does_not_tell_is_refused() -> None:
    model = ARCHITECTURES["mistral_window"]()
    measured = AttentionMass(model, [(2, 0)], 3, HEADS)
    for layer in model.layers:
        layer.self_attn.config.sliding_window = 3
    with pytest.raises(ModelError, match="not plain attention"):
        measured.check(LINES[1])
