"""Changing what a model computes while it runs: heads scaled, directions taken out, vectors added.

    with scale_heads(model, {(12, 3): 0.0}, keep_norm=True), ablate(model, direction_D, positions="template"):
        model(...)                                  # or generate, or a capture of sites

`intervene` takes steps as data (`schema.Interventions`, which pickle and have a digest); the others make one step of
what they are given. Places are found by structure (`sites.py`): `z` of a layer for heads; `resid_pre`, `attn_out`,
`mlp_out` and `resid_post` for directions and vectors. So GPT-2's `Conv1D`, Gemma's norms behind attention and grouped
queries need no case of their own. What is captured at a site is what the interventions there have made of it.

Order. Steps that meet at one place (site and layer) act in the order in which they are listed, those of an outer
context before those of an inner one. At different places the model's own order holds: layer input, heads, attention
output, MLP output, block output.

Where. A step acts at every position, or at those a word names; see `pass_masks.py` for who says what a word means.

Nothing outlives its context: hooks are removed when it is left, whatever ended it, and weights are never touched.
Cost: some passes over the vectors of the changed sites; finding places takes one sample forward of six tokens.

Legend: B lines of a pass, T positions a line, H heads, K width of a head, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.model import changes
from cliffstore.model.pass_masks import mask_of
from cliffstore.model.sites import HookPoint, ModelSites, hook_points, locate, read_point
from cliffstore.model.steps import ABLATED_SITES, AnyStep, ModelShape, check_fit, values_of
from cliffstore.model.tracing import TRACING
from cliffstore.schema import (
    ArrayIdentity,
    DirectionAblation,
    HeadFactors,
    HeadScaling,
    Interventions,
    Steering,
    vector_text,
)

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

Vector = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Change:
    """What one step does at one place. `values` float32: factors [H, K] or [H, 1], a unit direction or a vector [D]."""

    step: AnyStep
    values: torch.Tensor
    _on: dict[torch.device, torch.Tensor] = field(default_factory=dict)

    def __call__(self, hidden: torch.Tensor, flat: bool) -> torch.Tensor:
        mask_BT = mask_of(self.step.positions, (hidden.shape[0], hidden.shape[1]), flat)
        if mask_BT is not None:
            mask_BT = mask_BT.to(hidden.device)
        if hidden.device not in self._on:
            self._on[hidden.device] = self.values.to(hidden.device)
        change = {"scale_heads": changes.scale, "ablate": changes.ablate, "steer": changes.steer}[self.step.kind]
        return change(hidden, self._on[hidden.device], mask_BT, keep_norm=self.step.keep_norm)


@dataclass(frozen=True, slots=True)
class PlacedChanges:
    """The changes at one place of a model, in their order."""

    point: HookPoint
    changes: tuple[_Change, ...]

    def hook(self) -> RemovableHandle:
        """Make them happen until the handle is removed."""
        if self.point.side == "input":
            return self.point.module.register_forward_pre_hook(self._enter, with_kwargs=True)
        return self.point.module.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(
        self, _module: object, inputs: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if TRACING.get():
            return None
        changed = self._changed(inputs, kwargs, None)
        return ((changed, *inputs[1:]), kwargs) if inputs else (inputs, {**kwargs, "hidden_states": changed})

    def _leave(self, _module: object, inputs: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
        if TRACING.get():
            return None
        changed = self._changed(inputs, kwargs, output)
        if isinstance(output, tuple):
            return (changed, *output[1:])
        return [changed, *output[1:]] if isinstance(output, list) else changed

    def _changed(self, inputs: tuple[object, ...], kwargs: dict[str, object], output: object) -> torch.Tensor:
        hidden = read_point(self.point, inputs, kwargs, output)
        for change in self.changes:
            hidden = change(hidden, self.point.flat)
        if self.point.heads is not None:
            hidden = hidden.flatten(-2)
        return hidden[0] if self.point.flat else hidden


def place(
    model: PreTrainedModel, sites: ModelSites, interventions: Interventions, shape: ModelShape, n_blocks: int
) -> tuple[PlacedChanges, ...]:
    """Find where steps act in a model.

    Parameters
    ----------
    n_blocks : blocks that the model still has; steps above them change nothing that is computed

    Raises
    ------
    ModelError
        A step does not fit the model, or a block has no such site.
    """
    check_fit(interventions, shape)
    found: dict[str, list[_Change]] = {}
    arrays: dict[str, ArrayIdentity] = {}
    for step in interventions.steps:
        for array, values in values_of(step, shape):
            if array.layer < n_blocks:
                name = f"{array.site}/{array.layer}"
                arrays[name] = array
                found.setdefault(name, []).append(_Change(step, values))
    points = hook_points(model, sites, list(arrays.values()), shape.n_heads)
    return tuple(PlacedChanges(points[name], tuple(found[name])) for name in arrays)


@contextmanager
def applied(placed: Sequence[PlacedChanges]) -> Iterator[None]:
    """Make changes happen inside this context."""
    with ExitStack() as stack:
        for one in placed:
            stack.callback(one.hook().remove)
        yield


@contextmanager
def intervene(model: PreTrainedModel, interventions: Interventions | Sequence[AnyStep]) -> Iterator[None]:
    """Change what a model computes inside this context.

    Parameters
    ----------
    model : with all its blocks, with or without LM head, in evaluation mode

    Raises
    ------
    ModelError
        A step does not fit the model, or a block has no such site.
    """
    steps = interventions if isinstance(interventions, Interventions) else Interventions.of(interventions)
    shape = ModelShape.of(model)
    with applied(place(model, locate(model, shape.n_layers), steps, shape, shape.n_layers)):
        yield


@contextmanager
def scale_heads(
    model: PreTrainedModel,
    factors: Mapping[tuple[int, int], float | Sequence[float] | Vector],
    *,
    positions: str = "all",
    keep_norm: bool = False,
) -> Iterator[None]:
    """Scale heads inside this context.

    Parameters
    ----------
    factors : (layer, head) -> a factor, or one for each channel of the head
    keep_norm : bring each token's heads of a layer, side by side, back to the norm that they had together
    """
    heads = [
        HeadFactors(layer=layer, head=head, factors=[float(one) for one in np.atleast_1d(np.asarray(given))])
        for (layer, head), given in factors.items()
    ]
    with intervene(model, [HeadScaling(heads=heads, positions=positions, keep_norm=keep_norm)]):
        yield


@contextmanager
def ablate(
    model: PreTrainedModel,
    direction_D: Vector,
    *,
    sites: Sequence[str] = ABLATED_SITES,
    layers: Sequence[int] | None = None,
    positions: str = "all",
    keep_norm: bool = False,
) -> Iterator[None]:
    """Take a direction out inside this context, at all layers unless some are named."""
    step = DirectionAblation(
        vector=vector_text(direction_D),
        sites=list(sites),
        layers=_layers(model, layers),
        positions=positions,
        keep_norm=keep_norm,
    )
    with intervene(model, [step]):
        yield


@contextmanager
def steer(
    model: PreTrainedModel,
    vector_D: Vector,
    *,
    site: str,
    layers: Sequence[int],
    factor: float = 1.0,
    positions: str = "all",
    keep_norm: bool = False,
) -> Iterator[None]:
    """Add factor·vector at a site inside this context."""
    step = Steering(
        vector=vector_text(vector_D),
        sites=[site],
        layers=list(layers),
        factor=factor,
        positions=positions,
        keep_norm=keep_norm,
    )
    with intervene(model, [step]):
        yield


def _layers(model: PreTrainedModel, layers: Sequence[int] | None) -> list[int]:
    return list(range(ModelShape.of(model).n_layers)) if layers is None else list(layers)
