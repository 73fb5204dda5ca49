"""Sites of tiny random models of many architectures: each is what hooks written by hand for that model read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from architectures import ARCHITECTURES, HEADS, PARALLEL, WIDTH, heads_of, names_of, plain_sites
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    OPTConfig,
    OPTModel,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextModel,
)
from transformers.pytorch_utils import Conv1D

from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model.sites import HookPoint, arrays_of, hook_points, locate, output_projection, read_point
from cliffstore.records import SITES
from cliffstore.schema import ModelIdentity

TOKENS = [5, 9, 1, 7, 3, 22, 60, 13, 9, 9, 41, 5]
"""Longer than the sliding window, so that a window matters."""

NO_MIDDLE = [site for site in SITES if site != "resid_mid"]


def _identity(model: PreTrainedModel) -> ModelIdentity:
    config, heads = model.config, heads_of(model)
    return ModelIdentity(
        name="m",
        revision=None,
        config_digest="0",
        weights_digest=None,
        model_type=config.model_type,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=heads.n_heads,
        d_head=heads.d_head,
    )


def _points(model: PreTrainedModel, sites: Sequence[str], layers: Sequence[int] | None = None) -> dict[str, HookPoint]:
    identity = _identity(model)
    arrays = arrays_of(identity, sites, range(identity.n_layers) if layers is None else layers)
    return hook_points(model, locate(model, identity.n_layers), arrays, identity.n_heads)


def _read(model: PreTrainedModel, points: dict[str, HookPoint], ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Run one batch. Return what each point reads, [B, T, ...]."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, point: HookPoint) -> torch.utils.hooks.RemovableHandle:
        def enter(_module: nn.Module, inputs: tuple, kwargs: dict) -> None:
            found[name] = read_point(point, inputs, kwargs, None).clone()

        def leave(_module: nn.Module, inputs: tuple, kwargs: dict, output: object) -> None:
            found[name] = read_point(point, inputs, kwargs, output).clone()

        if point.side == "input":
            return point.module.register_forward_pre_hook(enter, with_kwargs=True)
        return point.module.register_forward_hook(leave, with_kwargs=True)

    handles = [keep(name, point) for name, point in points.items()]
    with torch.inference_mode():
        model(input_ids=torch.tensor(ids), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def _relative(actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / scale.double().norm())


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(architecture: str) -> PreTrainedModel:
    return ARCHITECTURES[architecture]()


@pytest.fixture
def sites(architecture: str) -> list[str]:
    """All sites that the architecture has."""
    return NO_MIDDLE if architecture in PARALLEL else list(SITES)


def test_every_site_is_what_hand_written_hooks_read(model: PreTrainedModel, sites: list[str]) -> None:
    found = _read(model, _points(model, sites), [TOKENS])
    expected = plain_sites(model, TOKENS)
    assert set(found) == set(expected)
    for name, vectors in expected.items():
        torch.testing.assert_close(found[name][0], vectors, rtol=0, atol=1e-6, msg=lambda text, name=name: name + text)


def test_a_batch_is_read_sequence_by_sequence(model: PreTrainedModel, sites: list[str]) -> None:
    other = TOKENS[::-1]
    found = _read(model, _points(model, sites, [1]), [TOKENS, other])
    for line, tokens in enumerate([TOKENS, other]):
        expected = plain_sites(model, tokens)
        for name, vectors in found.items():
            torch.testing.assert_close(vectors[line], expected[name], rtol=1e-5, atol=1e-4, msg=name)


def test_updates_add_up(model: PreTrainedModel) -> None:
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    found = _read(model, _points(model, sites), [TOKENS])
    for layer in range(model.config.num_hidden_layers):
        pre, attention, mlp, post = (found[f"{site}/{layer}"] for site in sites)
        assert _relative(pre + attention + mlp, post, post - pre) <= 1e-4
        # neither is so small that another module's output could stand for it
        assert attention.norm() > 0.02 * (post - pre).norm()
        assert mlp.norm() > 0.02 * (post - pre).norm()


def test_projected_heads_are_what_attention_adds(model: PreTrainedModel) -> None:
    found = _read(model, _points(model, ["z", "attn_out"]), [TOKENS])
    located = locate(model, model.config.num_hidden_layers)
    heads = heads_of(model)
    for layer, block in enumerate(located.blocks):
        z = found[f"z/{layer}"]
        assert z.shape == (1, len(TOKENS), heads.n_heads, heads.d_head)
        projection = output_projection(model, located, layer, heads.n_heads)
        matrix = projection.weight.T if isinstance(projection, Conv1D) else projection.weight
        attention = nn.functional.linear(z.flatten(-2), matrix, projection.bias)
        if "norm" in names_of(model).attention:
            attention = block.get_submodule(names_of(model).attention)(attention)
        assert _relative(attention, found[f"attn_out/{layer}"], attention) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_have_the_same_points(
    model: PreTrainedModel, sites: list[str], dtype: torch.dtype
) -> None:
    expected = _points(model, sites)
    assert _points(model.to(dtype), sites) == expected


def test_points_are_found_after_blocks_are_dropped(model: PreTrainedModel, sites: list[str]) -> None:
    inside = [site for site in sites if site != "final_norm"]
    expected = _points(model, inside, [0, 1])
    identity = _identity(model)
    located = locate(model, identity.n_layers)
    located.keep_blocks(2)
    assert hook_points(model, located, arrays_of(identity, inside, [0, 1]), identity.n_heads) == expected


def test_no_hook_stays(model: PreTrainedModel, sites: list[str]) -> None:
    _points(model, sites)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parallel_block_has_no_middle(dtype: torch.dtype) -> None:
    message = (
        "model GPTNeoXModel, layer 2: resid_mid was not found: the block computes attention and MLP side by side, "
        "so there is no residual stream between them; sites that were found: resid_pre, resid_post, attn_out, mlp_out"
    )
    with pytest.raises(ModelError, match=message) as caught:
        _points(ARCHITECTURES["gpt_neox"]().to(dtype), ["resid_mid"], [2])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def _mamba() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=WIDTH, num_hidden_layers=3, state_size=4)
    config.num_attention_heads = HEADS
    return MambaModel(config).eval()


def test_a_model_without_attention_has_its_residual_stream() -> None:
    model = _mamba()
    found = _read(model, _points(model, ["resid_pre", "resid_post", "final_norm"]), [TOKENS])
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(model.norm_f(found["resid_post/2"]), hidden[-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["final_norm/2"], hidden[-1], rtol=0, atol=1e-6)
    for layer in (0, 1):
        torch.testing.assert_close(found[f"resid_post/{layer}"], hidden[layer], rtol=0, atol=1e-6)
        torch.testing.assert_close(found[f"resid_pre/{layer + 1}"], hidden[layer], rtol=0, atol=1e-6)


@pytest.mark.parametrize("site", ["resid_mid", "attn_out", "mlp_out", "z"])
def test_a_model_without_attention_says_what_it_has(site: str) -> None:
    message = (
        f"model MambaModel, layer 0: {site} was not found: no two modules' outputs are what the block adds to the "
        "residual stream; sites that were found: resid_pre, resid_post"
    )
    with pytest.raises(ModelError, match=message):
        _points(_mamba(), [site], [0])


class _Scaled(nn.Module):
    """A block whose residual stream is not the plain sum of its parts."""

    def __init__(self, block: nn.Module, factor: float) -> None:
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.block(*args, **kwargs) * self.factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["resid_mid", "attn_out", "mlp_out", "z"])
def test_a_block_that_is_no_sum_of_its_parts_is_refused(site: str, dtype: torch.dtype) -> None:
    model = ARCHITECTURES["llama"]().to(dtype)
    model.layers[1] = _Scaled(model.layers[1], 1.03)
    with pytest.raises(ModelError, match=f"LlamaModel, layer 1: {site} was not found"):
        _points(model, [site], [0, 1])
    _points(model, [site], [0])


def test_a_module_that_runs_twice_in_a_pass_is_refused() -> None:
    model = ARCHITECTURES["llama"]()
    model.layers[2] = model.layers[1]
    with pytest.raises(ModelError, match="layer 1: its block is not called once a pass"):
        _points(model, ["attn_out"], [1])


def test_attention_that_adds_nothing_is_refused() -> None:
    """Any output below the rounding of the residual stream could stand for it."""
    model = ARCHITECTURES["llama"]()
    model.layers[1].self_attn.o_proj.weight.zero_()
    with pytest.raises(ModelError, match="layer 1: attn_out was not found"):
        _points(model, ["attn_out"])


def test_a_norm_that_is_not_the_last_is_refused() -> None:
    model = ARCHITECTURES["llama"]()
    assert _points(model, ["final_norm"])["final_norm/2"].module is model.norm
    model.norm.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    with pytest.raises(ModelError, match="LlamaRMSNorm does not receive what the last block returns"):
        _points(model, ["final_norm"])


def test_heads_that_do_not_fit_are_refused() -> None:
    model = ARCHITECTURES["qwen3"]()
    arrays = arrays_of(_identity(model).model_copy(update={"d_head": WIDTH // HEADS}), ["z"], [0])
    located = locate(model, 3)
    with pytest.raises(ModelError, match="receives 48 values a position, which are not 4 heads of 8"):
        hook_points(model, located, arrays, HEADS)


def test_linear_attention_has_no_heads_of_the_model() -> None:
    """Its output projection is as wide as that of full attention here, but it is another number of heads."""
    torch.manual_seed(0)
    kinds = ["linear_attention", "full_attention"]
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
    common = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    experts = {"num_experts": 0, "mlp_only_layers": [0, 1]}
    config = Qwen3NextConfig(
        **common,
        **linear,
        **experts,
        linear_value_head_dim=16,
        layer_types=kinds,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
    )
    model = Qwen3NextModel(config).eval()
    assert _points(model, ["attn_out", "z"], [1])["z/1"].module is model.layers[1].self_attn.o_proj
    assert _points(model, ["attn_out"], [0])["attn_out/0"].module is model.layers[0].linear_attn
    with pytest.raises(ModelError, match="layer 0: z was not found: the block is of the kind linear_attention"):
        _points(model, ["z"], [0])


def test_tokens_in_one_dimension_are_read_as_one_line() -> None:
    """OPT flattens a batch before its MLP."""
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=64, hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=2, num_attention_heads=HEADS)
    config.word_embed_proj_dim = WIDTH
    model = OPTModel(config).eval()
    batch = [TOKENS, TOKENS[::-1]]
    found = _read(model, _points(model, NO_MIDDLE), batch)
    pre, attention, mlp, post = (found[f"{site}/1"] for site in ["resid_pre", "attn_out", "mlp_out", "resid_post"])
    assert mlp.shape == (1, 2 * len(TOKENS), WIDTH)
    assert pre.shape == (2, len(TOKENS), WIDTH)
    assert _relative(pre + attention + mlp.view_as(pre), post, post - pre) <= 1e-4


def test_blocks_are_those_of_the_text_decoder() -> None:
    """A vision tower of equal depth stands before it."""
    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 12}
    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_attention_heads": HEADS, "num_key_value_heads": 2}
    config = Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    model = Gemma3Model(config).eval()
    located = locate(model, 2)
    assert located.blocks is model.language_model.layers
    assert located.final_norm is model.language_model.norm
    identity = _identity(model.language_model)
    points = hook_points(model, located, arrays_of(identity, SITES, [1]), HEADS)
    assert points["attn_out/1"].module is model.language_model.layers[1].post_attention_layernorm


def test_blocks_are_not_as_many_experts() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    config = LlamaConfig(vocab_size=64, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3)
    config.num_attention_heads = config.num_key_value_heads = HEADS
    model = LlamaModel(config)
    model.layers[0].mlp = Experts()
    assert locate(model, 3).blocks is model.layers


@pytest.mark.parametrize("hidden", [torch.zeros(2, WIDTH), None, [torch.zeros(1, 1, 1, 1)]])
@pytest.mark.parametrize("side", ["input", "output"])
def test_what_is_no_hidden_state_a_position_is_not_stored(side: str, hidden: object) -> None:
    point = HookPoint(nn.Identity(), side)
    with pytest.raises(ExtractionError, match=f"{side} of Identity is no hidden state a position"):
        read_point(point, (hidden,), {}, hidden)


def test_hidden_states_come_by_position_or_by_name_alone_or_first_of_several() -> None:
    hidden = torch.arange(24.0).view(1, 2, 12)
    entry, exit_ = HookPoint(nn.Identity(), "input"), HookPoint(nn.Identity(), "output")
    assert read_point(entry, (hidden, None), {}, None) is hidden
    assert read_point(entry, (), {"hidden_states": hidden, "x": 1}, None) is hidden
    assert read_point(exit_, (), {}, hidden) is hidden
    assert read_point(exit_, (), {}, (hidden, torch.zeros(4))) is hidden
    heads = read_point(HookPoint(nn.Identity(), "input", heads=3), (hidden,), {}, None)
    assert heads.shape == (1, 2, 3, 4)
    assert heads[0, 1, 2].tolist() == [20, 21, 22, 23]
