"""What the vector functions of SQL compute: from columns of rows, layers, models and probes to columns of vectors.

DuckDB calls with some two thousand rows at a time, in the order in which it comes to them, on several threads. Each
chunk of an array is decoded once as long as it fits the reader's cache of chunks; where an array is much larger than
that and rows come in no order, `ORDER BY row` in a subquery brings the rows of a chunk together:

    SELECT avg(array_inner_product(resid_post(row, 20), probe_weight('p'))) FROM (SELECT row FROM tokens ORDER BY row)

Layers, models and probes are nearly always the same in a whole call; they are told apart by a dictionary, and no value
of a row becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.errors import ProbeError, StoreError
from cliffstore.schema import ProbeDocument
from cliffstore.store.probes import ProbeWeights, read_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.running import Column

Places: TypeAlias = "npt.NDArray[np.int64] | slice"
Flags: TypeAlias = npt.NDArray[np.bool_]
Found: TypeAlias = tuple[Places, Flags, npt.NDArray[np.float32]]
"""Places in a column [M], which of them have an answer [M], and the answers of those [K, width]."""
_ALL = slice(None)


def gather(reader: StoreReader, site: str, width: int) -> Callable[[Column, Column, Column], pa.Array]:
    """Return the function `(row, layer, model) -> FLOAT[width]` of a site; NULL where a row is not extracted."""

    def gathered(row: Column, layer: Column, model: Column) -> pa.Array:
        rows_N, given_N = _integers(row)
        found: list[Found] = []
        for (number, alias), at in _groups(given_N, layer, model):
            is_there, h_KD = reader.extracted_vectors(site, number, rows_N[at], alias)
            if (own := h_KD.shape[1]) != width:
                raise StoreError(
                    f"{site} of model {alias!r}, layer {number}, has vectors of {own} numbers, and in SQL {site}() "
                    f"gives {width}: read it with Store.activations"
                )
            found.append((at, is_there, h_KD))
        flat, is_missing = _joined(len(rows_N), width, found)
        return pa.FixedSizeListArray.from_arrays(flat, width, mask=is_missing)

    return gathered


def score(reader: StoreReader) -> Callable[[Column, Column], pa.Array]:
    """Return the function `(probe, row) -> FLOAT`; NULL where a row is not extracted."""

    @cache
    def probe_of(name: str) -> tuple[ProbeDocument, ProbeWeights]:
        return read_probe(reader.objects, name)

    def scored(probe: Column, row: Column) -> pa.Array:
        rows_N, given_N = _integers(row)
        found: list[Found] = []
        for (name,), at in _groups(given_N, probe):
            document, weights = probe_of(name)
            is_there, h_KD = reader.extracted_vectors(document.site, document.layer, rows_N[at], document.alias)
            found.append((at, is_there, weights.scores(h_KD)[:, None]))
        flat, is_missing = _joined(len(rows_N), 1, found)
        return flat if is_missing is None else pa.array(flat.to_numpy(), mask=is_missing.to_numpy(zero_copy_only=False))

    return scored


def probe_weight(reader: StoreReader, width: int) -> Callable[[Column], pa.Array]:
    """Return the function `(probe) -> FLOAT[width]`."""

    @cache
    def weights_of(name: str) -> npt.NDArray[np.float32]:
        w_D = read_probe(reader.objects, name)[1].w_D
        if len(w_D) != width:
            raise ProbeError(
                f"probe {name!r} has {len(w_D)} weights, and in SQL probe_weight() gives {width}: use "
                f"score('{name}', row)"
            )
        return w_D

    def weights(probe: Column) -> pa.Array:
        everywhere, found = np.ones(len(probe), dtype=np.bool_), []
        for (name,), at in _groups(everywhere, probe):
            there = everywhere[at]
            found.append((at, there, np.tile(weights_of(name), (len(there), 1))))
        flat, is_missing = _joined(len(probe), width, found)
        return pa.FixedSizeListArray.from_arrays(flat, width, mask=is_missing)

    return weights


def elementwise(operation: np.ufunc, width: int) -> Callable[[Column, Column], pa.Array]:
    """Return the function `(vector, vector) -> FLOAT[width]` that adds or subtracts; NULL where one is NULL."""

    def calculate(left: Column, right: Column) -> pa.Array:
        (left_N, left_given), (right_N, right_given) = _flat(left, width), _flat(right, width)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(operation(left_N, right_N)), width, mask=pa.array(~(left_given & right_given))
        )

    return calculate


def _groups(given_N: Flags, *columns: Column) -> Iterator[tuple[tuple, Places]]:
    """Yield each distinct combination of values, and where it is; not where one is null or `given_N` is false."""
    encoded = [_whole(column).dictionary_encode() for column in columns]
    codes = [one.indices.fill_null(-1).to_numpy() for one in encoded]
    values = [one.dictionary.to_pylist() for one in encoded]
    joint_N = np.zeros(len(given_N), dtype=np.int64)
    for code_N, known in zip(codes, values, strict=True):
        joint_N = joint_N * len(known) + code_N
        given_N = given_N & (code_N >= 0)
    for joint in np.unique(joint_N[given_N]):
        at = np.flatnonzero(given_N & (joint_N == joint))
        combination = tuple(known[code_N[at[0]]] for code_N, known in zip(codes, values, strict=True))
        yield combination, _ALL if len(at) == len(given_N) else at


def _joined(n: int, width: int, found: Sequence[Found]) -> tuple[pa.Array, pa.Array | None]:
    """Return the values of `n` answers in a row, and which have none; None where all have one."""
    if len(found) == 1 and isinstance(found[0][0], slice) and found[0][1].all():
        return pa.array(found[0][2].reshape(-1)), None
    values_ND, is_missing_N = np.zeros((n, width), dtype=np.float32), np.ones(n, dtype=np.bool_)
    for at, is_there, answers in found:
        places = np.arange(n)[at][is_there]
        values_ND[places], is_missing_N[places] = answers, False
    return pa.array(values_ND.reshape(-1)), pa.array(is_missing_N) if is_missing_N.any() else None


def _integers(column: Column) -> tuple[npt.NDArray[np.int64], Flags]:
    """Return values (0 for null) and which are not null."""
    whole = _whole(column)
    given = whole.is_valid().to_numpy(zero_copy_only=False)
    return whole.fill_null(0).to_numpy().astype(np.int64, copy=False), given


def _flat(column: Column, width: int) -> tuple[npt.NDArray[np.float32], Flags]:
    """Return the numbers of vectors, [N * width] (anything for a null), and which vectors are not null."""
    whole = _whole(column)
    first = whole.offset * width
    values_N = whole.values.to_numpy(zero_copy_only=False)[first : first + len(whole) * width]
    return values_N.astype(np.float32, copy=False), whole.is_valid().to_numpy(zero_copy_only=False)


def _whole(column: Column) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
