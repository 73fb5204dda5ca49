"""Capturing sites during a forward pass.

Hooks hand over the wanted positions as soon as a module returns, and the pass ends with the last of them: no LM head,
no block above the last captured one, no half of a block that nobody asked for.

Legend: B lines of a pass, T positions a line, N positions that are kept, S keys, C carried keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cliffstore.errors import ExtractionError
from cliffstore.model import attention
from cliffstore.model.attention import KeysValues, PassAttention
from cliffstore.model.interventions import PlacedChanges, applied, place
from cliffstore.model.pass_masks import positions_of_pass
from cliffstore.model.sites import HookPoint, hook_points, locate, read_point
from cliffstore.model.steps import ModelShape
from cliffstore.schema import ArrayIdentity, Interventions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Sink = Callable[[str, "torch.Tensor"], None]
"""Receives an array's name ('<site>/<layer>') and its vectors [N, ...] on the device that computed them."""


@dataclass(frozen=True, slots=True)
class PassTensors:
    """One forward pass, on the CPU.

    Attributes
    ----------
    input_ids_BT, positions_BT : int64
    lengths_B : int64, tokens of each line that are not padding
    kept_N : int64, indices into the flattened B·T positions
    ends_S : int64, None where lines are plain sequences (see `attention`)
    carry_C : int64 keys to hold for the next pass, None for none
    marks_BT : int64, bit k is set where the k-th choice of positions of the interventions holds; None without any
    """

    input_ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    lengths_B: torch.Tensor
    kept_N: torch.Tensor
    ends_S: torch.Tensor | None
    carry_C: torch.Tensor | None
    marks_BT: torch.Tensor | None = None

    @property
    def n_past(self) -> int:
        """Nodes of the path before the pass."""
        return 0 if self.ends_S is None else len(self.ends_S) - self.input_ids_BT.shape[1]


