"""Where an activation is read in a model: found by structure, not by the name of an architecture.

`resid_pre[i]` and `resid_post[i]` are what block i receives and returns. What lies inside a block (`attn_out`,
`resid_mid`, `mlp_out`, `z`) is found by the numbers of a short sample forward (see `tracing.py`), so a block that does
not keep `resid_pre + attn_out + mlp_out = resid_post` is refused rather than misread. The final norm comes after the
last block and is a site of its own; its layer is the last block's index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cliffstore.config import parse_ranges
from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model.tracing import Call, Parts, dissect, received_hidden, returned_hidden, same_value, trace
from cliffstore.records import ATTN_OUT, FINAL_NORM, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE, SITES, Z
from cliffstore.schema import ArrayIdentity, ModelIdentity

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm")
_INSIDE = (RESID_MID, ATTN_OUT, MLP_OUT, Z)
_WITHOUT_HEADS = ("linear_attention", "mamba", "conv", "moe", "hybrid", "hybrid_sliding")


@dataclass(frozen=True, slots=True)
class HookPoint:
    """Where a site is read.

    Attributes
    ----------
    side : of the module's forward
    heads : of z, whose last dimension is split into [heads, d_head]
    flat : the module sees the tokens of all sequences in one dimension
    """

    module: nn.Module
    side: Literal["input", "output"]
    heads: int | None = None
    flat: bool = False


@dataclass(frozen=True, slots=True)
class ModelSites:
    """The modules of a model that sites are read from, and the place that holds its blocks."""

    blocks: nn.ModuleList
    holder: nn.Module
    attribute: str
    final_norm: nn.Module | None

    def keep_blocks(self, n_blocks: int) -> None:
        """Drop the blocks from `n_blocks` on: what is not stored is not computed."""
        setattr(self.holder, self.attribute, self.blocks[:n_blocks])


def locate(model: nn.Module, n_layers: int) -> ModelSites:
    """Find blocks and final norm of a model without LM head.

    Of several lists of `n_layers` modules (a vision tower, experts), the blocks are those beside the token embedding,
    and of these the largest.

    Raises
    ------
    ModelError
        There is no list of `n_layers` blocks.
    """
    from torch import nn

    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    found: list[tuple[bool, int, ModelSites]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            parent, _, attribute = name.rpartition(".")
            holder = model.get_submodule(parent)
            beside_embedding = any(other is embedding for other in holder.modules())
            size = sum(weight.numel() for weight in module.parameters())
            found.append((beside_embedding, size, ModelSites(module, holder, attribute, _final_norm(holder))))
    if not found:
        raise ModelError(f"model {type(model).__name__}: no list of {n_layers} blocks was found in it")
    return max(found, key=lambda one: one[:2])[2]


def hook_points(
    model: PreTrainedModel, sites: ModelSites, arrays: Sequence[ArrayIdentity], n_heads: int
) -> dict[str, HookPoint]:
    """Return where each array is read, by `<site>/<layer>`; what a block's ends do not show is checked on a sample.

    Parameters
    ----------
    model : in evaluation mode, with all blocks or with at least those that `arrays` need
    n_heads : attention heads of a block, into which z is split

    Raises
    ------
    ModelError
        A block has no such site, or z is of another shape than its array.
    """
    parts = parts_of(model, sites, sorted({array.layer for array in arrays if array.site in _INSIDE}))
    points: dict[str, HookPoint] = {}
    for array in arrays:
        name = f"{array.site}/{array.layer}"
        if array.site == FINAL_NORM:
            points[name] = _final_norm_point(model, sites)
        elif array.site in _INSIDE:
            points[name] = _point_inside(model, parts[array.layer], array.site, array.layer, n_heads)
        else:
            points[name] = HookPoint(sites.blocks[array.layer], "input" if array.site == RESID_PRE else "output")
        if array.site == Z:
            _check_heads(model, parts[array.layer], array, n_heads)
    return points


def read_point(point: HookPoint, inputs: tuple[object, ...], kwargs: dict[str, object], output: object) -> torch.Tensor:
    """Pick a site's tensor out of what a hook on its module is given.

    Returns
    -------
    [B, T, D], for z [B, T, heads, d_head], with [1, B·T] in place of [B, T] where the point is flat; a view of the
    model's own tensor.

    Raises
    ------
    ExtractionError
        It is not one hidden state a position.
    """
    import torch

    hidden = received_hidden(inputs, kwargs) if point.side == "input" else returned_hidden(output)
    if not isinstance(hidden, torch.Tensor) or hidden.dim() != (2 if point.flat else 3):
        shape = list(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
        raise ExtractionError(f"{point.side} of {type(point.module).__name__} is no hidden state a position: {shape}")
    hidden_BTD = hidden[None] if point.flat else hidden
    return hidden_BTD if point.heads is None else hidden_BTD.unflatten(-1, (point.heads, -1))


def output_projection(model: PreTrainedModel, sites: ModelSites, layer: int, n_heads: int) -> nn.Module:
    """Return the module that maps z, heads side by side, to what attention returns: W_O of a layer.

    `nn.Linear` keeps W_O as [D, W], GPT-2's `Conv1D` as [W, D].

    Raises
    ------
    ModelError
        The block has no z.
    """
    return _point_inside(model, parts_of(model, sites, [layer])[layer], Z, layer, n_heads).module


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Return the layers that `all`, `0-29` or `8,16` names, sorted.

    Raises
    ------
    ConfigError
        It is malformed.
    ModelError
        It names a layer that the model has not.
    """
    if text.strip() == "all":
        return list(range(n_layers))
    ranges = parse_ranges(text)
    highest = max(one.stop - 1 for one in ranges)
    if highest >= n_layers:
        raise ModelError(f"layer {highest} is not in the model: it has layers 0-{n_layers - 1}")
    return sorted({layer for one in ranges for layer in one})


