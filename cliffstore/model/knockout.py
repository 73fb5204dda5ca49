"""Switching heads off: the score of a probe with some heads' z replaced, for many choices of heads at once.

For one prompt, one pass of the model gives keys and values of every position before the first that is ablated (no
choice of heads changes those), and what each block receives at the others. A choice of heads is then a line of a
batch: it begins at the block of its lowest head, with what the undisturbed model has there, and ends where the probe
reads. Lines that begin further up join on the way, so that the blocks below are not computed for them, and every block
sees one large batch in place of one pass a head. No LM head, no block above the probe.

Where all positions are ablated nothing of a prompt can be held, but what several prompts begin with is computed once a
choice: a line is then the common stem of some prompts and the rest of each behind it.

In 16-bit models a line in which nothing is ablated is in each batch: effects are differences within one batch, so that
rounding that depends on the size of a batch is no effect.

Blocks are called one by one with what the model itself gave them in the first pass (rotary embeddings and the like, cut
to the positions of the lines). Where a model does not let this be done, or where it disagrees with whole forward passes
(checked on a prompt), `by_whole_passes` gives the same more slowly.

Cost a prompt: one pass, then for each choice (positions ablated) x (blocks from its first to the probe's) block steps.

Legend: B lines, T positions of a prompt, K of them from the first that is ablated, D width of the stream, H heads, W
width of a head, M prompts, V choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model import attention
from cliffstore.model.attention import KeysValues, PassAttention
from cliffstore.model.branches import BranchAttention, StemAttention
from cliffstore.model.sites import HookPoint, hook_points, locate, read_point
from cliffstore.model.tracing import received_hidden, returned_hidden
from cliffstore.records import FINAL_NORM, RESID_PRE, Z
from cliffstore.schema import ArrayIdentity, ModelIdentity

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Head = tuple[int, int]
"""Layer and head."""
Heads = tuple[Head, ...]
Means = Mapping[int, npt.NDArray[np.float32]]
"""Layer -> [H, W], what replaces z; where there is none, zero does."""

_LINES = 4
"""Choices of heads that a pass has room for where several prompts share its lines."""
_SCORES_BYTES = 128 << 20
"""Of attention's scores in one block: what limits the lines of a pass beside its positions."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt up to the decision position: token_ids int64 [T], and the first position that is ablated."""

    token_ids_T: npt.NDArray[np.int64]
    first: int


@dataclass(slots=True)
class _Undisturbed:
    """What lines are made of: of each block, what it received at K positions, and what else it was given.

    Attributes
    ----------
    ends : where in a line of K positions each prompt ends
    bounds : of the stem and the branches of a line, None where a line continues a path that is `held`
    n_path : positions of that path
    scores_M : of each prompt, as it is
    """

    ends: list[int]
    bounds: tuple[int, ...] | None
    n_path: int
    hidden_1KD: dict[int, torch.Tensor] = field(default_factory=dict)
    others: dict[int, tuple[tuple[object, ...], dict[str, object]]] = field(default_factory=dict)
    held: dict[int, KeysValues] = field(default_factory=dict)
    z_KHW: dict[int, torch.Tensor] = field(default_factory=dict)
    scores_M: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class _ReadError(Exception):
    """The probe has read what it reads; what is above it need not be computed."""