class SiteCapture:
    """A model cut down to what its captured sites need.

    Parameters
    ----------
    model : without LM head, in evaluation mode; its unused blocks are dropped
    arrays : what to capture
    n_layers, n_heads : of the whole model
    flex : use FlexAttention for passes over trees
    interventions : what is changed in every pass; what is captured at a site is what they have made of it

    Attributes
    ----------
    over_trees : whether passes over prefix trees are possible: the model lets its attention be replaced
    n_blocks : blocks that are left
    choices : positions that interventions act at, in the order of the bits of a mark
    windows : sliding window that each block asked for in the last pass over a tree
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arrays: Sequence[ArrayIdentity],
        n_layers: int,
        n_heads: int,
        *,
        flex: bool = False,
        interventions: Interventions | None = None,
    ) -> None:
        sites = locate(model, n_layers)
        self.n_blocks = max(array.layer for array in arrays) + 1
        sites.keep_blocks(self.n_blocks)
        self.model = model
        self.flex = flex
        self._points = hook_points(model, sites, arrays, n_heads)
        self._changes: tuple[PlacedChanges, ...] = ()
        self.choices: tuple[str, ...] = ()
        if interventions is not None:
            self._changes = place(model, sites, interventions, ModelShape.of(model), self.n_blocks)
            self.choices = interventions.choices
        self._loaded_with = str(model.config._attn_implementation)
        self.over_trees = attention.install(model)
        if not self.over_trees:
            attention.uninstall(model, self._loaded_with)
        self._path: dict[int, KeysValues] = {}
        self.windows: dict[int, int | None] = {}

    @property
    def device(self) -> torch.device:
        """Device of the model's first weights."""
        return self.model.device

    @property
    def array_names(self) -> list[str]:
        """Names of what is captured."""
        return list(self._points)

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """Run with the attention that the model was loaded with, for a while."""
        attention.uninstall(self.model, self._loaded_with)
        self.over_trees = False
        try:
            yield
        finally:
            self.over_trees = attention.install(self.model)

    def leave_trees(self) -> None:
        """Go back to the attention that the model was loaded with; only padded passes from now on."""
        attention.uninstall(self.model, self._loaded_with)
        self.over_trees = False
        self._path = {}

    def run(self, one: PassTensors, sink: Sink, *, isolate: bool = False) -> None:
        """Run one pass. Where it fails, the path that the pass before it left is still there.

        Parameters
        ----------
        isolate : see `PassAttention`; of no effect with the attention that the model was loaded with

        Raises
        ------
        ExtractionError
            A module did not give what it gave when it was located, or the pass continues another path.
        """
        import torch

        with torch.inference_mode(), positions_of_pass(self._masks(one)):
            if not self.over_trees:
                mask_BT = torch.arange(one.input_ids_BT.shape[1])[None, :] < one.lengths_B[:, None]
                self._forward(one, sink, {"attention_mask": mask_BT.long().to(self.device)})
                return
            current = self._attention_of(one, isolate)
            with attention.attending(current):
                self._forward(one, sink, {"position_ids": one.positions_BT.to(self.device)})
            self._path = current.carried
            self.windows = current.windows

    def _masks(self, one: PassTensors) -> dict[str, torch.Tensor]:
        if one.marks_BT is None:
            return {}
        return {choice: (one.marks_BT >> bit & 1).bool() for bit, choice in enumerate(self.choices)}

    def _attention_of(self, one: PassTensors, isolate: bool) -> PassAttention:
        import torch

        path = self._path if one.n_past else {}
        held = next(iter(path.values()))[0].shape[2] if path else 0
        if held != one.n_past:
            raise ExtractionError(f"a pass continues a path of {one.n_past} nodes, {held} are held")
        depth_S = torch.cat([torch.arange(one.n_past), one.positions_BT[0]]).to(self.device)
        return PassAttention(
            n_queries=one.input_ids_BT.shape[1],
            depth_S=depth_S,
            ends_S=None if one.ends_S is None else one.ends_S.to(self.device),
            past=path,
            carry_C=None if one.carry_C is None else one.carry_C.to(self.device),
            flex=self.flex,
            isolate=isolate,
        )

    def _forward(self, one: PassTensors, sink: Sink, arguments: dict[str, torch.Tensor]) -> None:
        keep = _Keeper(one, sink, waiting=set(self._points))
        with ExitStack() as hooks:
            hooks.enter_context(applied(self._changes))  # first, so that what they give is what is captured
            for name, point in self._points.items():
                hooks.callback(self._hook(name, point, keep).remove)
            with suppress(_AllFoundError):
                self.model(input_ids=one.input_ids_BT.to(self.device), use_cache=False, **arguments)
        if keep.waiting:
            raise ExtractionError(f"{sorted(keep.waiting)[0]} was not computed in a forward pass")

    def _hook(self, name: str, point: HookPoint, keep: _Keeper) -> torch.utils.hooks.RemovableHandle:
        if point.side == "input":
            return point.module.register_forward_pre_hook(
                lambda _module, inputs, kwargs: keep(name, read_point(point, inputs, kwargs, None)), with_kwargs=True
            )
        return point.module.register_forward_hook(
            lambda _module, inputs, kwargs, output: keep(name, read_point(point, inputs, kwargs, output)),
            with_kwargs=True,
        )


class _AllFoundError(Exception):
    """Everything that was asked for is computed; what is above it need not be."""


class _Keeper:
    """Passes the kept positions of each site on, and ends the pass after the last."""

    def __init__(self, one: PassTensors, sink: Sink, waiting: set[str]) -> None:
        self._kept_N, self._sink, self.waiting = one.kept_N, sink, waiting
        n_positions = one.input_ids_BT.numel()
        self._keeps_all = len(one.kept_N) == n_positions
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def __call__(self, name: str, hidden_BTD: torch.Tensor) -> None:
        vectors_ND = hidden_BTD.flatten(0, 1)
        if not self._keeps_all:
            device = hidden_BTD.device
            if device not in self._on_device:
                self._on_device[device] = self._kept_N.to(device)
            vectors_ND = vectors_ND.index_select(0, self._on_device[device])
        self._sink(name, vectors_ND)
        self.waiting.discard(name)
        if not self.waiting:
            raise _AllFoundError
