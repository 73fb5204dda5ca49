"""What reads and writes arrays: the protocol, and what its backends have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from cliffstore.errors import DamagedStoreError
from cliffstore.store.shards import Grid, Piece, Vectors, check_inside

_BLOCK_BYTES = 16 << 20

Waiting: TypeAlias = Callable[[], None]
"""Returns once what was begun is done, or raises its error."""


class ArrayIO(Protocol):
    """Reads and writes rows of the arrays of one store. Threads may share it."""

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        """Write the same rows of several arrays; all are durable, or an error is raised, when it returns.

        Parameters
        ----------
        blocks : array key -> [rows, ...]; one of a whole shard becomes one object. May be changed afterwards.
        """

    def grid(self, key: str) -> Grid:
        """Return how an array is cut."""

    def fetch(self, key: str, pieces: Sequence[Piece]) -> Waiting:
        """Begin to read ranges of rows, all at the same time, into given memory; the answer waits until they are there.

        Raises
        ------
        IndexError, DamagedStoreError
            A row is outside of the array; it, or one of its shards, is not there or damaged. Here or in the answer.
        """

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        """Read a contiguous range of rows. Errors as for `fetch`."""


class RangeReader(ABC):
    """Ranges by `fetch`."""

    @abstractmethod
    def grid(self, key: str) -> Grid: ...

    @abstractmethod
    def fetch(self, key: str, pieces: Sequence[Piece]) -> Waiting: ...

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        grid = self.grid(key)
        check_inside(key, grid, row_start, max(row_start, row_stop - 1))
        block = np.empty((row_stop - row_start, *grid.row_shape), dtype=grid.dtype)
        self.fetch(key, range_pieces(grid, row_start, block))()
        return block


def range_pieces(grid: Grid, row_start: int, block: Vectors) -> list[Piece]:
    """Cut a range into pieces that are read at the same time; they meet between chunks, so that none is read twice."""
    step = max(_BLOCK_BYTES // grid.chunk_bytes, 1) * grid.chunk_rows
    row_stop = row_start + len(block)
    firsts = [row_start, *range((row_start // step + 1) * step, row_stop, step)]
    return [(first, block[first - row_start : (first // step + 1) * step - row_start]) for first in firsts]


def unreadable(key: str, error: Exception) -> DamagedStoreError:
    """Return the error of an array that a backend could not read."""
    return DamagedStoreError(f"array {key} cannot be read: {str(error).splitlines()[0][:300]}")
