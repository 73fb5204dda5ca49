"""Who a model is: its shape, and what tells it apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    MambaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from cliffstore.errors import ModelError
from cliffstore.model.identity import find_model, heads_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_shape_and_name(model: Path) -> None:
    source = find_model(str(model), None, print)
    found = source.identity
    assert (found.name, found.model_type, found.revision) == ("model", "llama", None)
    assert (found.n_layers, found.d_model, found.n_heads, found.d_head) == (2, 32, 4, 8)
    assert (source.context, source.dtype, source.location) == (128, "float32", str(model))


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=None), (4, 16)),
        (Qwen3Config(hidden_size=64, num_attention_heads=4, head_dim=128), (4, 128)),
        (GPT2Config(n_embd=48, n_head=3), (3, 16)),
        (DeepseekV3Config(num_attention_heads=8, v_head_dim=24), (8, 24)),
        (MambaConfig(hidden_size=32), (0, 0)),
        (Mamba2Config(hidden_size=32, num_heads=8, head_dim=8), (0, 0)),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_heads(config: PretrainedConfig, heads: tuple[int, int]) -> None:
    assert heads_of(config) == heads


def test_identity_does_not_depend_on_where_the_model_lies(model: Path, tmp_path: Path) -> None:
    before = find_model(str(model), None, print).identity
    moved = shutil.copytree(model, tmp_path / "elsewhere" / "model")
    assert find_model(str(moved), None, print).identity == before


def test_tuned_twin_and_other_settings_are_other_models(model: Path) -> None:
    before = find_model(str(model), None, print).identity
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    tuned = find_model(str(model), None, print).identity
    assert tuned.weights_digest != before.weights_digest
    assert tuned.config_digest == before.config_digest
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert find_model(str(model), None, print).identity.config_digest != before.config_digest


def test_folder_with_pickled_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        find_model(str(model), None, print)


def test_folder_of_an_adapter_says_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter: give it with --adapter"):
        find_model(str(tmp_path), None, print)


def test_model_that_carries_an_adapter_is_refused(model: Path) -> None:
    """transformers would apply it where peft is installed, and the identity would not say so."""
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="carries an adapter"):
        find_model(str(model), None, print)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c", "nobody/such-model"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(ModelError, match=f"model {name}: no such folder"):
        find_model(name, None, print)


def test_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="abacus") as caught:
        find_model(str(tmp_path), None, print)
    assert "\n" not in str(caught.value)
