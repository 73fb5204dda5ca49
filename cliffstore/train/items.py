"""The rows that a dataset is made of: which stored rows of which arrays, in pieces, with columns beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.errors import ConfigError, StoreError
from cliffstore.store.arrays import ArraySpec
from cliffstore.store.catalog import Catalog
from cliffstore.store.pairs import IN_TURN, extracted_in_all, find_pairs
from cliffstore.store.reader import StoreReader
from cliffstore.train.epochs import Integers, Pieces

Column: TypeAlias = "npt.NDArray[np.generic] | pa.Array"


@dataclass(frozen=True, slots=True)
class Items:
    """What a worker needs to know to read any item.

    Attributes
    ----------
    specs : the arrays, one a layer, of equal row shapes
    pieces : runs of items that share no chunk
    row_N : the row of each item, ascending, int64 [N]; None where an item's number is its row
    columns : values by item: an array of numbers, or Arrow's
    digest : sha256 over arrays, captures, pieces and rows
    """

    specs: tuple[ArraySpec, ...]
    pieces: Pieces
    row_N: Integers | None
    columns: dict[str, Column]
    digest: str

    def rows(self, items_B: Integers) -> Integers:
        """Return the rows of items."""
        return items_B if self.row_N is None else self.row_N[items_B]


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """What a dataset asks of a store; see `ActivationDataset`."""

    site: str
    layers: tuple[int, ...]
    model: str | None
    where: str | None
    columns: tuple[str, ...]
    piece_rows: int


def find_items(url: str, options: Mapping[str, object], query: ItemQuery, notice: Callable[[str], None]) -> Items:
    """Return the items that a query finds. Receipts decide; vectors are not read.

    Raises
    ------
    StoreError, QueryError
        There is no such store, site or layer; the condition is no SQL; nothing is found.
    """
    if not query.layers:
        raise ConfigError("layer: at least one must be given")
    reader = StoreReader(url, options)
    found = [reader.find_array(query.site, layer, query.model) for layer in query.layers]
    captures = sorted({capture.capture for capture, _ in found})
    specs = tuple(spec for _, spec in found)
    if len({spec.row_shape for spec in specs}) > 1:
        raise StoreError(f"layers of {query.site} have rows of different shapes and cannot be stacked: ask for one")
    chunking = reader.manifest.chunking
    piece_rows = -(-query.piece_rows // chunking.chunk_rows) * chunking.chunk_rows
    row_N: Integers | None = None
    columns: dict[str, Column] = {}
    if query.where is None and not query.columns:
        pieces = _all_rows(reader, captures, piece_rows, notice)
    else:
        row_N, columns = _chosen_rows(reader, captures, query, notice)
        pieces = _pieces_of(row_N, chunking.unit_rows, piece_rows)
    return Items(specs, pieces, row_N, columns, _digest(specs, captures, pieces, row_N))


def _all_rows(reader: StoreReader, captures: Sequence[str], piece_rows: int, notice: Callable[[str], None]) -> Pieces:
    units = [unit for unit in reader.plan_tables.units.values() if unit.n_rows]
    first_U = np.array([unit.row_start for unit in units], dtype=np.int64)
    count_U = np.array([unit.n_rows for unit in units], dtype=np.int64)
    held_U = extracted_in_all(reader, captures, first_U)
    if not held_U.any():
        raise StoreError(f"store {reader.url} has no extracted unit of {' and '.join(captures)}")
    if not held_U.all():
        notice(
            f"{int((~held_U).sum()):,} of {len(units):,} units are not extracted yet: "
            f"{int(count_U[~held_U].sum()):,} rows are left out"
        )
    first_U, count_U = first_U[held_U], count_U[held_U]
    pieces_U = -(-count_U // piece_rows)
    number_P = np.arange(pieces_U.sum()) - np.repeat(np.cumsum(pieces_U) - pieces_U, pieces_U)
    first_P = np.repeat(first_U, pieces_U) + number_P * piece_rows
    return Pieces(first_P, np.minimum(np.repeat(first_U + count_U, pieces_U) - first_P, piece_rows))


def _chosen_rows(
    reader: StoreReader, captures: Sequence[str], query: ItemQuery, notice: Callable[[str], None]
) -> tuple[Integers, dict[str, Column]]:
    """Return the distinct rows of the pairs that satisfy the condition, ascending, and columns of the first of each."""
    with Catalog(reader) as catalog:
        table = find_pairs(
            catalog,
            captures,
            where=query.where,
            columns=["row", *query.columns],
            order=f"row, {IN_TURN}",
            limit=None,
            notice=notice,
        )
    row_N = table["row"].to_numpy()
    is_first_N = np.concatenate([[True], row_N[1:] != row_N[:-1]])
    table = table.filter(pa.array(is_first_N)).combine_chunks()
    columns = {name: _values(table[name]) for name in query.columns if name != "row"}
    return row_N[is_first_N].astype(np.int64), columns


def _values(column: pa.ChunkedArray) -> Column:
    is_number = (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    )
    if is_number and not column.null_count:
        return column.to_numpy()
    return pa.concat_arrays(column.chunks)


def _pieces_of(row_N: Integers, unit_rows: int, piece_rows: int) -> Pieces:
    pieces_in_unit = -(-unit_rows // piece_rows)
    piece_N = row_N // unit_rows * pieces_in_unit + row_N % unit_rows // piece_rows
    first_P = np.flatnonzero(np.concatenate([[True], piece_N[1:] != piece_N[:-1]])).astype(np.int64)
    return Pieces(first_P, np.diff(np.append(first_P, len(row_N))))


def _digest(specs: Sequence[ArraySpec], captures: Sequence[str], pieces: Pieces, row_N: Integers | None) -> str:
    found = hashlib.sha256(json.dumps([[spec.key for spec in specs], list(captures)]).encode())
    for numbers in (pieces.first_P, pieces.count_P, row_N):
        if numbers is not None:
            found.update(numbers.astype("<i8").tobytes())
    return found.hexdigest()