def arrays_of(model: ModelIdentity, sites: Sequence[str], layers: Sequence[int]) -> list[ArrayIdentity]:
    """Return the arrays that capturing `sites` at `layers` fills, in the order of sites and layers.

    Raises
    ------
    ModelError
        A site is unknown.
    """
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        raise ModelError(f"site {unknown[0] if unknown else ''!r} is not known: choose from {', '.join(SITES)}")
    arrays: list[ArrayIdentity] = []
    for site in dict.fromkeys(sites):
        chosen = [model.n_layers - 1] if site == FINAL_NORM else layers
        shape = [model.n_heads, model.d_head] if site == Z else [model.d_model]
        arrays.extend(ArrayIdentity(site=site, layer=layer, shape=shape) for layer in chosen)
    return arrays


def _final_norm(holder: nn.Module) -> nn.Module | None:
    """Return the norm beside the blocks: by its usual names, else the last that is called a norm by its class."""
    named = {name: module for name, module in holder.named_children() if "norm" in type(module).__name__.lower()}
    usual = next((named[name] for name in _FINAL_NORMS if name in named), None)
    return usual if usual is not None else next(reversed(named.values()), None)


def _final_norm_point(model: PreTrainedModel, sites: ModelSites) -> HookPoint:
    """Check on a sample that the final norm receives what the last block returns."""
    norm = sites.final_norm
    if norm is None:
        raise ModelError(f"model {type(model).__name__}: its final norm was not found, so there is no final_norm")
    calls = trace(model, {"last": getattr(sites.holder, sites.attribute)[-1], "norm": norm})
    if not ("last" in calls and "norm" in calls and same_value(calls["last"].returned, calls["norm"].received)):
        raise ModelError(
            f"model {type(model).__name__}: its {type(norm).__name__} does not receive what the last block returns, "
            "so there is no final_norm"
        )
    return HookPoint(norm, "output")


def parts_of(model: PreTrainedModel, sites: ModelSites, layers: Sequence[int]) -> dict[int, Parts]:
    """Find the parts of the blocks of `layers`, all in one sample forward."""
    if not layers:
        return {}
    modules = {
        f"{layer}.{name}".removesuffix("."): module
        for layer in layers
        for name, module in sites.blocks[layer].named_modules()
    }
    parts = _dissected(model, trace(model, modules), layers)
    silent = [layer for layer in layers if parts[layer].attention is None]
    if silent:  # an MLP may have nothing to say to six tokens
        parts |= _dissected(model, trace(model, modules, drawn=True), silent)
    return parts


def _dissected(model: PreTrainedModel, calls: Mapping[str, Call], layers: Sequence[int]) -> dict[int, Parts]:
    parts: dict[int, Parts] = {}
    for layer in layers:
        block = calls.get(str(layer))
        if block is None:
            raise ModelError(f"model {type(model).__name__}, layer {layer}: its block is not called once a pass")
        parts[layer] = dissect(block, [call for name, call in calls.items() if name.startswith(f"{layer}.")])
    return parts


def _point_inside(model: PreTrainedModel, parts: Parts, site: str, layer: int, n_heads: int) -> HookPoint:
    """Return where a site inside a block is read, or say why it is not there and what is."""
    kind = _layer_kind(model, layer)
    found = {
        RESID_MID: parts.middle,
        ATTN_OUT: parts.attention,
        MLP_OUT: parts.mlp,
        Z: None if kind in _WITHOUT_HEADS else parts.projection,
    }
    call = found[site]
    if call is None:
        there = [name for name in SITES if name in (RESID_PRE, RESID_POST) or found.get(name)]
        raise ModelError(
            f"model {type(model).__name__}, layer {layer}: {site} was not found: {_reason(parts, site, kind)}; "
            f"sites that were found: {', '.join(there)}"
        )
    side: Literal["input", "output"] = "output" if site in (ATTN_OUT, MLP_OUT) else "input"
    return HookPoint(call.module, side, n_heads if site == Z else None, call.flat)


def _layer_kind(model: PreTrainedModel, layer: int) -> str | None:
    """Return how a layer mixes tokens, in transformers' words, where the configuration says it."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    return str(kinds[layer]) if kinds and layer < len(kinds) else None


def _reason(parts: Parts, site: str, kind: str | None) -> str:
    if parts.attention is None:
        return "no two modules' outputs are what the block adds to the residual stream"
    if site == Z and kind in _WITHOUT_HEADS:
        return f"the block is of the kind {kind}, which has not the model's attention heads"
    if site == Z:
        return "no module with a matrix makes what attention adds"
    if parts.side_by_side:
        return "the block computes attention and MLP side by side, so there is no residual stream between them"
    return "no module after attention receives resid_pre + attn_out"


def _check_heads(model: PreTrainedModel, parts: Parts, array: ArrayIdentity, n_heads: int) -> None:
    assert parts.projection is not None
    assert parts.projection.received is not None
    width = parts.projection.received.shape[-1]
    if array.shape != [n_heads, width // n_heads] or width % n_heads:
        raise ModelError(
            f"model {type(model).__name__}, layer {array.layer}: z was not found: the output projection receives "
            f"{width} values a position, which are not {' heads of '.join(map(str, array.shape))}"
        )
