"""Vectors of any rows, or of ranges of rows, as they are stored or as float32: what everything that reads goes through.

Rows are sorted, if they are not, and read chunk by chunk, each chunk once, all that an array has of a portion (16 MiB)
at the same time; while one portion is copied out, the next is read and decoded. A row that is asked for several times
is copied several times. Beside the result this takes two portions of memory. With a `ChunkCache` chunks also stay for
the next call: for callers that see a few thousand rows at a time and cannot say what comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from cliffstore.store.array_io import ArrayIO, Waiting, range_pieces
from cliffstore.store.arrays import to_float32, widen
from cliffstore.store.chunks import ChunkCache, Lease, Passing
from cliffstore.store.shards import Grid, Vectors, check_inside

_PORTION_BYTES = 16 << 20
_CACHED_BYTES = 1 << 20
"""What is copied at once, so that it is still in the processor's cache when it is converted."""


def read_rows(io: ArrayIO, key: str, rows_N: npt.NDArray[np.int64], *, cache: ChunkCache | None = None) -> Vectors:
    """Return rows as they are stored, [N, ...], in the given order. Errors as for `ArrayIO.fetch`."""
    if cache is None and len(rows_N) and (np.diff(rows_N) == 1).all():
        return io.read_range(key, int(rows_N[0]), int(rows_N[-1]) + 1)
    grid = io.grid(key)
    out = np.empty((len(rows_N), *grid.row_shape), dtype=grid.dtype)
    _gather(io, key, rows_N, out, None, cache)
    return out


def read_float32(
    io: ArrayIO, key: str, dtype: str, rows_N: npt.NDArray[np.int64], *, cache: ChunkCache | None = None
) -> npt.NDArray[np.float32]:
    """Return rows of an array of a (cliffstore) dtype as float32 [N, ...], in the given order."""
    out = np.empty((len(rows_N), *io.grid(key).row_shape), dtype=np.float32)
    _gather(io, key, rows_N, out, dtype, cache)
    return out


def scan(
    io: ArrayIO, key: str, ranges: Iterable[tuple[int, int]], dtype: str | None = None
) -> Iterator[tuple[int, Vectors]]:
    """Yield the first row and the vectors of each range, in order; the next is read meanwhile.

    Parameters
    ----------
    ranges : first row and the row behind the last; no chunk is read twice where these are multiples of its rows
    dtype : of the array, for float32; None for vectors as they are stored
    """
    grid, ahead = io.grid(key), deque[tuple[int, Vectors, Waiting]]()

    def next_one() -> tuple[int, Vectors]:
        first, block, waiting = ahead.popleft()
        waiting()
        return first, block if dtype is None else to_float32(block, dtype)

    for first, last in ranges:
        block = np.empty((last - first, *grid.row_shape), dtype=grid.dtype)
        ahead.append((first, block, io.fetch(key, range_pieces(grid, first, block))))
        if len(ahead) > 1:
            yield next_one()
    while ahead:
        yield next_one()


def _gather(
    io: ArrayIO, key: str, rows_N: npt.NDArray[np.int64], out: Vectors, dtype: str | None, cache: ChunkCache | None
) -> None:
    if not len(rows_N):
        return
    grid = io.grid(key)
    is_sorted = bool((rows_N[1:] >= rows_N[:-1]).all())
    order_N = None if is_sorted else np.argsort(rows_N, kind="stable")
    sorted_N = rows_N if order_N is None else rows_N[order_N]
    check_inside(key, grid, int(sorted_N[0]), int(sorted_N[-1]))
    chunk_N, place_N = np.divmod(sorted_N, grid.chunk_rows)
    begin_C = np.flatnonzero(np.diff(chunk_N, prepend=-1))
    chunk_C, end_C = chunk_N[begin_C], np.append(begin_C[1:], len(rows_N))
    step = min(max(_PORTION_BYTES // grid.chunk_bytes, 1), len(chunk_C))
    holder = cache or Passing(grid, step)
    copy = _Copy(grid, out.reshape(len(out), -1), order_N, dtype)
    leases: deque[tuple[slice, Lease]] = deque()

    def finish() -> None:
        portion, lease = leases[0]
        lease.wait()
        begin, end = int(begin_C[portion][0]), int(end_C[portion][-1])
        slot_N = np.repeat(lease.slot_C, end_C[portion] - begin_C[portion])
        copy.rows(lease.block, slot_N * grid.chunk_rows + place_N[begin:end], begin)
        leases.popleft()[1].release()

    try:
        for first in range(0, len(chunk_C), step):
            portion = slice(first, first + step)
            leases.append((portion, holder.lease(io, key, chunk_C[portion])))
            if len(leases) > 1:
                finish()
        while leases:
            finish()
    finally:
        for _, lease in leases:
            lease.release()


class _Copy:
    """Copies rows of decoded chunks to where they belong."""

    def __init__(self, grid: Grid, out: Vectors, order_N: npt.NDArray[np.int64] | None, dtype: str | None) -> None:
        self._out, self._order_N, self._dtype = out, order_N, None if dtype == "float32" else dtype
        self._step = min(max(_CACHED_BYTES // max(out[:1].nbytes, 1), 1), len(out))
        self._stored = np.empty((self._step, grid.row_items), dtype=grid.dtype)
        self._wide = np.empty((self._step, grid.row_items), dtype=np.float32)

    def rows(self, block: Vectors, index_R: npt.NDArray[np.int64], begin: int) -> None:
        """Copy rows `index_R` of a block [slots, chunk rows, ...]; the first is the one of rank `begin`."""
        flat = block.reshape(-1, self._stored.shape[1])
        for first in range(0, len(index_R), self._step):
            index = index_R[first : first + self._step]
            ranks = slice(begin + first, begin + first + len(index))
            self._place(self._taken(flat, index), ranks)

    def _taken(self, flat: Vectors, index: npt.NDArray[np.int64]) -> Vectors:
        if index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
            return flat[index[0] : index[-1] + 1]
        # "clip" only tells numpy not to check: without it, it would copy once more.
        return np.take(flat, index, axis=0, out=self._stored[: len(index)], mode="clip")

    def _place(self, stored: Vectors, ranks: slice) -> None:
        if self._order_N is None:
            if self._dtype is None:
                self._out[ranks] = stored
            else:
                widen(stored, self._dtype, self._out[ranks])
            return
        wide = self._wide[: len(stored)]
        if self._dtype is not None:
            widen(stored, self._dtype, wide)
        self._out[self._order_N[ranks]] = stored if self._dtype is None else wide
