"""Parquet tables of a store: written whole, with their provenance in the schema metadata, read as Arrow datasets."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence

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
    return decode(objects.get(key), columns)


def decode(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of Parquet bytes."""
    return pq.read_table(pa.BufferReader(content), columns=list(columns) if columns else None)


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


def schema_of(objects: ObjectStore, key: str, size: int) -> pa.Schema:
    """Return the schema of a Parquet object of `size` bytes, without its provenance; only its end is read."""
    with pa.PythonFile(_PatientFile(objects, objects.path(key), size), mode="r") as file:
        return pq.read_schema(file).remove_metadata()


def dataset(
    objects: ObjectStore,
    sizes: Mapping[str, int],
    schema: pa.Schema,
    names: tuple[str, Callable[[str], str]] | None = None,
) -> ds.Dataset:
    """Return an Arrow dataset over Parquet objects; columns and rows are read only where a query needs them.

    Parameters
    ----------
    sizes : key -> size in bytes
    schema : of the dataset; columns that an object lacks are null
    names : a column that no object has, and what its value is by an object's key
    """
    if not sizes:
        return ds.dataset(schema.empty_table())
    filesystem = pa.fs.LocalFileSystem() if objects.is_local else pa.fs.PyFileSystem(PatientHandler(objects, sizes))
    form = ds.ParquetFileFormat()
    fragments = [
        form.make_fragment(
            objects.path(key), filesystem, None if names is None else ds.field(names[0]) == names[1](key)
        )
        for key in sizes
    ]
    return ds.FileSystemDataset(fragments, schema, form, filesystem)


class PatientHandler(pa.fs.FSSpecHandler):
    """Files of a store for Arrow; what fails in passing is done again."""

    def __init__(self, objects: ObjectStore, sizes: Mapping[str, int]) -> None:
        super().__init__(objects.fs)
        self._objects = objects
        self._sizes = {objects.path(key): size for key, size in sizes.items()}

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_PatientFile(self._objects, path, self._sizes[path]), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)


class _PatientFile(io.RawIOBase):
    """A file to read, one range request a read: Arrow asks for whole column chunks."""

    def __init__(self, objects: ObjectStore, path: str, size: int | None = None) -> None:
        self._objects, self._path, self._at = objects, path, 0
        self._size = int(objects.patiently(lambda: objects.fs.size(path))) if size is None else size

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
