"""Rows of attention that are read as blocks compute it: summed by segment at once, and let go.

Scores are scaled, soft-capped where the model does so, masked as causal attention and the block's sliding window are,
with the block's sink if it has one; their softmax is in float32. Memory is that of one head's rows, at most `_ROWS` of
S floats, whatever the number of heads.

Legend: B lines of a pass, T positions of a line, Q positions that look, S keys, H chosen heads, G segments, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ExtractionError
from cliffstore.records import SEGMENTS

if TYPE_CHECKING:
    import torch

Head = tuple[int, int]
"""Layer and head, each from 0."""

_ROWS = 256


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


class AllReadError(Exception):
    """The last head has been read; what is above it need not be computed."""


@dataclass(slots=True)
class RowReader:
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
            raise AllReadError

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
