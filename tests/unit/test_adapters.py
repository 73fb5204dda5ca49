"""An adapter is captured as it was trained: unmerged, whole, or not at all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cliffstore.errors import ModelError
from cliffstore.model.adapters import CONFIG_FILE, WEIGHTS_FILE, find_adapter
from cliffstore.model.capture import PassTensors, SiteCapture
from cliffstore.model.identity import find_model
from cliffstore.model.loader import load_model
from cliffstore.schema import ArrayIdentity

LAYERS = 3
TOKENS = torch.tensor([[5, 9, 1, 7, 3, 60], [2, 8, 8, 30, 4, 4]])
TARGETS = ["q_proj", "v_proj", "down_proj"]


def _llama(width: int = 32, layers: int = LAYERS) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _make_adapter(base: torch.nn.Module, folder: Path, **options: object) -> Path:
    """Save a LoRA whose B is not zero, as after training."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **({"target_modules": TARGETS} | options))
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and a LoRA over it, on disk, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    _llama().save_pretrained(folder / "base")
    return folder / "base", _make_adapter(_llama(), folder / "lora", task_type="CAUSAL_LM")


@pytest.fixture
def base(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture
def lora(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """Give the test a copy of the LoRA, to spoil."""
    return Path(shutil.copytree(made[1], tmp_path / "lora"))


def _load(base: Path, adapter: Path | None, dtype: str = "float32") -> torch.nn.Module:
    source = find_model(str(base), None, print, str(adapter) if adapter else None)
    return load_model(source, dtype, "cpu")


def _hidden(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return model(input_ids=TOKENS, output_hidden_states=True).hidden_states


def _edit(adapter: Path, **changes: object) -> Path:
    path = adapter / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return adapter


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_are_those_of_the_adapted_model(base: Path, lora: Path, dtype: str) -> None:
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    expected = _hidden(PeftModel.from_pretrained(whole, lora).eval())
    found, bare = _hidden(_load(base, lora, dtype)), _hidden(_load(base, None, dtype))
    for layer in range(1, LAYERS + 1):
        assert torch.equal(found[layer], expected[layer])
        assert found[layer].dtype == getattr(torch, dtype)
        assert (found[layer] - bare[layer]).abs().max() > 0.1


def test_captured_vectors_are_those_of_the_adapted_model(base: Path, lora: Path) -> None:
    """Blocks, heads and the final norm are found though adapted layers stand in the place of plain ones."""
    arrays = [ArrayIdentity(site="resid_post", layer=layer, shape=[32]) for layer in range(LAYERS)]
    arrays += [ArrayIdentity(site="z", layer=0, shape=[4, 8]), ArrayIdentity(site="final_norm", layer=2, shape=[32])]
    capture = SiteCapture(_load(base, lora), arrays, n_layers=LAYERS, n_heads=4)
    found: dict[str, torch.Tensor] = {}
    n_lines, length = TOKENS.shape
    capture.run(
        PassTensors(
            input_ids_BT=TOKENS,
            positions_BT=torch.arange(length).expand(n_lines, -1),
            lengths_B=torch.full((n_lines,), length),
            kept_N=torch.arange(TOKENS.numel()),
            ends_S=None,
            carry_C=None,
        ),
        found.__setitem__,
    )
    adapted = PeftModel.from_pretrained(_llama(), lora).eval()
    z: list[torch.Tensor] = []
    o_proj = adapted.get_base_model().model.layers[0].self_attn.o_proj
    o_proj.register_forward_pre_hook(lambda _module, inputs: z.append(inputs[0]))
    hidden = _hidden(adapted)
    torch.testing.assert_close(found["resid_post/0"], hidden[1].flatten(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["final_norm/2"], hidden[-1].flatten(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["z/0"].flatten(1), z[0].flatten(0, 1), rtol=0, atol=1e-5)


def test_loaded_model_has_no_head_and_unmerged_frozen_layers(base: Path, lora: Path) -> None:
    model = _load(base, lora)
    assert type(model).__name__ == "LlamaModel"
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    projection = model.layers[0].self_attn.q_proj
    assert not projection.merged
    assert torch.equal(projection.base_layer.weight, _llama().model.layers[0].self_attn.q_proj.weight)


def test_adapter_made_without_head_fits_too(base: Path, tmp_path: Path) -> None:
    adapter = _make_adapter(_llama().model, tmp_path / "headless")
    assert not any(name.startswith("base_model.model.model.") for name in load_file(adapter / WEIGHTS_FILE))
    expected = _hidden(PeftModel.from_pretrained(_llama().model, adapter).eval())
    assert torch.equal(_hidden(_load(base, adapter))[-1], expected[-1])


def test_base_saved_without_head_takes_an_adapter(base: Path, lora: Path, tmp_path: Path) -> None:
    _llama().model.save_pretrained(tmp_path / "body")
    assert torch.equal(_hidden(_load(tmp_path / "body", lora))[-1], _hidden(_load(base, lora))[-1])


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [1, 5]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_lora(base: Path, tmp_path: Path, options: dict[str, object]) -> None:
    adapter = _make_adapter(_llama(), tmp_path / "lora", **options)
    expected = _hidden(PeftModel.from_pretrained(_llama(), adapter).eval())
    assert torch.equal(_hidden(_load(base, adapter))[-1], expected[-1])


def test_other_architecture(tmp_path: Path) -> None:
    """GPT-2 calls its body `transformer` and holds weights transposed."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=64, n_positions=32))
    model.save_pretrained(tmp_path / "gpt2")
    adapter = _make_adapter(model, tmp_path / "lora", target_modules=["c_attn"], fan_in_fan_out=True)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2")
    expected = _hidden(PeftModel.from_pretrained(whole, adapter).eval())
    assert torch.equal(_hidden(_load(tmp_path / "gpt2", adapter))[-1], expected[-1])


def test_identity_tells_the_adapter_apart(base: Path, lora: Path) -> None:
    bare = find_model(str(base), None, print)
    adapted = find_model(str(base), None, print, str(lora))
    assert bare.adapter is None
    assert bare.identity.adapter is None
    assert adapted.adapter is not None
    assert adapted.identity.adapter == adapted.adapter.identity
    assert (adapted.adapter.identity.name, adapted.adapter.identity.kind) == ("lora", "LORA")
    assert adapted.identity.model_copy(update={"adapter": None}) == bare.identity


def test_digest_is_stable_where_the_computation_is(lora: Path, tmp_path: Path) -> None:
    digest = find_adapter(str(lora)).identity.digest
    assert find_adapter(str(lora)).identity.digest == digest
    _edit(lora, base_model_name_or_path="elsewhere", target_modules=TARGETS[::-1], inference_mode=False)
    moved = shutil.move(lora, tmp_path / "moved")
    assert find_adapter(str(moved)).identity.digest == digest


def test_digest_changes_with_scale_and_with_any_weight(lora: Path) -> None:
    before = find_adapter(str(lora)).identity.digest
    weights = load_file(lora / WEIGHTS_FILE)
    next(iter(weights.values()))[0, 0] += 1e-3
    save_file(weights, lora / WEIGHTS_FILE, metadata={"format": "pt"})
    changed = find_adapter(str(lora)).identity.digest
    scaled = find_adapter(str(_edit(lora, lora_alpha=17))).identity.digest
    assert len({before, changed, scaled}) == 3


def _only_pickled(adapter: Path) -> None:
    (adapter / WEIGHTS_FILE).rename(adapter / "adapter_model.bin")


def _cut_off(adapter: Path) -> None:
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-9])


def _rename(adapter: Path, old: str, new: str) -> None:
    weights = load_file(adapter / WEIGHTS_FILE)
    renamed = {name.replace(old, new): weight for name, weight in weights.items()}
    save_file(renamed, adapter / WEIGHTS_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_only_pickled, "no adapter_model.safetensors; pickled weights .* are never loaded"),
        (_cut_off, "adapter_model.safetensors is damaged"),
        (lambda adapter: (adapter / CONFIG_FILE).unlink(), "no adapter_config.json"),
        (lambda adapter: (adapter / CONFIG_FILE).write_text("{"), "not JSON"),
        (lambda adapter: _edit(adapter, peft_type="PROMPT_TUNING"), "kind PROMPT_TUNING cannot be captured"),
        (lambda adapter: _edit(adapter, use_magic=True), "option use_magic .* newer peft"),
        (lambda adapter: _edit(adapter, layer_replication=[[0, 2], [1, 3]]), "option layer_replication"),
        (lambda adapter: _edit(adapter, init_lora_weights="pissa"), "'pissa' also changes the base model"),
        (lambda adapter: _edit(adapter, target_modules=["c_attn"]), "c_attn"),
        (lambda adapter: _edit(adapter, r=5), "size mismatch"),
        # What PEFT lets pass, with a warning or without one.
        (lambda adapter: _edit(adapter, target_modules=[*TARGETS, "o_proj"]), "6 of its weights are missing"),
        (lambda adapter: _edit(adapter, target_modules=TARGETS[:1]), "12 have no place"),
        (lambda adapter: _rename(adapter, "base_model.model.model.", "model."), "18 of its weights are missing and 18"),
    ],
)
def test_what_would_not_be_applied_is_refused(
    base: Path, lora: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(lora)
    with pytest.raises(ModelError, match=message) as caught:
        find_model(str(base), None, print, str(lora))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "layers", "message"), [(48, LAYERS, "size mismatch"), (32, 2, "have no place")])
def test_adapter_of_another_model_is_refused(lora: Path, tmp_path: Path, width: int, layers: int, message: str) -> None:
    _llama(width, layers).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=f"adapter lora does not fit model .*other: .*{message}"):
        find_model(str(tmp_path / "other"), None, print, str(lora))


@pytest.mark.parametrize("name", ["/nowhere/lora", "nobody/such-adapter"])
def test_no_such_adapter(base: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"adapter {name}: no such folder"):
        find_model(str(base), None, print, name)


def test_adapter_changed_between_finding_and_loading_is_refused(base: Path, lora: Path) -> None:
    source = find_model(str(base), None, print, str(lora))
    _edit(lora, lora_alpha=1)
    with pytest.raises(ModelError, match="not what it was"):
        load_model(source, "float32", "cpu")


def test_missing_peft_is_said(base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'cliffstore\[adapters\]'"):
        find_model(str(base), None, print, str(lora))
