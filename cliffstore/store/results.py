"""Results that stream: Arrow batches of one statement, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

import duckdb
import pyarrow as pa

from cliffstore.store.running import FailedCalls, Running
from cliffstore.store.session import QueryLimits, Statement, error_of

_BATCH_ROWS, _BATCH_BYTES = 65_536, 64 << 20


class Batches(Iterator[pa.RecordBatch]):
    """The result of one statement, batch by batch. Read it to its end, or close it; it is a context manager.

    An error of a function or of storage is raised in place of the batch that it would have spoilt.

    Attributes
    ----------
    schema : of every batch
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        statement: Statement,
        parameters: object,
        rows: int | None,
        failed: FailedCalls,
        limits: QueryLimits,
    ) -> None:
        self._failed, self._limits = failed, limits
        self._running: Running = failed.begin(connection, limits.seconds)
        self._reader: pa.RecordBatchReader | None = None
        try:
            with self._running.at_work():
                relation = connection.sql(statement.parsed, params=parameters)
                self._reader = relation.to_arrow_reader(rows or _rows_that_fit(relation))
            self._running.check()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            self._failed_with(error)
        except BaseException:
            self.close()
            raise
        assert self._reader is not None
        self.schema: pa.Schema = self._reader.schema

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> pa.RecordBatch:
        if self._reader is None:
            raise StopIteration
        try:
            with self._running.at_work():
                batch = self._reader.read_next_batch()
            self._running.check()
        except StopIteration:
            # The last call may have failed with nothing to give.
            try:
                self._running.check()
            finally:
                self.close()
            raise
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            self._failed_with(error)
        except BaseException:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Stop the statement; nothing more is read."""
        reader, self._reader = self._reader, None
        if reader is not None:
            with suppress(duckdb.Error, pa.ArrowException, OSError):
                reader.close()
        self._failed.end(self._running)

    def _failed_with(self, error: Exception) -> None:
        """Raise what was noted, or what DuckDB says; a stream names its errors by Arrow's classes."""
        self.close()
        self._running.check()
        raise error_of(error, self._limits) from None


def _rows_that_fit(relation: duckdb.DuckDBPyRelation) -> int:
    """Return how many rows a batch has: fewer where they hold long vectors."""
    width = sum(4 * int(str(kind).partition("[")[2].rstrip("]") or 0) for kind in relation.types if _is_vector(kind))
    return max(min(_BATCH_ROWS, _BATCH_BYTES // max(width, 1)), 1_024)


def _is_vector(kind: object) -> bool:
    text = str(kind)
    return text.startswith("FLOAT[") and text[len("FLOAT[") : -1].isdecimal()
