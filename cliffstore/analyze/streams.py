"""Streams of stored vectors: rows cut into shares for workers and, inside a worker, into blocks and tiles.

A share is what one task works through: row numbers and labels travel to it, sums come back. Shares depend on the rows
alone, not on how many workers there are. Rows are sorted, and no chunk lies in two blocks unless it is larger than a
block, so one pass decodes each chunk once and needs no cache. While a block is worked on the next one is read.

Memory of a worker: two blocks as stored, one in float32 (`BLOCK_BYTES`), one tile in float64.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.mapping import Mapper
from cliffstore.store.array_io import ArrayIO
from cliffstore.store.arrays import ArraySpec, open_arrays, to_float32
from cliffstore.store.gather import read_rows
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BLOCK_BYTES = 16 << 20
"""Of a block in float32."""
_TILE_BYTES = 4 << 20
"""Of a tile in float64: stays in a processor's cache while it is worked on."""
_BLOCKS_OF_A_SHARE = 8


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One stored array, as a worker opens it.

    Attributes
    ----------
    unit_rows, chunk_rows : rows of a shard and of an inner chunk
    opened : of one fit; a later one sees what the store has got meanwhile
    """

    url: str
    storage_options: Mapping[str, object]
    spec: ArraySpec
    unit_rows: int
    chunk_rows: int
    opened: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def width(self) -> int:
        """Numbers of a vector; heads are laid side by side."""
        return int(np.prod(self.spec.row_shape))

    @property
    def block_rows(self) -> int:
        return max(BLOCK_BYTES // (4 * self.width), 1)

    @property
    def tile_rows(self) -> int:
        """Rows of a tile: enough of them to be worth a product of width x width."""
        return max(_TILE_BYTES // (8 * self.width), self.width // 4, 1)


def stored_array(reader: StoreReader, site: str, layer: int, alias: str | None, rows_N: Rows) -> StoredArray:
    """Return the array of a (model, site, layer), of which `rows_N` are all extracted.

    Raises
    ------
    StoreError
        The array is not captured, or one of the rows is not extracted.
    """
    spec = reader.find_extracted(site, layer, rows_N, alias)
    chunking = reader.manifest.chunking
    return StoredArray(reader.url, reader.objects.storage_options, spec, chunking.unit_rows, chunking.chunk_rows)


def cut(rows_N: Rows, most: int, chunk_rows: int, unit_rows: int | None = None) -> list[slice]:
    """Cut sorted rows into pieces of at most `most`, at borders of chunks where there is one.

    Parameters
    ----------
    unit_rows : no piece goes over a border of units of so many rows
    """
    n = len(rows_N)
    borders = np.flatnonzero(np.diff(rows_N // chunk_rows)) + 1
    walls = np.flatnonzero(np.diff(rows_N // unit_rows)) + 1 if unit_rows else np.empty(0, dtype=np.int64)
    pieces, start = [], 0
    while start < n:
        wall = np.searchsorted(walls, start, side="right")
        stop = end = int(walls[wall]) if wall < len(walls) else n
        if end - start > most:
            stop = start + most
            border = np.searchsorted(borders, stop, side="right") - 1
            if border >= 0 and borders[border] > start:
                stop = int(borders[border])
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def shares(source: StoredArray, rows_N: Rows) -> list[slice]:
    """Cut sorted rows into shares."""
    return cut(rows_N, max(source.block_rows * _BLOCKS_OF_A_SHARE, source.width), source.chunk_rows)


def blocks(source: StoredArray, rows_N: Rows) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield which of the sorted rows a block has, and its vectors as float32 [n, width]."""
    arrays = _opened(source)
    pieces = cut(rows_N, source.block_rows, source.chunk_rows, source.unit_rows)
    with ThreadPoolExecutor(1, thread_name_prefix="read") as ahead:
        reads = (ahead.submit(read_rows, arrays, source.spec.key, rows_N[piece]) for piece in pieces)
        coming = next(reads, None)
        for piece in pieces:
            assert coming is not None
            stored, coming = coming.result(), next(reads, None)
            yield piece, to_float32(stored, source.spec.dtype).reshape(len(stored), source.width)


def tiles(source: StoredArray, rows_N: Rows) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield which of the sorted rows a tile has, and its vectors as float32 [n, width]: a view of a block."""
    for piece, h_ND in blocks(source, rows_N):
        for first in range(0, len(h_ND), source.tile_rows):
            tile_TD = h_ND[first : first + source.tile_rows]
            yield slice(piece.start + first, piece.start + first + len(tile_TD)), tile_TD


def vectors(source: StoredArray, rows_N: Rows) -> npt.NDArray[np.float32]:
    """Return the vectors of rows, float32 [N, width], in the order given, read in this process."""
    order_N = np.argsort(rows_N, kind="stable")
    sorted_N = rows_N[order_N]
    found_ND = np.empty((len(rows_N), source.width), dtype=np.float32)
    for piece, h_ND in blocks(source, sorted_N):
        found_ND[order_N[piece]] = h_ND
    return found_ND


_open: dict[str, ArrayIO] = {}
"""The arrays of the last source of this process."""


def _opened(source: StoredArray) -> ArrayIO:
    if source.opened not in _open:
        _open.clear()
        _open[source.opened] = open_arrays(ObjectStore(source.url, source.storage_options))
    return _open[source.opened]


@dataclass(frozen=True, slots=True)
class _Scoring:
    source: StoredArray
    rows_N: Rows
    probes: tuple[ProbeWeights, ...]
    which_N: npt.NDArray[np.int8] | None


def scores(
    source: StoredArray,
    rows_N: Rows,
    weights: ProbeWeights | Sequence[ProbeWeights],
    mapper: Mapper,
    which_N: npt.NDArray[np.integer] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the score of each row, float32 [N], in the order given: one pass over the rows.

    Parameters
    ----------
    weights : a probe, or several, of which `which_N` says for each row by which one it is scored
    """
    order_N = np.argsort(rows_N, kind="stable")
    sorted_N = rows_N[order_N]
    probes = (weights,) if isinstance(weights, ProbeWeights) else tuple(weights)
    chosen_N = None if which_N is None else which_N[order_N].astype(np.int8)
    tasks = (
        _Scoring(source, sorted_N[share], probes, None if chosen_N is None else chosen_N[share])
        for share in shares(source, sorted_N)
    )
    found = np.empty(len(rows_N), dtype=np.float32)
    found[order_N] = np.concatenate([np.empty(0, dtype=np.float32), *mapper.map(_score, tasks)])
    return found


def _score(task: _Scoring) -> npt.NDArray[np.float32]:
    found = np.empty(len(task.rows_N), dtype=np.float32)
    for piece, h_ND in blocks(task.source, task.rows_N):
        if task.which_N is None:
            found[piece] = task.probes[0].scores(h_ND)
            continue
        for number in np.unique(task.which_N[piece]):
            of_it = task.which_N[piece] == number
            found[piece][of_it] = task.probes[number].scores(h_ND[of_it])
    return found
