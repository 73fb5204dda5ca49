"""Reading the groups of a dataset ahead of the batches that are cut from them.

A thread has the next `ahead` groups read into buffers, all pieces and layers of a group at the same time; the reader
of the store works in parallel. Rows lie in a buffer as they lie on the tape: permuting costs the one copy that a batch
needs to be independent of the buffer, which is filled again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cliffstore.store import gather
from cliffstore.store.arrays import STORED_DTYPE, ArrayIO, Vectors
from cliffstore.store.epochs import Group, Integers
from cliffstore.store.items import Items


@dataclass(frozen=True, slots=True)
class Lines:
    """One batch: the item of each line, int64 [B], and its vectors as they are stored, [B, ...] a layer."""

    item_B: Integers
    blocks: tuple[Vectors, ...]


class Buffers:
    """Memory for groups of at most `n_rows` items, `ahead` of which are read before they are asked for."""

    def __init__(self, items: Items, arrays: ArrayIO, n_rows: int, ahead: int) -> None:
        self._items, self._arrays, self._n_rows, self._ahead = items, arrays, n_rows, ahead
        self._free: list[tuple[Vectors, ...]] = []

    def batches(self, groups: Iterator[Group]) -> Iterator[Lines]:
        """Yield the batches of groups, in turn. Errors as for `ArrayIO.fetch`."""
        reading: deque[tuple[Group, Future[tuple[Vectors, ...]]]] = deque()
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

    def _cut(self, group: Group, filled: Future[tuple[Vectors, ...]]) -> Iterator[Lines]:
        blocks, item_R = filled.result(), group.items()
        for start, stop in group.bounds:
            order_B = group.order_R[start:stop]
            yield Lines(item_R[order_B], tuple(_taken(block_RD, order_B) for block_RD in blocks))
        self._free.append(blocks)

    def _filled(self, group: Group) -> tuple[Vectors, ...]:
        """Return the vectors of a group as they lie on the tape."""
        items, arrays = self._items, self._arrays
        if items.row_N is not None:
            rows_R = items.row_N[group.items()]
            return tuple(gather.read_rows(arrays, spec.key, rows_R) for spec in items.specs)
        blocks = self._free.pop() if self._free else self._room()
        waits: list[Callable[[], None]] = []
        for block_RD, spec in zip(blocks, items.specs, strict=True):
            at, pieces = 0, []
            for first, count in group.spans:
                pieces.append((first, block_RD[at : at + count]))
                at += count
            waits.append(arrays.fetch(spec.key, pieces))
        for wait in waits:
            wait()
        return blocks

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
