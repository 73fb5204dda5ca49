"""Parquet tables of a store: written whole, with their provenance in the schema metadata, read as Arrow datasets."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from cliffstore import __version__
from cliffstore.store.objects import ObjectStore

PROVENANCE = "cliffstore"


def encode(table: pa.Table, provenance: Mapping[str, str]) -> bytes:
    """Return a table as Parquet bytes (zstd), the same bytes for the same table and provenance."""
    known = {"version": __version__, **provenance}
    metadata = {f"{PROVENANCE}.{name}": value for name, value in sorted(known.items())}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def write(objects: ObjectStore, key: str, table: pa.Table, provenance: Mapping[str, str]) -> str:
    """Write a table as one Parquet object and return the sha256 of its bytes."""
    content = encode(table, provenance)
    objects.put(key, content)
    return hashlib.sha256(content).hexdigest()


def read(objects: ObjectStore, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet object."""
    return pq.read_table(pa.BufferReader(objects.get(key)), columns=list(columns) if columns else None)


def schema_of(objects: ObjectStore, key: str) -> pa.Schema:
    """Return the schema of one Parquet object, without its provenance."""
    return pq.read_schema(pa.BufferReader(objects.get(key))).remove_metadata()


def dataset(objects: ObjectStore, keys: Sequence[str], schema: pa.Schema) -> ds.Dataset:
    """Return an Arrow dataset over Parquet objects; columns and rows are read only where a query needs them."""
    if not keys:
        return ds.dataset(schema.empty_table())
    # Arrow's own file system where there is one: a scan that a LIMIT cuts short leaves reads behind, and reads that
    # need Python can hang the interpreter's exit.
    local = pa.fs.LocalFileSystem() if objects.is_local else None
    filesystem = local or pa.fs.PyFileSystem(pa.fs.FSSpecHandler(objects.fs))
    return ds.dataset([objects.path(key) for key in keys], schema=schema, filesystem=filesystem, format="parquet")
