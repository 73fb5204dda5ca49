"""The vector functions of the SQL catalog.

`<site>(row, layer[, model]) -> FLOAT[width]` for each stored site, `score(probe, row) -> FLOAT` and
`probe_weight(probe) -> FLOAT[width]`. A row that is null or not extracted gives NULL. DuckDB's Python functions have
a fixed number of arguments, so each public name is a macro over one function that takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from cliffstore.records import FINAL_NORM
from cliffstore.store import vector_columns
from cliffstore.store.arrays import ArraySpec
from cliffstore.store.reader import StoreReader
from cliffstore.store.vector_columns import Column
from cliffstore.store.writer import capture_specs


class FailedCalls:
    """The first error of a function that DuckDB called.

    An exception that leaves a Python function inside DuckDB may end the process when it is freed on one of DuckDB's
    own threads. So functions never raise: they note the error, give NULL, and whoever ran the statement calls `check`.
    """

    def __init__(self) -> None:
        self._first: Exception | None = None

    def guard(self, function: Callable[..., pa.Array], gives: pa.DataType) -> Callable[..., pa.Array]:
        """Return a function of the same arguments that notes its errors."""

        @wraps(function)
        def guarded(*columns: Column) -> pa.Array:
            if self._first is None:
                try:
                    return function(*columns)
                except Exception as error:  # noqa: BLE001  # raised again by `check`, see above
                    self.note(error)
            return pa.nulls(len(columns[0]), gives)

        return guarded

    def note(self, error: Exception) -> None:
        """Keep an error for `check`, if it is the first."""
        self._first = self._first or error

    def check(self) -> None:
        """Raise the error of the statement that has just run, if there was one."""
        error, self._first = self._first, None
        if error is not None:
            raise error.with_traceback(None)


def register_functions(connection: duckdb.DuckDBPyConnection, reader: StoreReader, failed: FailedCalls) -> None:
    """Register the functions of everything that the store holds. Call `failed.check` after each statement."""

    def create(name: str, function: Callable[..., pa.Array], takes: list[str], width: int | None) -> None:
        gives = pa.float32() if width is None else pa.list_(pa.float32(), width)
        connection.create_function(
            name,
            failed.guard(function, gives),
            [*takes],
            "FLOAT" if width is None else f"FLOAT[{width}]",
            type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,
        )

    specs = [spec for capture in reader.captures() for spec in capture_specs(capture)]
    widths = {spec.site: int(np.prod(spec.row_shape)) for spec in specs}
    model = reader.default_alias().replace("'", "''")
    for site, width in widths.items():
        create(f"_{site}", vector_columns.gather(reader, site, width), ["BIGINT", "INTEGER", "VARCHAR"], width)
        last = _only_layer(specs, site)
        short = f"(row_number) AS _{site}(row_number, {last}, '{model}'), " if last is not None else ""
        connection.execute(
            f"CREATE MACRO {site} {short}(row_number, layer) AS _{site}(row_number, layer, '{model}'), "
            f"(row_number, layer, model) AS _{site}(row_number, layer, model)"
        )
    create("_score", vector_columns.score(reader), ["VARCHAR", "BIGINT"], None)
    connection.execute("CREATE MACRO score(probe, row_number) AS _score(probe, row_number)")
    width = max(widths.values(), default=1)
    create("_probe_weight", vector_columns.probe_weight(reader, width), ["VARCHAR"], width)
    connection.execute("CREATE MACRO probe_weight(probe) AS _probe_weight(probe)")


def _only_layer(specs: Sequence[ArraySpec], site: str) -> int | None:
    """Return the layer of a site that has one by its nature, so that SQL may leave it out."""
    layers = {spec.layer for spec in specs if spec.site == site}
    return layers.pop() if site == FINAL_NORM and len(layers) == 1 else None
