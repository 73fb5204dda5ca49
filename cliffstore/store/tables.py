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
from cliffstore.errors import StorageError
from cliffstore.schema import damaged
from cliffstore.store.objects import ObjectStore

PROVENANCE = "cliffstore"
_HOLE_BYTES = 128 << 10
"""A request costs as much time as reading this much that nobody wants."""


def encode(table: pa.Table, provenance: Mapping[str, str], plain: Sequence[str] = ()) -> bytes:
    """Return a table as Parquet bytes (zstd), the same bytes for the same table and provenance.

    Parameters
    ----------
    plain : columns whose values hardly repeat: no dictionary is tried for them
    """
    sink = io.BytesIO()
    coded = [name for name in table.column_names if name not in plain] if plain else True
    pq.write_table(table.replace_schema_metadata(metadata(provenance)), sink, compression="zstd", use_dictionary=coded)
    return sink.getvalue()


def metadata(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return provenance as the schema metadata of a table."""
    known = {"version": __version__, **provenance}
    return {f"{PROVENANCE}.{name}": value for name, value in sorted(known.items())}


def write(
    objects: ObjectStore, key: str, table: pa.Table, provenance: Mapping[str, str], plain: Sequence[str] = ()
) -> str:
    """Write a table as one Parquet object and return the sha256 of its bytes. `plain` as for `encode`."""
    content = encode(table, provenance, plain)
    objects.put(key, content)
    return hashlib.sha256(content).hexdigest()


def read(objects: ObjectStore, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet object. Raises `DamagedStoreError` where it is none, FileNotFoundError where it is not."""
    return decode(key, objects.get(key), columns)


def open_parquet(source: pa.NativeFile | str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file that is read on the calling thread alone, if its methods are told `use_threads=False`.

    By default Arrow reads ahead on threads of its own. Such a thread lets go of a Python object after its read is
    answered; where the interpreter exits at that moment, the process aborts ("terminate called ...", exit code 134).
    """
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=False)


def decode(key: str, content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of Parquet bytes. Raises `DamagedStoreError` where they are none."""
    try:
        with open_parquet(pa.BufferReader(content)) as file:
            return _believed(file.read(columns=list(columns) if columns else None, use_threads=False))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(key, f"cannot be read ({str(error).splitlines()[0][:200]})") from None


def _believed(table: pa.Table) -> pa.Table:
    """Return a table whose values are of their types: what is damaged need not be seen by who reads Parquet.

    Raises
    ------
    pa.ArrowInvalid, UnicodeDecodeError
        Indices lead nowhere; texts, or the names of columns, are no texts.
    """
    table.rename_columns(table.schema.names).validate(full=True)
    return table


def read_row_group(objects: ObjectStore, key: str, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one row group of a Parquet object, and of that only the columns that are asked for.

    Raises
    ------
    DamagedStoreError
        The object is missing, or no Parquet file with that row group.
    """
    try:
        source = objects.path(key) if objects.is_local else pa.PythonFile(_PatientFile(objects, objects.path(key)))
        with open_parquet(source) as file:
            group = file.read_row_group(row_group, columns=list(columns) if columns else None, use_threads=False)
            return _believed(group)
    except StorageError:
        raise
    except (pa.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
        raise damaged(key, f"cannot be read ({str(error).splitlines()[0][:200]})") from None


def schema_of(objects: ObjectStore, key: str, size: int) -> pa.Schema:
    """Return the schema of a Parquet object of `size` bytes, with its provenance; only its end is read."""
    try:
        with pa.PythonFile(_PatientFile(objects, objects.path(key), size), mode="r") as file:
            schema = pq.read_schema(file)
        return pa.schema([field.with_name(field.name) for field in schema], metadata=schema.metadata)
    except (StorageError, FileNotFoundError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(key, f"cannot be read ({str(error).splitlines()[0][:200]})") from None


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
    filesystem = pa.fs.PyFileSystem(PatientHandler(objects, sizes))
    form = ds.ParquetFileFormat()
    fragments = [
        form.make_fragment(
            objects.path(key), filesystem, None if names is None else ds.field(names[0]) == names[1](key)
        )
        for key in sizes
    ]
    return ds.FileSystemDataset(fragments, schema, form, filesystem)


def read_piece(handler: PatientHandler, piece: ds.ParquetFileFragment, schema: pa.Schema) -> pa.Table:
    """Read the row groups of a fragment on this thread alone.

    Parameters
    ----------
    schema : of the result; columns that the object lacks are what the fragment says of it, or null
    """
    groups, metadata = [group.id for group in piece.row_groups], piece.metadata
    file = handler.file(piece.path)
    file.fetch(_ranges(metadata, groups, schema.names))
    with pa.PythonFile(file, mode="r") as source, open_parquet(source, metadata) as parquet:
        held = [name for name in schema.names if name in parquet.schema_arrow.names]
        table = parquet.read_row_groups(groups, columns=held, use_threads=False)
    known = ds.get_partition_keys(piece.partition_expression)
    n_rows = sum(group.num_rows for group in piece.row_groups)

    def column(field: pa.Field) -> pa.ChunkedArray | pa.Array:
        if field.name not in held:
            return pa.repeat(pa.scalar(known.get(field.name), field.type), n_rows)
        found = table[field.name]
        return found if found.type == field.type else found.cast(field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def _ranges(metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> list[tuple[int, int]]:
    """Return first and last byte of what is to be read of some row groups; what lies close together in one range."""
    chunks = []
    for group in map(metadata.row_group, groups):
        for chunk in map(group.column, range(group.num_columns)):
            if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
                first = chunk.dictionary_page_offset or chunk.data_page_offset
                chunks.append((first, first + chunk.total_compressed_size))
    ranges: list[tuple[int, int]] = []
    for first, last in sorted(chunks):
        if ranges and first - ranges[-1][1] <= _HOLE_BYTES:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        else:
            ranges.append((first, last))
    return ranges


class PatientHandler(pa.fs.FSSpecHandler):
    """Files of a store for Arrow; what fails in passing is done again."""

    def __init__(self, objects: ObjectStore, sizes: Mapping[str, int]) -> None:
        super().__init__(objects.fs)
        self._objects = objects
        self._sizes = {objects.path(key): size for key, size in sizes.items()}

    def file(self, path: str) -> _PatientFile:
        """Return a file for Python."""
        return _PatientFile(self._objects, path, self._sizes[path])

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(self.file(path), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)


class _PatientFile(io.RawIOBase):
    """A file to read, one range request a read: Arrow asks for whole column chunks."""

    def __init__(self, objects: ObjectStore, path: str, size: int | None = None) -> None:
        self._objects, self._path, self._at = objects, path, 0
        self._fetched: list[tuple[int, bytes]] = []
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
        content = next(
            (held[first - at : last - at] for at, held in self._fetched if at <= first < at + len(held)), b""
        )
        if len(content) < last - first:
            content = self._range(first, last)
        self._at = last
        return content

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read ranges of bytes that will be asked for."""
        self._fetched = [(first, self._range(first, last)) for first, last in ranges]

    def _range(self, first: int, last: int) -> bytes:
        fs, path = self._objects.fs, self._path
        content: bytes = self._objects.patiently(lambda: fs.cat_file(path, start=first, end=last))
        return content
