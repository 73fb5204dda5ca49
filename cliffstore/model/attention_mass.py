"""How much attention chosen heads pay to each segment, from chosen positions.

The model runs with an attention function of our own, which computes what `attention.attend` computes and, in the blocks
of chosen heads, once more the rows of chosen positions: scaled scores, soft-capped where the model does so, masked as
causal attention and the block's sliding window are, with the block's sink if it has one, and their softmax in float32.
The rows are summed by segment at once and let go: memory is that of one head's rows, at most `_ROWS` of S floats,
whatever the number of heads. The pass ends with the highest of these blocks.

Not every model can be read: one that does not let its attention be replaced, layers of another kind of attention
(linear, chunked, state space), and models that disagree with their own plain forward pass are refused.

Legend: B lines of a pass, T positions of a line, Q positions that look, S keys, H chosen heads, G segments, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model import attention
from cliffstore.model.attention import PassAttention, attend, attending
from cliffstore.model.sites import locate
from cliffstore.model.traits import windows_of
from cliffstore.records import SEGMENTS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "cliffstore_mass"
Head = tuple[int, int]
"""Layer and head, each from 0."""

_ROWS = 256
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest |difference| / |plain| of what the blocks return; a wrong mask shows as several tenths."""


@dataclass(frozen=True, slots=True)
class Line:
    """One example.

    Attributes
    ----------
    token_ids_T : int64
    segments_T : uint8, indices into `SEGMENTS`
    queries_Q : int64, positions that look, at least one
    """

    token_ids_T: npt.NDArray[np.int64]
    segments_T: npt.NDArray[np.uint8]
    queries_Q: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LineMass:
    """Means over the Q positions of a line.

    Attributes
    ----------
    mass_HG : float32, attention paid to each segment; a row sums to 1, less where the model has attention sinks
    share_HG : float32, part of the tokens that a head sees there that is of each segment; a row sums to 1
    """

    mass_HG: npt.NDArray[np.float32]
    share_HG: npt.NDArray[np.float32]


class AttentionMass:
    """A model cut down to what the attention of chosen heads needs.

    Parameters
    ----------
    model : without LM head, in evaluation mode; blocks above the highest chosen head are dropped
    heads : the order of H
    n_layers, n_heads : of the whole model

    Raises
    ------
    ModelError
        There is no such head, or attention cannot be read in this model.
    """

    def __init__(self, model: PreTrainedModel, heads: Sequence[Head], n_layers: int, n_heads: int) -> None:
        check_heads(heads, n_layers, n_heads)
        kind = type(model).__name__
        expected = windows_of(model.config, n_layers)
        if expected is None:
            raise ModelError(
                f"model {kind}: some of its layers are not plain attention over positions, which is not read"
            )
        self.heads = tuple(heads)
        self._windows = expected
        self._model = model
        self._n_blocks = max(layer for layer, _ in heads) + 1
        locate(model, n_layers).keep_blocks(self._n_blocks)
        self._loaded_with = str(model.config._attn_implementation)
        if not _install(model):
            attention.uninstall(model, self._loaded_with)
            raise ModelError(f"model {kind} does not let its attention be replaced, so it cannot be read")

    def check(self, line: Line) -> None:
        """Hold a pass of ours against one of the model as it was loaded. Raises `ModelError` where they disagree."""
        import torch

        ids_1T = torch.from_numpy(line.token_ids_T)[None].to(self._model.device)
        reader = _Reader(self.heads, [line], last=-1)
        with torch.inference_mode():
            with _reading(reader, _pass_of(ids_1T)):
                found_1TD = self._model(ids_1T, use_cache=False).last_hidden_state.float()
            attention.uninstall(self._model, self._loaded_with)
            try:
                plain_1TD = self._model(ids_1T, use_cache=False).last_hidden_state.float()
            finally:
                _install(self._model)
        kind = type(self._model).__name__
        asked = {layer: window for layer, window in reader.windows.items() if window != self._windows[layer]}
        if asked or set(reader.windows) != set(range(self._n_blocks)):
            raise ModelError(
                f"model {kind}: some of its layers are not plain attention over positions, which is not read"
            )
        error = float(((found_1TD - plain_1TD).norm(dim=-1) / (plain_1TD.norm(dim=-1) + 1e-30)).max())
        if not error <= _TOLERANCE[str(self._model.dtype).removeprefix("torch.")]:
            raise ModelError(f"model {kind}: its attention cannot be read: a plain forward pass differs by {error:.1e}")

    def measure(self, lines: Sequence[Line]) -> list[LineMass]:
        """Return the mass of each line. Lines go through side by side, padded on the right, where nothing looks.

        Raises
        ------
        ExtractionError
            A block did not compute attention as it did when the model was checked.
        """
        import torch

        longest = max(len(line.token_ids_T) for line in lines)
        ids_BT = torch.zeros((len(lines), longest), dtype=torch.int64)
        for line, ids_T in zip(lines, ids_BT, strict=True):
            ids_T[: len(line.token_ids_T)] = torch.from_numpy(line.token_ids_T)
        ids_BT = ids_BT.to(self._model.device)
        positions_BT = torch.arange(longest, device=ids_BT.device).expand(ids_BT.shape)
        reader = _Reader(self.heads, lines, last=self._n_blocks - 1)
        with torch.inference_mode(), _reading(reader, _pass_of(ids_BT)), suppress(_AllReadError):
            self._model(ids_BT, position_ids=positions_BT, use_cache=False)
        return reader.found()