class Knockouts:
    """A model up to where a probe reads, with its heads ready to be switched off.

    Parameters
    ----------
    model : without LM head, in evaluation mode; its unused blocks are dropped
    array : what the probe reads
    w_D, b : of the probe
    tokens : positions of all lines of a pass, at most (one line at the least)

    Attributes
    ----------
    layers : whose heads can change the score
    shared : whether lines are made from what is held; `leave_sharing` says no

    Raises
    ------
    ModelError
        The probe reads what cannot be read, or a layer has no heads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        identity: ModelIdentity,
        array: ArrayIdentity,
        w_D: npt.NDArray[np.float32],
        b: float,
        *,
        tokens: int,
    ) -> None:
        import torch

        self._model, self._tokens, self._b = model, tokens, b
        self._n_heads = identity.n_heads
        self._with_plain = int(model.dtype != torch.float32)
        sites = locate(model, identity.n_layers)
        sites.keep_blocks(array.layer + 1)
        self.layers = range(array.layer + (array.site != RESID_PRE))
        z_shape = [identity.n_heads, identity.d_head]
        z = [ArrayIdentity(site=Z, layer=layer, shape=z_shape) for layer in self.layers]
        with torch.inference_mode():
            points = hook_points(model, sites, [*z, array], identity.n_heads)
        self._blocks = list(sites.blocks[: array.layer + 1])
        self._norm = sites.final_norm if array.site == FINAL_NORM else None
        self._z = {layer: points[f"{Z}/{layer}"] for layer in self.layers}
        self._read = points[f"{array.site}/{array.layer}"]
        self._w_D = torch.from_numpy(np.ascontiguousarray(w_D)).to(model.device)
        self._loaded_with = str(model.config._attn_implementation)
        self.shared = attention.install(model)
        if not self.shared:
            self.leave_sharing()

    def leave_sharing(self) -> None:
        """Go back to the attention that the model was loaded with, and to whole passes."""
        attention.uninstall(self._model, self._loaded_with)
        self.shared = False

    def fit_together(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether prompts may share the lines of a pass: all of their positions are ablated, and few enough."""
        if len(prompts) == 1:
            return True
        if not self.shared or any(prompt.first for prompt in prompts):
            return False
        stem = _stem_of(prompts)
        n_nodes = stem + sum(len(prompt.token_ids_T) - stem for prompt in prompts)
        return stem > 0 and n_nodes <= self._tokens // _LINES

    def scores(
        self, prompts: Sequence[Prompt], choices: Sequence[Heads], means: Means | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the score at the end of each prompt with each choice of heads ablated, and without, [M, V] both.

        Parameters
        ----------
        prompts : one, or some that `fit_together`
        choices : each of at least one head of `layers`
        means : what replaces z; zero by default
        """
        import torch

        if not self.shared:
            return self.by_whole_passes(prompts, choices, means)
        scored_MV, plain_MV = np.zeros((2, len(prompts), len(choices)))
        with torch.inference_mode():
            held = self._undisturbed(prompts, keep_z=False)
            order = sorted(range(len(choices)), key=lambda number: min(choices[number]))
            for part in self._parts(order, held, len(prompts[0].token_ids_T)):
                found_BM = self._score_lines(held, [choices[number] for number in part], means or {})
                scored_MV[:, part] = found_BM[-len(part) :].T
                plain_MV[:, part] = found_BM[0][:, None] if len(found_BM) > len(part) else held.scores_M[:, None]
        return scored_MV, plain_MV

    def by_whole_passes(
        self, prompts: Sequence[Prompt], choices: Sequence[Heads], means: Means | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return what `scores` returns, from whole forward passes with the attention that the model was loaded with."""
        import torch

        attention.uninstall(self._model, self._loaded_with)
        try:
            with torch.inference_mode():
                found = [self._by_whole_passes(prompt, choices, means or {}) for prompt in prompts]
        finally:
            if self.shared:
                attention.install(self._model)
        return np.stack([scored for scored, _ in found]), np.stack([plain for _, plain in found])

    def z_of(self, prompt: Prompt) -> dict[int, npt.NDArray[np.float32]]:
        """Return z of each of `layers` at the positions that are ablated, [K, H, W]: what means are made of."""
        import torch

        found: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            if self.shared:
                found = self._undisturbed([prompt], keep_z=True).z_KHW
            else:
                with self._keeping_z(found, prompt.first), self._reading() as read:
                    self._forward(prompt.token_ids_T[None], np.arange(len(prompt.token_ids_T)), read)
        return {layer: one.float().cpu().numpy() for layer, one in found.items()}

    def _parts(self, order: Sequence[int], held: _Undisturbed, n_tokens: int) -> Iterator[list[int]]:
        """Cut choices, sorted by where they begin, into those of one pass."""
        n_new = held.ends[-1] + 1
        lines = self._tokens // n_new
        if held.bounds is None:
            lines = min(lines, _SCORES_BYTES // (self._n_heads * n_new * n_tokens * 4))
        lines = max(lines - self._with_plain, 1)
        for start in range(0, len(order), lines):
            yield list(order[start : start + lines])

    def _undisturbed(self, prompts: Sequence[Prompt], *, keep_z: bool) -> _Undisturbed:
        """Run the model as it is, and hold what lines need of it."""
        import torch

        first, stem = prompts[0].first, _stem_of(prompts)
        if first:
            (prompt,) = prompts
            token_ids_N, depth_N = prompt.token_ids_T, np.arange(len(prompt.token_ids_T))
            held = _Undisturbed([len(token_ids_N) - first - 1], None, first)
        else:
            rests = [prompt.token_ids_T[stem:] for prompt in prompts]
            token_ids_N = np.concatenate([prompts[0].token_ids_T[:stem], *rests])
            depth_N = np.concatenate([np.arange(stem), *(np.arange(stem, stem + len(rest)) for rest in rests)])
            bounds = np.cumsum([stem, *map(len, rests)])
            held = _Undisturbed([int(end) - 1 for end in bounds[1:]], tuple(int(one) for one in bounds), 0)
        n_nodes = len(token_ids_N)
        positions_N = torch.arange(n_nodes, device=self._model.device)
        current: PassAttention | StemAttention = StemAttention(held.bounds or ())
        if held.bounds is None:
            current = PassAttention(n_nodes, positions_N, ends_S=None, past={}, carry_C=positions_N[:first])

        def receive(layer: int, inputs: tuple[object, ...], kwargs: dict[str, object]) -> None:
            hidden = received_hidden(inputs, kwargs)
            assert isinstance(hidden, torch.Tensor)
            held.hidden_1KD[layer] = hidden[:, first:]
            named = {name: _cut(value, n_nodes, first) for name, value in kwargs.items() if name != "hidden_states"}
            held.others[layer] = (tuple(_cut(value, n_nodes, first) for value in inputs[1:]), named)

        handles = [
            block.register_forward_pre_hook(
                lambda _, inputs, kwargs, layer=layer: receive(layer, inputs, kwargs), with_kwargs=True
            )
            for layer, block in enumerate(self._blocks)
        ]
        try:
            keeping = self._keeping_z(held.z_KHW if keep_z else None, first)
            with keeping, self._reading() as read, attention.attending(current):
                self._forward(token_ids_N[None], depth_N, read)
        finally:
            for handle in handles:
                handle.remove()
        if isinstance(current, PassAttention):
            held.held = current.carried
        held.scores_M = self._probe(read[0], [first + end for end in held.ends])[0]
        return held

    def _forward(
        self, token_ids_BT: npt.NDArray[np.int64], depth_T: npt.NDArray[np.int64], read: list[torch.Tensor]
    ) -> None:
        import torch

        ids_BT, depth_1T = (
            torch.from_numpy(np.array(one, dtype=np.int64)).to(self._model.device)
            for one in (token_ids_BT, depth_T[None])
        )
        with suppress(_ReadError):
            self._model(input_ids=ids_BT, position_ids=depth_1T, use_cache=False)
        if not read:
            raise ExtractionError("what the probe reads was not computed in a forward pass")

    def _score_lines(self, held: _Undisturbed, choices: Sequence[Heads], means: Means) -> npt.NDArray[np.float64]:
        """Run one batch of lines, sorted by where they begin; return their scores [B, M], of the plain line first."""
        import torch

        current: BranchAttention | StemAttention
        current = BranchAttention(held.held, held.n_path) if held.bounds is None else StemAttention(held.bounds)
        joins = {layer: len(list(own)) for layer, own in groupby(choices, key=lambda heads: min(heads)[0])}
        begun = min(joins)
        hidden_BKD = held.hidden_1KD[begun][: self._with_plain]
        reading, ablating = self._reading(), self._ablating(choices, means, line=self._with_plain)
        with reading as read, ablating, attention.attending(current), suppress(_ReadError):
            for layer in range(begun, len(self._blocks)):
                if layer in joins:
                    new_BKD = held.hidden_1KD[layer].expand(joins[layer], -1, -1)
                    hidden_BKD = torch.cat([hidden_BKD, new_BKD])
                args, kwargs = held.others[layer]
                returned = returned_hidden(self._blocks[layer](hidden_BKD, *args, **kwargs))
                assert isinstance(returned, torch.Tensor)
                hidden_BKD = returned
            if self._norm is not None:
                self._norm(hidden_BKD)
        return self._probe(read[0], held.ends)

    def _by_whole_passes(
        self, prompt: Prompt, choices: Sequence[Heads], means: Means
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        scored_V, plain_V = np.zeros((2, len(choices)))
        n_tokens = len(prompt.token_ids_T)
        lines = max(self._tokens // n_tokens - 1, 1)
        for start in range(0, len(choices), lines):
            part = choices[start : start + lines]
            token_ids_BT = np.broadcast_to(prompt.token_ids_T, (len(part) + 1, n_tokens))
            with self._reading() as read, self._ablating(part, means, line=1, first=prompt.first):
                self._forward(token_ids_BT, np.arange(n_tokens), read)
            found_B = self._probe(read[0], [n_tokens - 1])[:, 0]
            scored_V[start : start + len(part)], plain_V[start : start + len(part)] = found_B[1:], found_B[0]
        return scored_V, plain_V

    def _probe(self, hidden_BKD: torch.Tensor, ends: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the scores of each line at some positions, [B, M]."""
        scores_BM = hidden_BKD[:, list(ends)].float() @ self._w_D.to(hidden_BKD.device) + self._b
        found: npt.NDArray[np.float64] = scores_BM.double().cpu().numpy()
        return found

    @contextmanager
    def _reading(self) -> Iterator[list[torch.Tensor]]:
        """Give a list that holds what the probe reads once it is computed; the pass ends there."""
        read: list[torch.Tensor] = []

        def take(hidden_BKD: torch.Tensor) -> None:
            read.append(hidden_BKD)
            raise _ReadError

        handle = _on(self._read, take)
        try:
            yield read
        finally:
            handle.remove()

    @contextmanager
    def _keeping_z(self, found: dict[int, torch.Tensor] | None, first: int) -> Iterator[None]:
        def keep(layer: int, z_1THW: torch.Tensor) -> None:
            assert found is not None
            found[layer] = z_1THW[0, first:].clone()

        points = self._z if found is not None else {}
        handles = [_on(point, lambda z, layer=layer: keep(layer, z)) for layer, point in points.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _ablating(self, choices: Sequence[Heads], means: Means, *, line: int, first: int = 0) -> Iterator[None]:
        """Replace z of each choice in its line, of which `line` is that of the first, from the position `first` on."""
        import torch

        of_layer: dict[int, list[tuple[int, int]]] = {}
        for number, chosen in enumerate(choices, line):
            for layer, head in chosen:
                of_layer.setdefault(layer, []).append((number, head))
        handles = []
        for layer, cut in of_layer.items():
            point = self._z[layer]
            lines, heads = (torch.tensor(numbers, device=self._model.device) for numbers in zip(*cut, strict=True))
            mean_HW = means.get(layer)
            put_HW = None if mean_HW is None else torch.from_numpy(mean_HW).to(self._model.device)
            put_XW = None if put_HW is None else put_HW[heads]

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
                z_BTHW = changed.view(n_lines, -1, self._n_heads, changed.shape[-1] // self._n_heads)
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


def _on(point: HookPoint, take: object) -> torch.utils.hooks.RemovableHandle:
    """Hand what a point reads to a function, whenever it is computed."""
    if point.side == "input":
        return point.module.register_forward_pre_hook(
            lambda _, inputs, kwargs: take(read_point(point, inputs, kwargs, None)),  # type: ignore[operator]
            with_kwargs=True,
        )
    return point.module.register_forward_hook(
        lambda _, inputs, kwargs, output: take(read_point(point, inputs, kwargs, output)),  # type: ignore[operator]
        with_kwargs=True,
    )


def _stem_of(prompts: Sequence[Prompt]) -> int:
    """Return how many tokens all prompts begin with, less than any of them has."""
    shortest = min(len(prompt.token_ids_T) for prompt in prompts) - 1
    if len(prompts) == 1:
        return 0
    first_S = prompts[0].token_ids_T[:shortest]
    equal_MS = np.stack([prompt.token_ids_T[:shortest] == first_S for prompt in prompts])
    differs = np.flatnonzero(~equal_MS.all(axis=0))
    return int(differs[0]) if len(differs) else shortest


def _cut(value: object, n_tokens: int, first: int) -> object:
    """Return of what a block is given (rotary embeddings, position numbers) the part for the positions from `first` on.

    Raises
    ------
    ModelError
        It is a tensor of another kind, so that nobody knows what of it belongs to those positions.
    """
    import torch

    if isinstance(value, tuple | list):
        return type(value)(_cut(one, n_tokens, first) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() >= 2 and value.shape[0] == 1 and value.shape[1] == n_tokens:
        return value[:, first:]
    if value.dim() == 1 and value.shape[0] == n_tokens:
        return value[first:]
    raise ModelError(f"a block is given a tensor of shape {list(value.shape)} that is not one value a position")
