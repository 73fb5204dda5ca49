"""What the views of the catalog read: found when a statement first scans it, and never left behind.

DuckDB takes a pyarrow dataset for a table. It asks for its schema when a statement is bound, and calls
`scanner(columns, filter).to_reader()` when one is run; `View` answers these two. So a view that no statement names
costs nothing, though it is listed and described like any other.

Arrow reads on threads of its own, and ahead. Where these call back into Python (a read that a LIMIT has left behind, or
no more than letting go of a file) while the interpreter exits, it hangs or aborts; and what is left of a scan of local
files is read to its end. So files are read and decoded a few row groups at a time, by Python's threads, which
`Readers.close` waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds

from cliffstore.errors import DamagedStoreError, QueryStoppedError
from cliffstore.store import tables
from cliffstore.store.running import FailedCalls

T = TypeVar("T")
U = TypeVar("U")

_READERS = 16
_PIECE_BYTES = 4 << 20


class Found(Protocol):
    """What gives the rows of a view."""

    @property
    def schema(self) -> pa.Schema:
        """Of the view."""

    def __call__(self, columns: Sequence[str], /) -> ds.Dataset:
        """Return a dataset that has at least these columns. Called by each scan, by one at a time."""


class Readers:
    """The threads that read ahead for the scans of one catalog."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="scan")

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Yield what `function` gives for each item, in order, working some items ahead."""
        ahead: deque[Future[U]] = deque()
        try:
            for item in items:
                ahead.append(self._pool.submit(function, item))
                if len(ahead) == _READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Wait for the reads that have begun; the others are not made."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class View(ds.InMemoryDataset):
    """One table for DuckDB.

    Parameters
    ----------
    name : for messages
    failed : told of the error of a scan, which DuckDB would make a text of; a scan for no statement ends
    """

    def __init__(self, name: str, found: Found, readers: Readers, failed: FailedCalls) -> None:
        super().__init__(found.schema.empty_table())
        self._name, self._found, self._readers, self._failed = name, found, readers, failed
        self._finding = Lock()

    def scanner(self, columns: Sequence[str] | None = None, filter: ds.Expression | None = None) -> Scan:
        """Return a scan that has not begun."""
        wanted = self.schema.names if columns is None else list(columns)
        return Scan(pa.schema([self.schema.field(name) for name in wanted]), lambda: self._batches(wanted, filter))

    def _batches(self, columns: list[str], filter: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._read(columns, filter):
                if not self._failed.wanted:
                    raise QueryStoppedError("the statement was stopped")
                yield batch
        except pa.ArrowException as error:
            damaged = DamagedStoreError(f"{self._name} cannot be read: {' '.join(str(error).split())[:300]}")
            self._failed.note(damaged)
            raise damaged from None
        except Exception as error:
            self._failed.note(error)
            raise

    def _read(self, columns: list[str], filter: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        with self._finding:
            found = self._found(columns)
        if isinstance(found, ds.FileSystemDataset):
            return _in_whole_reads(found, columns, filter, self._readers)
        return iter(found.scanner(columns=columns, filter=filter).to_reader())


class Scan:
    """What a statement reads of a view."""

    def __init__(self, schema: pa.Schema, batches: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self.projected_schema, self._batches = schema, batches

    def to_reader(self) -> pa.RecordBatchReader:
        """Begin the scan when the first batch is asked for."""
        return pa.RecordBatchReader.from_batches(self.projected_schema, self._batches())


def _in_whole_reads(
    found: ds.FileSystemDataset, columns: list[str], filter: ds.Expression | None, readers: Readers
) -> Iterator[pa.RecordBatch]:
    schema, handler = found.schema, found.filesystem.handler
    # Arrow does not tell which columns an expression needs; one more than these is no harm.
    needed = [name for name in schema.names if name in columns or (filter is not None and name in str(filter))]
    narrow = pa.schema([schema.field(name) for name in needed])

    def pieces(file: ds.ParquetFileFragment) -> list[ds.ParquetFileFragment]:
        return _pieces(file if filter is None else file.subset(filter, schema=schema))

    def read(piece: ds.ParquetFileFragment) -> pa.Table:
        table = tables.read_piece(handler, piece, narrow)
        return (table if filter is None else table.filter(filter)).select(columns)

    files = readers.map(pieces, found.get_fragments(filter))
    for table in readers.map(read, (piece for file in files for piece in file)):
        yield from table.to_batches()


def _pieces(file: ds.ParquetFileFragment) -> list[ds.ParquetFileFragment]:
    """Split a file between its row groups, into pieces of some megabytes."""
    groups: list[list[int]] = []
    size = _PIECE_BYTES
    for group in file.row_groups:
        if size >= _PIECE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(group.id)
        size += group.total_byte_size
    return [file.subset(row_group_ids=ids) for ids in groups]
