"""Products in float32 of a bfloat16 model: one rounding of the exact weights' product."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES
from torch import nn
from transformers.pytorch_utils import Conv1D

from cliffstore.model import products
from cliffstore.model.products import choose_products, use_float32_products


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_rounded_once(kind: type[nn.Module], bias: bool) -> None:
    torch.manual_seed(0)
    layer = kind(24, 16) if kind is Conv1D else nn.Linear(16, 24, bias=bias)
    layer = layer.to(torch.bfloat16)
    layer.bias = layer.bias if bias or kind is Conv1D else None
    x_ND = torch.randn(5, 16).to(torch.bfloat16)
    matrix = (layer.weight if kind is Conv1D else layer.weight.T).detach().double()
    exact = x_ND.double() @ matrix + (layer.bias.double() if layer.bias is not None else 0)
    use_float32_products(nn.Sequential(layer))
    with torch.inference_mode():
        found = layer(x_ND)
    assert found.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(found, exact.to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_with_float32_products_is_the_model(architecture: str) -> None:
    ids = torch.tensor([[5, 9, 1, 7, 3, 22, 60, 13]])
    with torch.inference_mode():
        expected = ARCHITECTURES[architecture]().to(torch.bfloat16)(input_ids=ids).last_hidden_state
        model = ARCHITECTURES[architecture]().to(torch.bfloat16)
        use_float32_products(model)
        found = model(input_ids=ids).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected.float()).norm() <= 2e-2 * expected.float().norm()


def test_a_float32_model_is_left_alone() -> None:
    assert choose_products(ARCHITECTURES["llama"]()) == "native"


@pytest.mark.parametrize(
    ("seconds", "expected"), [((3.0, 1.0), "float32"), ((1.4, 1.0), "native"), ((1.0, 2.0), "native")]
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_faster_one_is_chosen_by_far(
    architecture: str, seconds: tuple[float, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def least(one, other) -> tuple[float, float]:
        assert one().shape == other().shape
        return seconds

    monkeypatch.setattr(products, "_least_seconds", least)
    assert choose_products(ARCHITECTURES[architecture]().to(torch.bfloat16)) == expected


def test_a_model_without_linear_layers_is_left_alone() -> None:
    assert choose_products(nn.Sequential(nn.LayerNorm(4))) == "native"
