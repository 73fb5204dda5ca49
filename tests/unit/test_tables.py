"""A damaged Parquet object is told, whatever Arrow makes of it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cliffstore.errors import DamagedStoreError
from cliffstore.store import tables
from cliffstore.store.objects import ObjectStore

TABLE = pa.table(
    {"plateau": [1.0, 2.0], "text": ["a yard", "a lamp"], "kind": pa.array(["x", "y"]).dictionary_encode()}
)


def test_no_flipped_bit_is_more_than_a_damaged_object(tmp_path: Path) -> None:
    """Names of columns, and short texts, lie in the file as they are: flipped, they are no UTF-8."""
    content = tables.encode(TABLE, {})
    objects = ObjectStore(str(tmp_path))
    told = 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 0x80
        objects.put("k.parquet", bytes(flipped))
        for read in (
            lambda: tables.read(objects, "k.parquet").to_pylist(),
            lambda: tables.read_row_group(objects, "k.parquet", 0).to_pylist(),
            lambda: tables.schema_of(objects, "k.parquet", len(content)).names,
        ):
            try:
                read()
            except DamagedStoreError:
                told += 1
    assert told > len(content)


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path))
    objects.put("k.parquet", content := tables.encode(TABLE, {}))
    assert tables.read(objects, "k.parquet").to_pylist() == TABLE.to_pylist()
    assert tables.schema_of(objects, "k.parquet", len(content)) == TABLE.schema
    with pytest.raises(DamagedStoreError, match="cannot be read"):
        tables.read_row_group(objects, "k.parquet", 1)
