"""Weights: all of them or an error, on a device that is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cliffstore.errors import ModelError
from cliffstore.model import loader
from cliffstore.model.identity import find_model
from cliffstore.model.loader import check_placement, choose_device, load_model, load_tokenizer, spread

GIB = 1 << 30
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _edit_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_model_comes_without_head_ready_to_run(model: Path, dtype: str) -> None:
    found = load_model(find_model(str(model), None, print), dtype, "cpu")
    assert type(found).__name__ == "LlamaModel"
    assert not found.training
    assert {weight.dtype for weight in found.parameters()} == {getattr(torch, dtype)}
    assert not any(weight.requires_grad for weight in found.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "lacks 9 weights, the first is layers.2."),
        ({"intermediate_size": 64}, "layers.0.mlp.down_proj.weight has not the shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_that_do_not_fit_the_configuration(model: Path, changes: dict[str, object], message: str) -> None:
    _edit_config(model, **changes)
    source = find_model(str(model), None, print)
    with pytest.raises(ModelError, match=message):
        load_model(source, "float32", "cpu")


def test_damaged_weights_are_one_line(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    source = find_model(str(model), None, print)
    with pytest.raises(ModelError, match="model model does not load") as caught:
        load_model(source, "float32", "cpu")
    assert "\n" not in str(caught.value)


def test_model_without_tokenizer(model: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(find_model(str(model), None, print))


def test_processor_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@WITHOUT_CUDA
def test_auto_is_the_processor_without_a_gpu() -> None:
    assert choose_device("auto") == torch.device("cpu")


@WITHOUT_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps", "xpu", "meta", "gpu", "", "cuda:x"])
def test_device_that_is_not_there_is_one_line(device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}'") as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


def test_device_beyond_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(ModelError, match=r"'cuda:2' is not on this machine, which has 2 of kind cuda"):
        choose_device("cuda:2")


def test_missing_device_is_found_before_weights_are_read(model: Path) -> None:
    source = find_model(str(model), None, print)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="device 'cuda:77'"):
        load_model(source, "float32", "cuda:77")


def test_model_is_spread_over_the_first_gpus_only() -> None:
    arguments = spread([10 * GIB, 20 * GIB, 30 * GIB], 2)
    assert arguments["device_map"] == "auto"
    share = arguments["max_memory"]
    assert isinstance(share, dict)
    assert list(share) == [0, 1]  # neither the third GPU nor the CPU
    assert all(0 < share[gpu] < free for gpu, free in enumerate([10 * GIB, 20 * GIB]))


@pytest.mark.parametrize("visible", [0, 1, 3])
def test_fewer_gpus_than_asked_for(visible: int) -> None:
    with pytest.raises(ModelError, match=f"--gpus-per-actor 4: only {visible} GPU"):
        spread([GIB] * visible, 4)


@WITHOUT_CUDA
def test_several_gpus_where_there_is_none(model: Path) -> None:
    source = find_model(str(model), None, print)
    with pytest.raises(ModelError, match="--gpus-per-actor 2: only 0 GPU"):
        load_model(source, "float32", "auto", gpus=2)


def test_several_gpus_and_one_device_contradict(model: Path) -> None:
    source = find_model(str(model), None, print)
    with pytest.raises(ModelError, match="--device cpu is one device, --gpus-per-actor 2 needs several"):
        load_model(source, "float32", "cpu", gpus=2)


@pytest.mark.parametrize(
    "placement",
    [
        {"": "disk"},
        {"embed_tokens": 0, "layers.0": 1, "layers.1": "cpu"},
        {"embed_tokens": 0, "norm": torch.device("meta")},
        {"embed_tokens": torch.device("cpu", 0)},
    ],
)
def test_part_left_off_the_gpus(placement: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="model m does not fit on 2 GPUs: give more with --gpus-per-actor"):
        check_placement("m", placement, 2)


@pytest.mark.parametrize(
    "placement", [{}, {"": 0}, {"layers.0": 0, "layers.1": "cuda:1", "norm": torch.device("cuda", 1)}]
)
def test_whole_on_the_gpus(placement: dict[str, object]) -> None:
    check_placement("m", placement, 2)


@WITHOUT_CUDA
def test_model_too_large_for_the_gpus(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two GPUs too small for anything, transformers offloads to disk without a word."""
    monkeypatch.setattr(loader, "gpu_memory", lambda: [1_000, 1_000])
    source = find_model(str(model), None, print)
    with pytest.raises(ModelError, match="model model does not fit on 2 GPUs"):
        load_model(source, "float32", "auto", gpus=2)
