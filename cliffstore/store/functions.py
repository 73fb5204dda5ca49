"""The vector functions of the SQL catalog.

`<site>(row, layer[, model]) -> FLOAT[width]` for each stored site, `score(probe, row) -> FLOAT` and
`probe_weight(probe) -> FLOAT[width]`. A row that is null or not extracted gives NULL. DuckDB's Python functions have
a fixed number of arguments, so each public name is a macro over one function that takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from cliffstore.records import FINAL_NORM, RESID_POST
from cliffstore.store import vector_columns
from cliffstore.store.arrays import ArraySpec
from cliffstore.store.reader import StoreReader
from cliffstore.store.running import FailedCalls
from cliffstore.store.writer import capture_specs


class Functions:
    """What creates the functions of a catalog. Call `Running.check` after each statement."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, failed: FailedCalls) -> None:
        self._connection, self._failed = connection, failed
        self._widths: set[int] = set()
        self._cursors: list[duckdb.DuckDBPyConnection] = []

    def register(self, reader: StoreReader, schema: str = "main") -> None:
        """Create the functions of everything that a store holds, in a schema of SQL."""
        inside = "_" if schema == "main" else f"_{schema}."

        def create(name: str, function: Callable[..., pa.Array], takes: list[str], width: int | None) -> None:
            gives = pa.float32() if width is None else pa.list_(pa.float32(), width)
            sql_type = "FLOAT" if width is None else f"FLOAT[{width}]"
            self._create(self._connection, inside + name, self._failed.guard(function, gives), takes, sql_type)

        def macro(name: str, *forms: tuple[str, str]) -> None:
            variants = ", ".join(f'({takes}) AS "{inside}{name}"({gives})' for takes, gives in forms)
            self._connection.execute(f'CREATE MACRO "{schema}"."{name}" {variants}')

        specs = [spec for capture in reader.captures() for spec in capture_specs(capture)]
        alias = reader.default_alias()
        # A function has one width: where models differ, that of the model that need not be named.
        widths = {spec.site: prod(spec.row_shape) for spec in sorted(specs, key=lambda spec: spec.alias == alias)}
        model = alias.replace("'", "''")
        for site, width in widths.items():
            create(site, vector_columns.gather(reader, site, width), ["BIGINT", "INTEGER", "VARCHAR"], width)
            last = _only_layer(specs, site)
            macro(
                site,
                *([("row_number", f"row_number, {last}, '{model}'")] if last is not None else []),
                ("row_number, layer", f"row_number, layer, '{model}'"),
                ("row_number, layer, model", "row_number, layer, model"),
            )
        create("score", vector_columns.score(reader), ["VARCHAR", "BIGINT"], None)
        macro("score", ("probe, row_number", "probe, row_number"))
        width = widths.get(RESID_POST, max(widths.values(), default=1))
        create("probe_weight", vector_columns.probe_weight(reader, width), ["VARCHAR"], width)
        macro("probe_weight", ("probe", "probe"))
        self._register_operators({*widths.values()})

    def _register_operators(self, widths: set[int]) -> None:
        """Let `-` and `+` take vectors of these widths; DuckDB knows them for numbers and dates only."""
        for width in sorted(widths - self._widths):
            # One connection takes one function of a name. What a second one creates is there for all of them.
            cursor = self._connection.cursor()
            self._cursors.append(cursor)
            vector = f"FLOAT[{width}]"
            for name, operation in (("-", np.subtract), ("+", np.add)):
                function = self._failed.guard(
                    vector_columns.elementwise(operation, width), pa.list_(pa.float32(), width)
                )
                self._create(cursor, name, function, [vector, vector], vector)
            self._widths.add(width)

    @staticmethod
    def _create(
        connection: duckdb.DuckDBPyConnection,
        name: str,
        function: Callable[..., pa.Array],
        takes: Sequence[str],
        gives: str,
    ) -> None:
        connection.create_function(
            name, function, [*takes], gives, type=PythonUDFType.ARROW, null_handling=FunctionNullHandling.SPECIAL
        )

    def close(self) -> None:
        """Close what the functions need."""
        for cursor in self._cursors:
            cursor.close()


def _only_layer(specs: Sequence[ArraySpec], site: str) -> int | None:
    """Return the layer of a site that has one by its nature, so that SQL may leave it out."""
    layers = {spec.layer for spec in specs if spec.site == site}
    return layers.pop() if site == FINAL_NORM and len(layers) == 1 else None
