"""Reading the groups of a dataset ahead of the batches that are cut from them.

A thread has the next `ahead` groups read into buffers, all pieces and layers of a group at the same time; the reader
of the store works in parallel. Rows lie in a buffer as they lie in the store: permuting is the one copy that a batch
needs to be independent of the buffer, which is filled again. What lies between rows that were chosen is read along,
where that is no more than the rows themselves; scattered rows are gathered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cliffstore.store import gather
from cliffstore.store.arrays import STORED_DTYPE, ArrayIO, Vectors
from cliffstore.train.epochs import Group, Integers
from cliffstore.train.items import Items

_WIDEST = 2
"""Rows of a buffer for each row that was chosen, at most."""


@dataclass(frozen=True, slots=True)
class Lines:
    """One batch: the item of each line, int64 [B], and its vectors as they are stored, [B, ...] a layer."""

    item_B: Integers
    blocks: tuple[Vectors, ...]


@dataclass(frozen=True, slots=True)
class _Filled:
    """A group's vectors: [rows, ...] a layer, where each item lies in them, and whether they may be filled again."""

    blocks: tuple[Vectors, ...]
    place_R: Integers
    is_buffer: bool


class Buffers:
    """Memory for groups of at most `n_rows` items, `ahead` of which are read before they are asked for."""

    def __init__(self, items: Items, arrays: ArrayIO, n_rows: int, ahead: int) -> None:
        self._items, self._arrays, self._ahead = items, arrays, ahead
        self._n_rows = n_rows if items.row_N is None else _WIDEST * n_rows
        self._free: list[tuple[Vectors, ...]] = []

    def batches(self, groups: Iterator[Group]) -> Iterator[Lines]:
        """Yield the batches of groups, in turn. Errors as for `ArrayIO.fetch`."""
        reading: deque[tuple[Group, Future[_Filled]]] = deque()
        with ThreadPoolExecutor(max(self._ahead, 1), thread_name_prefix="buffers") as pool:
            try:
                for group in groups:
                    reading.append((group, pool.submit(self._filled, group)))
                    if len(reading) > self._ahead:
                        yield from self._cut(*reading.popleft())
                while reading:
                    yield from self._cut(*reading.popleft())
            finally:
                for _, future in reading:
                    future.cancel()

    def _cut(self, group: Group, future: Future[_Filled]) -> Iterator[Lines]:
        filled, item_R = future.result(), group.items()
        for start, stop in group.bounds:
            order_B = group.order_R[start:stop]
            place_B = filled.place_R[order_B]
            yield Lines(item_R[order_B], tuple(_taken(block_RD, place_B) for block_RD in filled.blocks))
        if filled.is_buffer:
            self._free.append(filled.blocks)

    def _filled(self, group: Group) -> _Filled:
        rows_R = self._items.rows(group.items())
        ends = np.cumsum([count for _, count in group.spans])
        first_S = rows_R[np.concatenate([[0], ends[:-1]])]
        count_S = rows_R[ends - 1] + 1 - first_S
        at_S = np.cumsum(count_S) - count_S
        if count_S.sum() > _WIDEST * len(rows_R):
            blocks = tuple(gather.read_rows(self._arrays, spec.key, rows_R) for spec in self._items.specs)
            return _Filled(blocks, np.arange(len(rows_R)), is_buffer=False)
        blocks = self._idle()
        waits: list[Callable[[], None]] = []
        spans = list(zip(first_S.tolist(), at_S.tolist(), (at_S + count_S).tolist(), strict=True))
        for block_RD, spec in zip(blocks, self._items.specs, strict=True):
            waits.append(self._arrays.fetch(spec.key, [(first, block_RD[at:end]) for first, at, end in spans]))
        for wait in waits:
            wait()
        shift_S = at_S - first_S
        return _Filled(blocks, rows_R + np.repeat(shift_S, np.diff(ends, prepend=0)), is_buffer=True)

    def _idle(self) -> tuple[Vectors, ...]:
        try:
            return self._free.pop()
        except IndexError:  # to look first would let another thread take the last one meanwhile
            return self._room()

    def _room(self) -> tuple[Vectors, ...]:
        specs = self._items.specs
        return tuple(np.empty((self._n_rows, *spec.row_shape), STORED_DTYPE[spec.dtype]) for spec in specs)


def _taken(block_RD: Vectors, order_B: Integers) -> Vectors:
    out = np.empty((len(order_B), *block_RD.shape[1:]), block_RD.dtype)
    if (np.diff(order_B) == 1).all():
        np.copyto(out, block_RD[order_B[0] : order_B[0] + len(order_B)])
    else:
        # "clip" only tells NumPy not to check: without it, it would copy once more.
        np.take(block_RD, order_B, axis=0, out=out, mode="clip")
    return out
