"""The `--where` filter: a SQL boolean expression over corpus columns, evaluated by DuckDB.

The connection sees one Arrow data set and nothing else: no files, no network, no extensions.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from cliffstore.errors import QueryError

ROW = "__row"
"""Column of the data set that numbers its rows."""


def rows_where(rows: ds.Dataset, expression: str) -> pa.Array:
    """Give the numbers of the rows for which the expression is true, int64, ascending.

    Raises
    ------
    QueryError
        The expression is malformed, or names a column that is not there.
    """
    options: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "autoload_known_extensions": False,
    }
    try:
        with duckdb.connect(":memory:", config=options) as connection:
            connection.register("corpus", rows)
            # A line of its own, so that a comment in the expression cannot swallow the parenthesis.
            query = f"SELECT {ROW} FROM corpus WHERE (\n{expression}\n) ORDER BY {ROW}"
            return connection.sql(query).to_arrow_table()[ROW].combine_chunks()
    except duckdb.Error as error:
        reason = " ".join(str(error).split("LINE ", 1)[0].split())
        columns = ", ".join(name for name in rows.schema.names if name != ROW)
        raise QueryError(f"--where {expression!r}: {reason} (the columns are {columns})") from error
