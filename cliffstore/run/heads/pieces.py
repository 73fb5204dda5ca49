"""Pieces of a measurement that has not ended: rows of numbers, each piece under a digest of all that decides it.

They lie beside the result, which takes their place: a run that was cut off is run again, reads the pieces that are
there, and measures the rest.

Legend: N rows, each of X numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.errors import DamagedStoreError, StoreError
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore

Floats = npt.NDArray[np.float64]
_SCHEMA = pa.schema([("number", pa.int64()), ("figures", pa.list_(pa.float64()))])
_DIGEST = b"cliffstore.digest"


def digest_of(facts: object) -> str:
    """Return sha256 over values that JSON has."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()


def write_piece(objects: ObjectStore, key: str, numbers: Sequence[int], figures_NX: Floats) -> None:
    """Write rows, each with a number that says what it is of: an example, a layer."""
    rows = {"number": list(numbers), "figures": list(figures_NX)}
    table = pa.table(rows, schema=_SCHEMA)
    objects.put(key, tables.encode(table, {"digest": _digest(numbers, figures_NX)}))


def read_piece(objects: ObjectStore, key: str, numbers: Sequence[int]) -> Floats:
    """Return the figures of the rows that a piece is to have, [N, X].

    Raises
    ------
    StoreError
        It is gone, or damaged and therefore removed.
    """
    again = "run the same command again"
    try:
        content = objects.get(key)
    except FileNotFoundError:
        raise StoreError(f"{key} is gone, perhaps because another run of this command has ended: {again}") from None
    try:
        table = tables.decode(key, content)
        said = (pq.read_schema(pa.BufferReader(content)).metadata or {}).get(_DIGEST, b"").decode()
        figures_NX = np.array(table["figures"].to_pylist(), dtype=np.float64)
        is_whole = table["number"].to_pylist() == list(numbers) and said == _digest(numbers, figures_NX)
    except (DamagedStoreError, KeyError, ValueError):
        is_whole = False
    if not is_whole:
        objects.delete(key)
        raise StoreError(f"{key} is damaged and is removed: {again}")
    return figures_NX


def clear_pieces(objects: ObjectStore, name: str) -> None:
    """Remove all pieces of the figures of a name, those of other settings too."""
    objects.delete(layout.heads_pieces(name))


def _digest(numbers: Sequence[int], figures_NX: Floats) -> str:
    return hashlib.sha256(np.array(numbers, dtype=np.int64).tobytes() + figures_NX.tobytes()).hexdigest()
