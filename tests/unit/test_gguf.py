"""GGUF files of the usual kinds are unpacked to what gguf itself says they hold; damaged ones are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cliffstore.errors import ModelError
from cliffstore.model.gguf import converted
from cliffstore.model.identity import find_model
from cliffstore.model.loader import load_model, load_tokenizer

WIDTH, LAYERS, HEADS, VOCABULARY = 256, 1, 4, 64
SAMPLE, SAMPLE_NAME = "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"
Weights = np.ndarray


def _packed(generator: np.random.Generator, rows: int, kind: Kind) -> Weights:
    """Return random weights [rows, WIDTH] as a file holds them."""
    if kind in (Kind.Q4_K, Kind.Q6_K):  # gguf reads these but does not make them: any bits, with small scales
        _, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = generator.integers(0, 256, (rows * WIDTH // 256, size), dtype=np.uint8)
        scale = np.array([1e-4], dtype=np.float16).view(np.uint8)
        for at in (0, 2) if kind == Kind.Q4_K else (size - 2,):
            blocks[:, at : at + 2] = scale
        return blocks.reshape(rows, -1)
    return gguf.quants.quantize((generator.standard_normal((rows, WIDTH)) * 0.05).astype(np.float32), kind)


def _write(path: Path, kind: Kind) -> dict[str, Weights]:
    """Write a Llama of one block with random weights; return its tensors as packed."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", '!"', *(chr(33 + number) for number in range(VOCABULARY - 2))])
    writer.add_token_types([3] + [1] * (VOCABULARY - 1))
    writer.add_token_merges(['! "'])
    generator = np.random.default_rng(0)
    packed = {"token_embd.weight": _packed(generator, VOCABULARY, kind)}
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        packed[f"blk.0.{part}.weight"] = _packed(generator, WIDTH, kind)
    for name, tensor in packed.items():
        writer.add_tensor(name, tensor, raw_dtype=kind)
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return packed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIFFSTORE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.Q4_K, Kind.Q6_K], ids=lambda k: k.name
)
def test_weights_are_what_the_file_holds(tmp_path: Path, kind: Kind) -> None:
    packed = _write(tmp_path / "tiny.gguf", kind)
    found = load_file(converted(tmp_path / "tiny.gguf", print) / "model.safetensors")[SAMPLE_NAME]
    expected = torch.from_numpy(gguf.quants.dequantize(packed[SAMPLE], kind)).to(torch.bfloat16)
    assert torch.equal(found, expected)


def test_file_is_unpacked_once_and_told_apart_by_content(tmp_path: Path) -> None:
    notices: list[str] = []
    path = tmp_path / "tiny.gguf"
    _write(path, Kind.Q8_0)
    first = find_model(str(path), None, notices.append)
    assert find_model(str(path), None, notices.append) == first
    assert len(notices) == 1
    assert first.identity.name == "tiny.gguf"
    assert (first.identity.n_layers, first.identity.d_model, first.identity.n_heads) == (LAYERS, WIDTH, HEADS)
    assert load_tokenizer(first).convert_tokens_to_ids('!"') == 1
    _write(path, Kind.Q4_0)
    assert find_model(str(path), None, notices.append).identity.weights_digest != first.identity.weights_digest


def test_adapter_over_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    _write(path, Kind.Q8_0)

    def whole() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(converted(path, print), dtype=torch.float32)

    torch.manual_seed(0)
    made = get_peft_model(whole(), LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    made.save_pretrained(tmp_path / "lora")
    found = load_model(find_model(str(path), None, print, str(tmp_path / "lora")), "float32", "cpu")
    tokens = torch.tensor([[5, 9, 1, 7]])
    with torch.inference_mode():
        expected = PeftModel.from_pretrained(whole(), tmp_path / "lora").eval()(tokens, output_hidden_states=True)
        assert torch.equal(found(tokens).last_hidden_state, expected.hidden_states[-1])
        assert not torch.equal(found(tokens).last_hidden_state, whole().model(tokens).last_hidden_state)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"hello world " * 100,
        lambda data: data[:4],
        lambda data: data[:30],
        lambda data: data[:600],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-10],
        lambda data: b"GGUF" + b"\x63\0\0\0" + data[8:],
        lambda data: data[:24] + bytes(5_000),
    ],
    ids=["empty", "text", "magic", "header", "metadata", "half", "end", "version", "zeros"],
)
def test_damaged_file_is_one_line_and_leaves_nothing(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "tiny.gguf"
    _write(path, Kind.Q8_0)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match=r"tiny\.gguf: the GGUF file does not load") as caught:
        find_model(str(path), None, print)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