def check_heads(heads: Sequence[Head], n_layers: int, n_heads: int) -> None:
    """Raise `ModelError` where there is no such head, or none is named."""
    if not heads:
        raise ModelError("no head is named: say some as LAYER:HEAD, such as 3:1,5:0")
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ModelError(
                f"head {layer}:{head} is not in the model, which has layers 0-{n_layers - 1} of heads 0-{n_heads - 1}"
            )


class _AllReadError(Exception):
    """The last head has been read; what is above it need not be computed."""


@dataclass(slots=True)
class _Reader:
    """Reads rows of attention as the blocks compute it, up to the block `last`."""

    heads: Sequence[Head]
    lines: Sequence[Line]
    last: int
    windows: dict[int, int | None] = field(default_factory=dict)
    _mass: dict[Head, list[npt.NDArray[np.float32]]] = field(default_factory=dict)
    _share: dict[int, list[npt.NDArray[np.float32]]] = field(default_factory=dict)

    def __call__(
        self,
        layer: int,
        query_BHTD: torch.Tensor,
        key_BHTD: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks_H: torch.Tensor | None,
    ) -> None:
        self.windows[layer] = window
        if self.last < 0:
            return
        own = [head for at, head in self.heads if at == layer]
        repeats = query_BHTD.shape[1] // key_BHTD.shape[1]
        for head in own:
            self._mass[layer, head] = [
                self._read(
                    line, query_BHTD[b, head], key_BHTD[b, head // repeats], scale, window, softcap, sinks_H, head
                )
                for b, line in enumerate(self.lines)
            ]
        if own:
            self._share[layer] = [_share(line, window) for line in self.lines]
        if layer == self.last:
            raise _AllReadError

    def found(self) -> list[LineMass]:
        missing = [head for head in self.heads if head not in self._mass]
        if missing:
            raise ExtractionError(f"attention of layer {missing[0][0]} was not computed in a forward pass")
        return [
            LineMass(
                np.stack([self._mass[head][b] for head in self.heads]),
                np.stack([self._share[layer][b] for layer, _ in self.heads]),
            )
            for b in range(len(self.lines))
        ]

    def _read(
        self,
        line: Line,
        query_TD: torch.Tensor,
        key_TD: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks_H: torch.Tensor | None,
        head: int,
    ) -> npt.NDArray[np.float32]:
        """Return the mean mass of one head by segment, float32 [G]."""
        import torch

        n_keys = int(line.queries_Q.max()) + 1
        key_SD = key_TD[:n_keys].float()
        is_of_SG = _membership(line.segments_T[:n_keys], key_SD.device)
        total_G = torch.zeros(len(SEGMENTS), device=key_SD.device)
        for first in range(0, len(line.queries_Q), _ROWS):
            rows_Q = torch.from_numpy(line.queries_Q[first : first + _ROWS]).to(key_SD.device)
            scores_QS = query_TD.index_select(0, rows_Q).float() @ key_SD.T * scale
            if softcap is not None:
                scores_QS = softcap * torch.tanh(scores_QS / softcap)
            scores_QS = scores_QS.masked_fill_(~_sees(rows_Q, n_keys, window), float("-inf"))
            if sinks_H is not None:
                sink_Q1 = sinks_H.flatten()[head].float().expand(len(rows_Q), 1)
                scores_QS = torch.cat([scores_QS, sink_Q1], dim=1)
            weights_QS = torch.softmax(scores_QS, dim=-1)[:, :n_keys]
            total_G += (weights_QS @ is_of_SG).sum(0)
        return (total_G / len(line.queries_Q)).cpu().numpy()


def _share(line: Line, window: int | None) -> npt.NDArray[np.float32]:
    """Return the part of each segment of the tokens that are seen, the mean over the positions that look, [G]."""
    of_TG = np.eye(len(SEGMENTS), dtype=np.float32)[line.segments_T]
    until_TG = np.concatenate([np.zeros((1, len(SEGMENTS)), dtype=np.float32), np.cumsum(of_TG, axis=0)])
    end_Q = line.queries_Q + 1
    begin_Q = np.zeros_like(end_Q) if window is None else np.maximum(end_Q - window, 0)
    counts_QG = until_TG[end_Q] - until_TG[begin_Q]
    mean_G: npt.NDArray[np.float32] = (counts_QG / counts_QG.sum(axis=1, keepdims=True)).mean(axis=0)
    return mean_G


def _sees(rows_Q: torch.Tensor, n_keys: int, window: int | None) -> torch.Tensor:
    import torch

    distance_QS = rows_Q[:, None] - torch.arange(n_keys, device=rows_Q.device)[None, :]
    sees_QS = distance_QS >= 0
    return sees_QS if window is None else sees_QS & (distance_QS < window)


def _membership(segments_S: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    import torch

    return torch.eye(len(SEGMENTS), device=device)[torch.from_numpy(segments_S.astype(np.int64)).to(device)]


_READING: ContextVar[_Reader] = ContextVar("reading")


@contextmanager
def _reading(reader: _Reader, current: PassAttention) -> Iterator[None]:
    token = _READING.set(reader)
    try:
        with attending(current):
            yield
    finally:
        _READING.reset(token)


def _pass_of(ids_BT: torch.Tensor) -> PassAttention:
    import torch

    n_tokens = ids_BT.shape[1]
    depth_S = torch.arange(n_tokens, device=ids_BT.device)
    return PassAttention(n_queries=n_tokens, depth_S=depth_S, ends_S=None, past={}, carry_C=None)


def _install(model: PreTrainedModel) -> bool:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend_and_read)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError, NotImplementedError):
        return False
    return all(config._attn_implementation == NAME for config in (model.config, model.config.get_text_config()))


def _attend_and_read(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; what is not done is refused by `attention.attend`."""
    found = attend(
        module,
        query_BHTD,
        key_BHTD,
        value_BHTD,
        attention_mask,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        s_aux=s_aux,
        **other,
    )
    scale = scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5
    _READING.get()(int(module.layer_idx), query_BHTD, key_BHTD, scale, sliding_window, softcap, s_aux)
    return found
