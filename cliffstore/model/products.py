"""Matrix products of a bfloat16 model on a processor without bfloat16 instructions.

There torch multiplies element by element, several times slower than in float32. Holding the weights as float32 (exact:
bfloat16 is its upper half), multiplying in float32 and rounding the result once is the same operation, a sum in
float32 rounded to bfloat16, only in another order of summation. It costs twice the memory of the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

Products = Literal["native", "float32"]

_ROWS = 128
_REPEATS = 5
_MUCH_FASTER = 1.5


def choose_products(model: nn.Module) -> Products:
    """Return what is faster for this model on this machine, by timing its largest linear layer (milliseconds)."""
    import torch

    linear = max(_linears(model), key=lambda module: module.weight.numel(), default=None)
    if linear is None or linear.weight.device.type != "cpu" or linear.weight.dtype == torch.float32:
        return "native"
    weight_32 = linear.weight.float()
    x_ND = torch.randn(_ROWS, _width_in(linear), dtype=linear.weight.dtype)
    with torch.inference_mode():
        native, in_float32 = _least_seconds(
            lambda: linear(x_ND), lambda: x_ND.float() @ (weight_32.T if _is_transposed(linear) else weight_32)
        )
    return "float32" if native > _MUCH_FASTER * in_float32 else "native"


def use_float32_products(model: nn.Module) -> None:
    """Make every linear layer of the model multiply in float32 and round its result to the model's dtype."""
    for linear in _linears(model):
        dtype = linear.weight.dtype
        linear.weight.data = linear.weight.data.float()
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.float()
        linear.forward = _Rounded(linear.forward, dtype)


class _Rounded:
    """A linear layer's forward, from and to the model's dtype."""

    def __init__(self, forward: object, dtype: torch.dtype) -> None:
        self._forward, self._dtype = forward, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x.float()).to(self._dtype)  # type: ignore[operator]


def _linears(model: nn.Module) -> list[nn.Linear]:
    """Return linear layers that are plain ones: nn.Linear, and GPT-2's Conv1D, which holds its weight transposed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]


def _is_transposed(linear: nn.Module) -> bool:
    from torch import nn

    return isinstance(linear, nn.Linear)


def _width_in(linear: nn.Linear) -> int:
    return int(linear.weight.shape[1 if _is_transposed(linear) else 0])


def _least_seconds(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Time two calls in turns; the least of several times is the one that other work disturbed least."""
    times: list[list[float]] = [[], []]
    for _ in range(_REPEATS + 1):
        for call, found in zip((one, other), times, strict=True):
            begun = time.perf_counter()
            call()
            found.append(time.perf_counter() - begun)
    return min(times[0][1:]), min(times[1][1:])
