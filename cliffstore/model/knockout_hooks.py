"""Hooks that knock-outs put on a model: to read what a probe reads, to keep z, and to replace z in chosen lines.

Each is a context manager that takes its hooks away again, whatever happened inside. What a probe reads ends the pass:
`ReadError` is raised once it is there, so that nothing above it is computed.

Legend: B lines, T positions, K positions that are ablated, D width of the stream, H heads, W width of a head, X heads
of one layer that are ablated, one a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.model.sites import HookPoint, read_point
from cliffstore.model.tracing import received_hidden, stream_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Head = tuple[int, int]
"""Layer and head."""
Heads = tuple[Head, ...]
Means = Mapping[int, npt.NDArray[np.float32]]
"""Layer -> [H, W], what replaces z; where there is none, zero does."""


class ReadError(Exception):
    """The probe has read what it reads; what is above it need not be computed."""


@contextmanager
def reading(point: HookPoint) -> Iterator[list[torch.Tensor]]:
    """Give a list that holds what the probe reads once it is computed; the pass ends there."""
    read: list[torch.Tensor] = []

    def take(hidden_BKD: torch.Tensor) -> None:
        read.append(hidden_BKD)
        raise ReadError

    handle = _on(point, take)
    try:
        yield read
    finally:
        handle.remove()


@contextmanager
def keeping_z(points: Mapping[int, HookPoint], found: dict[int, torch.Tensor], first: int) -> Iterator[None]:
    """Keep z of each layer, [K, H, W], from the position `first` on."""

    def keep(layer: int, z_1THW: torch.Tensor) -> None:
        found[layer] = z_1THW[0, first:].clone()

    handles = [_on(point, partial(keep, layer)) for layer, point in points.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def finding_nonfinite(blocks: Sequence[nn.Module], line: int) -> Iterator[list[int]]:
    """Give a list of the layers whose blocks give NaN or Inf in a line."""
    import torch

    found: list[int] = []

    def look(layer: int, _module: nn.Module, _inputs: object, output: object) -> None:
        if not bool(torch.isfinite(stream_of(output)[line]).all()):
            found.append(layer)

    handles = [block.register_forward_hook(partial(look, layer)) for layer, block in enumerate(blocks)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def ablating(
    points: Mapping[int, HookPoint],
    n_heads: int,
    choices: Sequence[Heads],
    means: Means,
    *,
    line: int,
    first: int = 0,
) -> Iterator[None]:
    """Replace z of each choice in its line, of which `line` is that of the first, from the position `first` on."""
    import torch

    of_layer: dict[int, list[tuple[int, int]]] = {}
    for number, chosen in enumerate(choices, line):
        for layer, head in chosen:
            of_layer.setdefault(layer, []).append((number, head))
    handles = []
    for layer, cut in of_layer.items():
        point = points[layer]
        device = next(point.module.parameters()).device
        lines, heads = (torch.tensor(numbers, device=device) for numbers in zip(*cut, strict=True))
        mean_HW = means.get(layer)
        put_XW = None if mean_HW is None else torch.from_numpy(mean_HW).to(device)[heads]

        def replace(
            _module: nn.Module,
            inputs: tuple[object, ...],
            kwargs: dict[str, object],
            point: HookPoint = point,
            lines: torch.Tensor = lines,
            heads: torch.Tensor = heads,
            put_XW: torch.Tensor | None = put_XW,
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            given = received_hidden(inputs, kwargs)
            assert isinstance(given, torch.Tensor)
            changed = given.clone()
            n_lines = len(choices) + line if point.flat else changed.shape[0]
            z_BTHW = changed.view(n_lines, -1, n_heads, changed.shape[-1] // n_heads)
            rest_BTHW = z_BTHW[:, first:]
            rest_BTHW[lines, :, heads] = 0 if put_XW is None else put_XW.to(changed.dtype)[:, None]
            if inputs:
                return (changed, *inputs[1:]), kwargs
            return inputs, {**kwargs, "hidden_states": changed}

        handles.append(point.module.register_forward_pre_hook(replace, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on(point: HookPoint, take: Callable[[torch.Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    """Hand what a point reads to a function, whenever it is computed."""
    if point.side == "input":
        return point.module.register_forward_pre_hook(
            lambda _, inputs, kwargs: take(read_point(point, inputs, kwargs, None)), with_kwargs=True
        )
    return point.module.register_forward_hook(
        lambda _, inputs, kwargs, output: take(read_point(point, inputs, kwargs, output)), with_kwargs=True
    )
