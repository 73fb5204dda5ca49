"""How arrays are cut into chunks and shards, and telling a lost shard from a shard of zeros.

Zarr readers fill in zeros for an object that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cliffstore.errors import DamagedStoreError
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

Vectors: TypeAlias = npt.NDArray[np.generic]
Piece: TypeAlias = tuple[int, Vectors]
"""The first of some consecutive rows, and the memory [rows, ...] that they go to."""

_LISTED_AT_ONCE = 1_000
_ONE_BY_ONE = 4
"""Shards that are looked up by themselves rather than in a listing, for each request that the listing takes."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How an array is cut: what is decoded at once (a chunk), and what is one object (a shard)."""

    n_rows: int
    chunk_rows: int
    shard_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def row_items(self) -> int:
        return math.prod(self.row_shape)

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_rows * self.row_items * self.dtype.itemsize


def check_inside(key: str, grid: Grid, first: int, last: int) -> None:
    """Raise `IndexError` where a row is outside of the array."""
    if first < 0 or last >= grid.n_rows:
        raise IndexError(f"array {key} has rows 0-{grid.n_rows - 1}, asked for {first}-{last}")


class ShardCheck:
    """Asks once for each shard that is read whether it is there."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._seen: set[str] = set()

    def check(self, key: str, grid: Grid, pieces: Sequence[Piece]) -> None:
        """Raise `DamagedStoreError` where a shard is missing or empty, `IndexError` where a row is outside."""
        units: set[int] = set()
        for first, block in pieces:
            last = first + len(block) - 1
            check_inside(key, grid, first, last)
            units.update(range(first // grid.shard_rows, last // grid.shard_rows + 1))
        unseen = {layout.shard(key, unit, len(grid.row_shape) + 1) for unit in units} - self._seen
        if len(unseen) > _ONE_BY_ONE * (1 + grid.n_rows // grid.shard_rows // _LISTED_AT_ONCE):
            listed = self._objects.sizes(key)
            self._seen.update(shard for shard, size in listed.items() if size)
            unseen -= self._seen
        for shard in sorted(unseen):
            if not self._objects.size(shard):
                raise DamagedStoreError(f"array {key} cannot be read: shard {shard} is missing or empty")
            self._seen.add(shard)
