"""Switching heads off: the score of a probe with some heads' z replaced, for many choices of heads at once.

For one prompt, one pass of the model gives keys and values of every position before the first that is ablated (no
choice of heads changes those), and what each block receives at the others. A choice of heads is then a line of a
batch: it begins at the block of its lowest head, with what the undisturbed model has there, and ends where the probe
reads. Lines that begin further up join on the way, so that the blocks below are not computed for them, and every block
sees one large batch in place of one pass a head. No LM head, no block above the probe.

Where all positions are ablated nothing of a prompt can be held, but what several prompts begin with is computed once a
choice: a line is then the common stem of some prompts and the rest of each behind it.

In 16-bit models a line in which nothing is ablated is in each batch, and lines that join are copies of it: effects are
differences within one batch, so that rounding that depends on the size of a batch is no effect.

Of the last block, only the rows that the probe reads are computed behind keys and values.

Blocks are called one by one with what the model itself gave them in the first pass (rotary embeddings and the like, cut
to the positions of the lines). Where a model does not let this be done, or where it disagrees with whole forward passes
(checked on a prompt), `by_whole_passes` gives the same more slowly.

Cost a prompt: one pass, then for each choice (positions ablated) x (blocks from its first to below the probe's) block
steps, and keys and values of the probe's block.

Legend: B lines, T positions of a prompt, K of them from the first that is ablated, D width of the stream, H heads, W
width of a head, M prompts, V choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ExtractionError
from cliffstore.model import attention
from cliffstore.model.branches import BranchAttention, KeysAlone, KeysFoundError, RowsAttention, StemAttention
from cliffstore.model.knockout_hooks import Heads, Means, ReadError, ablating, finding_nonfinite, keeping_z, reading
from cliffstore.model.sites import hook_points, locate
from cliffstore.model.tracing import stream_of
from cliffstore.model.traits import length_dependent_above
from cliffstore.model.undisturbed import Prompt, Undisturbed, fit_together, hold, rows_of
from cliffstore.records import FINAL_NORM, RESID_PRE, Z
from cliffstore.schema import ArrayIdentity, ModelIdentity

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FEWEST_TOKENS = 64
_SCORES_BYTES = 128 << 20
"""Of attention's scores in one block: what limits the lines of a pass beside its positions."""


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
    tokens : positions of all lines of a pass; `halve` makes them fewer
    shared : whether lines are made from what is held; `leave_sharing` says no
    whole_below : the longest example that may be run in part; None for any

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

        self._model, self.tokens, self._b = model, tokens, b
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
        self.whole_below = length_dependent_above(model.config)
        self._loaded_with = str(model.config._attn_implementation)
        self.shared = attention.install(model)
        if not self.shared:
            self.leave_sharing()

    def leave_sharing(self) -> None:
        """Go back to the attention that the model was loaded with, and to whole passes."""
        attention.uninstall(self._model, self._loaded_with)
        self.shared = False

    def fit_together(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether prompts may share the lines of a pass."""
        return len(prompts) == 1 or (self.shared and fit_together(prompts, self.tokens))

    def halve(self) -> bool:
        """Make passes of half as many positions from now on. Return whether they can be smaller."""
        if self.tokens <= _FEWEST_TOKENS:
            return False
        self.tokens //= 2
        return True

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

    def nonfinite_layer(self, prompt: Prompt, heads: Heads) -> int:
        """Return the first layer whose block gives NaN or Inf with heads off (none: as it is), or else the last."""
        with finding_nonfinite(self._blocks, -1 if heads else 0) as layers:
            self.by_whole_passes([prompt], [heads or ((self.layers[0], 0),)])
        return min(layers, default=self.layers[-1])

    def z_of(self, prompt: Prompt) -> dict[int, npt.NDArray[np.float32]]:
        """Return z of each of `layers` at the positions that are ablated, [K, H, W]: what means are made of."""
        import torch

        found: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            if self.shared:
                found = self._undisturbed([prompt], keep_z=True).z_KHW
            else:
                with keeping_z(self._z, found, prompt.first), reading(self._read) as read:
                    self._forward(prompt.token_ids_T[None], np.arange(len(prompt.token_ids_T)), read=read)
        return {layer: one.float().cpu().numpy() for layer, one in found.items()}

    def _parts(self, order: Sequence[int], held: Undisturbed, n_tokens: int) -> Iterator[list[int]]:
        """Cut choices, sorted by where they begin, into those of one pass."""
        n_new = held.n_new
        lines = self.tokens // n_new
        if held.bounds is None:
            lines = min(lines, _SCORES_BYTES // (self._n_heads * n_new * n_tokens * 4))
        lines = max(lines - self._with_plain, 1)
        for start in range(0, len(order), lines):
            yield list(order[start : start + lines])

    def _undisturbed(self, prompts: Sequence[Prompt], *, keep_z: bool) -> Undisturbed:
        """Run the model as it is, and hold what lines need of it."""
        z_KHW: dict[int, torch.Tensor] = {}
        first = prompts[0].first
        keeping = keeping_z(self._z if keep_z else {}, z_KHW, first)
        with keeping, reading(self._read) as read:
            run = partial(self._forward, read=read)
            held = hold(prompts, self._blocks, self._model.device, run)
        held.z_KHW = z_KHW
        held.scores_M = self._probe(read[0], [first + end for end in held.ends])[0]
        return held

    def _forward(
        self, token_ids_BT: npt.NDArray[np.int64], depth_T: npt.NDArray[np.int64], *, read: list[torch.Tensor]
    ) -> None:
        import torch

        ids_BT, depth_1T = (
            torch.from_numpy(np.array(one, dtype=np.int64)).to(self._model.device)
            for one in (token_ids_BT, depth_T[None])
        )
        with suppress(ReadError):
            self._model(input_ids=ids_BT, position_ids=depth_1T, use_cache=False)
        if not read:
            raise ExtractionError("what the probe reads was not computed in a forward pass")

    def _score_lines(self, held: Undisturbed, choices: Sequence[Heads], means: Means) -> npt.NDArray[np.float64]:
        """Run one batch of lines, sorted by where they begin; return their scores [B, M], of the plain line first."""
        import torch

        lines = BranchAttention(held.held, held.n_path) if held.bounds is None else StemAttention(held.bounds)
        joins = {layer: len(list(own)) for layer, own in groupby(choices, key=lambda heads: min(heads)[0])}
        begun = min(joins)
        hidden_BKD = held.hidden_1KD[begun][: self._with_plain]
        off = ablating(self._z, self._n_heads, choices, means, line=self._with_plain)
        with reading(self._read) as read, off, attention.attending(lines), suppress(ReadError):
            for layer in range(begun, len(self._blocks)):
                if layer in joins:
                    plain_1KD = hidden_BKD[:1] if self._with_plain else held.hidden_1KD[layer]
                    hidden_BKD = torch.cat([hidden_BKD, plain_1KD.expand(joins[layer], -1, -1)])
                if layer == self.layers[-1]:
                    hidden_BKD = self._read_rows(held, lines, layer, hidden_BKD)
                else:
                    args, kwargs = held.others[layer]
                    hidden_BKD = stream_of(self._blocks[layer](hidden_BKD, *args, **kwargs))
            if self._norm is not None:
                self._norm(hidden_BKD)
        is_cut = read[0].shape[1] == len(held.ends)
        return self._probe(read[0], range(len(held.ends)) if is_cut else held.ends)

    def _read_rows(
        self, held: Undisturbed, lines: BranchAttention | StemAttention, layer: int, hidden_BKD: torch.Tensor
    ) -> torch.Tensor:
        """Return what a block makes of the rows that the probe reads, [B, M, D], from keys and values of all."""
        block, (args, kwargs) = self._blocks[layer], held.others[layer]
        keys = KeysAlone()
        with attention.attending(keys), suppress(KeysFoundError):
            block(hidden_BKD, *args, **kwargs)
        if keys.found is None:
            raise ExtractionError(f"block {layer} has no attention that can be replaced")
        args, kwargs = rows_of((args, kwargs), held.n_new, held.ends)
        with attention.attending(RowsAttention(lines, keys.found)):
            return stream_of(block(hidden_BKD[:, held.ends], *args, **kwargs))

    def _by_whole_passes(
        self, prompt: Prompt, choices: Sequence[Heads], means: Means
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        scored_V, plain_V = np.zeros((2, len(choices)))
        n_tokens = len(prompt.token_ids_T)
        lines = max(self.tokens // n_tokens - 1, 1)
        for start in range(0, len(choices), lines):
            part = choices[start : start + lines]
            token_ids_BT = np.broadcast_to(prompt.token_ids_T, (len(part) + 1, n_tokens))
            with reading(self._read) as read, ablating(self._z, self._n_heads, part, means, line=1, first=prompt.first):
                self._forward(token_ids_BT, np.arange(n_tokens), read=read)
            found_B = self._probe(read[0], [n_tokens - 1])[:, 0]
            scored_V[start : start + len(part)], plain_V[start : start + len(part)] = found_B[1:], found_B[0]
        return scored_V, plain_V

    def _probe(self, hidden_BKD: torch.Tensor, ends: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the scores of each line at some positions, [B, M]."""
        scores_BM = hidden_BKD[:, list(ends)].float() @ self._w_D.to(hidden_BKD.device) + self._b
        found: npt.NDArray[np.float64] = scores_BM.double().cpu().numpy()
        return found
