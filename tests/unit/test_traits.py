"""What a configuration says about attention; and a model whose position embeddings depend on length."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, build, plain_sites
from test_pass_architectures import capture_of, worst_error
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3NextConfig,
)
from units_of import capture_rows, unit_of

from cliffstore.extract.passes import plan_passes
from cliffstore.model.traits import length_dependent_above, windows_of


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), {0: None, 1: None}),
        (MistralConfig(sliding_window=6), {0: 6, 1: 6}),
        (MistralConfig(sliding_window=None), {0: None, 1: None}),
        (Gemma2Config(sliding_window=6, num_hidden_layers=2), {0: 6, 1: None}),
        (Qwen2Config(use_sliding_window=False, sliding_window=6, num_hidden_layers=2), {0: None, 1: None}),
        (Qwen3NextConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]), None),
    ],
)
def test_windows(config: PretrainedConfig, expected: dict[int, int | None] | None) -> None:
    assert windows_of(config, 2) == expected


def _llama(**rope: object) -> PretrainedConfig:
    return LlamaConfig(max_position_embeddings=256, rope_parameters={"rope_theta": 10_000.0, **rope})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (_llama(rope_type="default"), None),
        (_llama(rope_type="linear", factor=2.0), None),
        (_llama(rope_type="yarn", factor=2.0, original_max_position_embeddings=64), None),
        (_llama(rope_type="dynamic", factor=2.0), 256),
        (_llama(rope_type="longrope", factor=4.0, original_max_position_embeddings=64, short_factor=[1.0] * 64,
                long_factor=[2.0] * 64), 64),
    ],
)  # fmt: skip
def test_lengths_that_matter(config: PretrainedConfig, expected: int | None) -> None:
    assert length_dependent_above(config) == expected


LIMIT = 12


def _longrope() -> PreTrainedModel:
    rope = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": LIMIT,
        "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
    }  # fmt: skip
    return build(
        Phi3Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=48, original_max_position_embeddings=LIMIT,
            pad_token_id=None, bos_token_id=1, eos_token_id=2, rope_parameters=rope, attn_implementation="eager",
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["tree", "padded"])
def test_long_and_short_examples_of_a_longrope_model(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, VOCABULARY, (n,), generator=random).tolist()  # noqa: E731
    stem = draw(5)
    sequences = [draw(LIMIT + 9), stem + draw(6), stem + draw(4), draw(LIMIT + 20), draw(LIMIT)]
    plain = {tuple(tokens): plain_sites(_longrope(), tokens) for tokens in sequences}
    model = _longrope()
    above = length_dependent_above(model.config)
    assert above == LIMIT
    unit = unit_of(sequences)
    capture = capture_of(model, ["resid_post"])
    worst = worst_error(capture_rows(capture, plan_passes(unit, kind, 8, whole_above=above)), unit, plain)
    assert max(worst.values()) <= 1e-5, worst
    if kind == "tree":  # what goes wrong without it, so that this test can fail
        mixed = worst_error(
            capture_rows(capture_of(_longrope(), ["resid_post"]), plan_passes(unit, kind, 8)), unit, plain
        )
        assert max(mixed.values()) > 1e-3


def test_windows_are_of_the_models_that_are_tested() -> None:
    assert windows_of(ARCHITECTURES["gemma3"]().config, 4) == {0: 6, 1: 6, 2: None, 3: 6}
