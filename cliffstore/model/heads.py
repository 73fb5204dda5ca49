"""How heads write into the residual stream: W_O and its bias, and the norm behind them, read from a model's modules.

The output projection is the module that `tracing` finds by what flows through it. Plain linear layers and GPT-2's
`Conv1D`, which holds its weight transposed, are read; any other linear module (an adapter laid over one) is asked what
it makes of each unit vector. A norm is asked the same way: what it makes of a few vectors gives its gain, shift and
epsilon, and another vector tells whether it is such a norm.

Cost: one forward of six tokens for all layers, and the copies of the weights in float32.

Legend: H heads, W width of a head, D width of the residual stream.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ModelError
from cliffstore.model.sites import ModelSites, parts_of
from cliffstore.model.tracing import Parts, returned_hidden, same_value
from cliffstore.records import HeadOutput, NormShape

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_TOLERANCE = 1e-4
_SMALL = 1e-3
"""Of a vector whose norm tells the epsilon."""


def head_outputs(
    model: PreTrainedModel, sites: ModelSites, layers: Sequence[int], n_heads: int
) -> dict[int, HeadOutput]:
    """Return how the heads of each layer write.

    Parameters
    ----------
    model : in evaluation mode, with the attention that it was loaded with

    Raises
    ------
    ModelError
        A layer has no output projection, or there is something behind it that is no norm.
    """
    import torch

    with torch.inference_mode():
        parts = parts_of(model, sites, layers)
        return {layer: _output(model, layer, parts[layer], n_heads) for layer in layers}


def _output(model: PreTrainedModel, layer: int, parts: Parts, n_heads: int) -> HeadOutput:
    where = f"model {type(model).__name__}, layer {layer}"
    projection, added = parts.projection, parts.attention
    if projection is None or added is None or projection.received is None:
        raise ModelError(f"{where}: no output projection of attention was found, so heads have no share")
    weight_XD, bias_D = read_linear(projection.module, projection.received.shape[-1])
    norm = None
    if not same_value(projection.returned, added.returned):
        if not same_value(projection.returned, added.received):
            raise ModelError(f"{where}: what is between heads and the residual stream is not understood")
        norm = read_norm(added.module, weight_XD.shape[1])
    return HeadOutput(weight_XD.reshape(n_heads, -1, weight_XD.shape[1]), bias_D, norm)


def read_linear(module: nn.Module, width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return weight [width, D] and bias [D] of a linear module, float32.

    Raises
    ------
    ModelError
        It is not linear.
    """
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if type(module) in (nn.Linear, Conv1D):
        weight_XD = module.weight if type(module) is Conv1D else module.weight.T
        bias_D = torch.zeros(weight_XD.shape[1]) if module.bias is None else module.bias
        return _numpy(weight_XD), _numpy(bias_D)
    like = next(module.parameters())
    unit_XX = torch.eye(width, dtype=like.dtype, device=like.device)
    zero_D = _numpy(module(torch.zeros_like(unit_XX[:1])))[0]
    weight_XD = _numpy(module(unit_XX)) - zero_D
    some_X = torch.linspace(-1, 1, width, dtype=like.dtype, device=like.device)
    missed = np.linalg.norm(_numpy(module(some_X[None]))[0] - (_numpy(some_X) @ weight_XD + zero_D))
    if not missed <= 1e-2 * np.linalg.norm(weight_XD):
        raise ModelError(f"the output projection of attention, a {type(module).__name__}, is not linear")
    return weight_XD, zero_D


def read_norm(module: nn.Module, width: int) -> NormShape:
    """Return a norm as arithmetic. Raises `ModelError` where it is none that divides by the root of mean squares."""
    import torch

    # In double precision: a norm that works in float32 by itself rounds more coarsely, which the tolerance allows.
    exact = copy.deepcopy(module).double()
    device = next((one.device for one in exact.parameters()), torch.device("cpu"))
    sign_D = torch.ones(width, dtype=torch.float64, device=device)
    sign_D[1::2] = -1
    sign_D[-1] *= 1 if width % 2 == 0 else 0  # of mean zero

    def of(x_D: torch.Tensor) -> npt.NDArray[np.float64]:
        found = returned_hidden(exact(x_D[None, None]))
        assert isinstance(found, torch.Tensor)
        return np.asarray(found[0, 0].detach().double().cpu().numpy())

    shift_D = of(torch.zeros_like(sign_D))
    mean_square = float((sign_D**2).mean())
    large_D, small_D = of(sign_D) - shift_D, of(sign_D * _SMALL) - shift_D
    n_large, n_small = float(np.linalg.norm(large_D)), float(np.linalg.norm(small_D))
    share = (n_small / n_large) ** 2 if n_large else 1.0
    eps = max(_SMALL**2 * mean_square * (1 - share) / max(share - _SMALL**2, 1e-30), 0.0) if share < 1 else 0.0
    signs_D = sign_D.cpu().numpy()
    safe_D = np.where(signs_D == 0, 1, signs_D)
    gain_D = large_D / safe_D * np.sqrt(mean_square + eps)
    if width % 2:
        other_D = torch.roll(sign_D, 1)
        gain_D[-1] = (of(other_D) - shift_D)[-1] / float(other_D[-1]) * np.sqrt(mean_square + eps)
    lifted_D = of(sign_D + 3.0) - shift_D
    centred = bool(np.linalg.norm(lifted_D - large_D) <= _TOLERANCE * np.linalg.norm(large_D))
    norm = NormShape(gain_D.astype(np.float32), shift_D.astype(np.float32), float(eps), centred)
    some_D = torch.linspace(-1, 2, width, dtype=torch.float64, device=device) ** 3
    x_D = some_D.cpu().numpy() - (float(some_D.mean()) if centred else 0.0)
    expected_D = gain_D * x_D / np.sqrt(np.mean(x_D**2) + eps) + shift_D
    if not np.linalg.norm(of(some_D) - expected_D) <= _TOLERANCE * np.linalg.norm(expected_D):
        raise ModelError(
            f"a {type(module).__name__} is no norm that could be frozen: heads have no linear share behind it"
        )
    return norm


def _numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return found
