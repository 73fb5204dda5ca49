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
from cliffstore.schema import damaged
from cliffstore.store.objects import ObjectStore

PROVENANCE = "cliffstore"


def encode(table: pa.Table, provenance: Mapping[str, str]) -> bytes:
    """Return a table as Parquet bytes (zstd), the same bytes for the same table and provenance."""
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata(provenance)), sink, compression="zstd")
    return sink.getvalue()


def metadata(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return provenance as the schema metadata of a table."""
    known = {"version": __version__, **provenance}
    return {f"{PROVENANCE}.{name}": value for name, value in sorted(known.items())}


def write(objects: ObjectStore, key: str, table: pa.Table, provenance: Mapping[str, str]) -> str:
    """Write a table as one Parquet object and return the sha256 of its bytes."""
    content = encode(table, provenance)
    objects.put(key, content)
    return hashlib.sha256(content).hexdigest()


def read(objects: ObjectStore, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet object."""
    return pq.read_table(pa.BufferReader(objects.get(key)), columns=list(columns) if columns else None)


def read_row_group(objects: ObjectStore, key: str, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one row group of a Parquet object, and of that only the columns that are asked for.

    Raises
    ------
    DamagedStoreError
        The object is missing, or no Parquet file with that row group.
    """
    try:
        source = objects.path(key) if objects.is_local else pa.PythonFile(_PatientFile(objects, objects.path(key)))
        with pq.ParquetFile(source) as file:
            return file.read_row_group(row_group, columns=list(columns) if columns else None)
    except (pa.ArrowException, FileNotFoundError, IndexError) as error:
        raise damaged(key, f"cannot be read ({str(error).splitlines()[0][:200]})") from None


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
    filesystem = local or pa.fs.PyFileSystem(PatientHandler(objects))
    return ds.dataset([objects.path(key) for key in keys], schema=schema, filesystem=filesystem, format="parquet")


class PatientHandler(pa.fs.FSSpecHandler):
    """Files of a store for Arrow; what fails in passing is done again."""

    def __init__(self, objects: ObjectStore) -> None:
        super().__init__(objects.fs)
        self._objects = objects

    def get_file_info(self, paths: list[str]) -> list[pa.fs.FileInfo]:
        found: list[pa.fs.FileInfo] = self._objects.patiently(lambda: super(PatientHandler, self).get_file_info(paths))
        return found

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_PatientFile(self._objects, path), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)


class _PatientFile(io.RawIOBase):
    """A file to read, one range request a read: Arrow asks for whole column chunks."""

    def __init__(self, objects: ObjectStore, path: str) -> None:
        self._objects, self._path, self._at = objects, path, 0
        self._size = int(objects.patiently(lambda: objects.fs.size(path)))

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        first = self._at
        last = self._size if size is None or size < 0 else min(first + size, self._size)
        if last <= first:
            return b""
        fs, path = self._objects.fs, self._path
        content: bytes = self._objects.patiently(lambda: fs.cat_file(path, start=first, end=last))
        self._at = last
        return content
