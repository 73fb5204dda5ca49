"""A DuckDB database on local disk that holds what is larger than memory while a corpus is read and planned."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

_MEMORY, _THREADS = "512MB", 2
"""Each thread of a sort or a join keeps buffers of its own, so many of them would not fit."""


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when it is closed, or when the process ends."""
    return tempfile.TemporaryDirectory(prefix="cliffstore-", ignore_cleanup_errors=True)


def open_scratch(folder: str | Path, name: str) -> duckdb.DuckDBPyConnection:
    """Open a new database in a folder; beyond its memory limit it spills to the same folder."""
    connection = duckdb.connect(str(Path(folder) / f"{name}.duckdb"))
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    connection.execute(f"SET threads = {_THREADS}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET python_enable_replacements = false")
    return connection


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table, which is made by the first of them."""
    connection.register("_rows", rows)
    if connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [table]).fetchall()[0][0]:
        connection.execute(f"INSERT INTO {table} SELECT * FROM _rows")
    else:
        connection.execute(f"CREATE TABLE {table} AS SELECT * FROM _rows")
    connection.unregister("_rows")


def batches(connection: duckdb.DuckDBPyConnection, statement: str, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the result of a statement, some rows at a time."""
    # A cursor of its own: a statement on the same connection would end this one.
    with connection.cursor() as cursor:
        yield from cursor.sql(statement).to_arrow_reader(rows)
