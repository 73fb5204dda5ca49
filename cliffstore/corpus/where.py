"""The `--where` filter: a SQL boolean expression over corpus columns, evaluated by DuckDB in memory.

The connection sees one Arrow table and nothing else: no files, no network, no extensions.
"""

from __future__ import annotations

import pyarrow as pa

from cliffstore.errors import QueryError


def rows_where(table: pa.Table, expression: str) -> list[int]:
    """Give the indices of the rows for which the expression is true, ascending.

    Raises
    ------
    QueryError
        The expression is malformed, or names a column that is not there.
    """
    import duckdb

    options: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "autoload_known_extensions": False,
    }
    numbered = table.append_column("__row", pa.array(range(table.num_rows), type=pa.int64()))
    try:
        with duckdb.connect(":memory:", config=options) as connection:
            connection.register("corpus", numbered)
            # A line of its own, so that a comment in the expression cannot swallow the parenthesis.
            query = f"SELECT __row FROM corpus WHERE (\n{expression}\n)"
            found = connection.execute(query).fetchall()
    except duckdb.Error as error:
        reason = " ".join(str(error).split("LINE ", 1)[0].split())
        columns = ", ".join(table.column_names)
        raise QueryError(f"--where {expression!r}: {reason} (the columns are {columns})") from error
    return sorted(int(row[0]) for row in found)
