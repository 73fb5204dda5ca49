"""The vector functions of the SQL catalog.

`<site>(row, layer[, model]) -> FLOAT[width]` for each stored site, `score(probe, row) -> FLOAT` and
`probe_weight(probe) -> FLOAT[width]`. A row that is null or not extracted gives NULL. DuckDB's Python functions have
a fixed number of arguments, so each public name is a macro over one function that takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from cliffstore.records import FINAL_NORM
from cliffstore.schema import ProbeDocument
from cliffstore.store.arrays import ArraySpec
from cliffstore.store.probes import ProbeWeights, read_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.running import Column, FailedCalls
from cliffstore.store.writer import capture_specs

Names: TypeAlias = npt.NDArray[np.object_]


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
        widths = {spec.site: int(np.prod(spec.row_shape)) for spec in specs}
        model = reader.default_alias().replace("'", "''")
        for site, width in widths.items():
            create(site, _gather(reader, site, width), ["BIGINT", "INTEGER", "VARCHAR"], width)
            last = _only_layer(specs, site)
            macro(
                site,
                *([("row_number", f"row_number, {last}, '{model}'")] if last is not None else []),
                ("row_number, layer", f"row_number, layer, '{model}'"),
                ("row_number, layer, model", "row_number, layer, model"),
            )
        create("score", _score(reader), ["VARCHAR", "BIGINT"], None)
        macro("score", ("probe, row_number", "probe, row_number"))
        width = max(widths.values(), default=1)
        create("probe_weight", _probe_weight(reader, width), ["VARCHAR"], width)
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
                function = self._failed.guard(_elementwise(operation, width), pa.list_(pa.float32(), width))
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


def _elementwise(operation: np.ufunc, width: int) -> Callable[[Column, Column], pa.Array]:
    def calculate(left: Column, right: Column) -> pa.Array:
        (left_N, left_given), (right_N, right_given) = _flat(left, width), _flat(right, width)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(operation(left_N, right_N)), width, mask=pa.array(~(left_given & right_given))
        )

    return calculate


def _flat(column: Column, width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the numbers of vectors, [N * width] (anything for a null), and which vectors are not null."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    first = whole.offset * width
    values_N = whole.values.to_numpy(zero_copy_only=False)[first : first + len(whole) * width]
    return values_N.astype(np.float32, copy=False), whole.is_valid().to_numpy(zero_copy_only=False)


def _only_layer(specs: Sequence[ArraySpec], site: str) -> int | None:
    """Return the layer of a site that has one by its nature, so that SQL may leave it out."""
    layers = {spec.layer for spec in specs if spec.site == site}
    return layers.pop() if site == FINAL_NORM and len(layers) == 1 else None


def _gather(reader: StoreReader, site: str, width: int) -> Callable[[Column, Column, Column], pa.Array]:
    def gather(row: Column, layer: Column, model: Column) -> pa.Array:
        rows_N, given_N = _integers(row)
        layers_N, layer_given_N = _integers(layer)
        models_N: Names = np.array(model.to_pylist(), dtype=np.object_)
        vectors_ND = np.zeros((len(rows_N), width), dtype=np.float32)
        filled_N = np.zeros(len(rows_N), dtype=bool)
        asked_N = given_N & layer_given_N & (models_N != None)  # noqa: E711  # elementwise
        for alias, number in {*zip(models_N[asked_N], layers_N[asked_N].tolist(), strict=True)}:
            index = np.flatnonzero(asked_N & (models_N == alias) & (layers_N == number))
            extracted, found_ND = _vectors(reader, site, number, alias, rows_N[index])
            vectors_ND[index[extracted]] = found_ND
            filled_N[index[extracted]] = True
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), width, mask=pa.array(~filled_N))

    return gather


def _score(reader: StoreReader) -> Callable[[Column, Column], pa.Array]:
    @cache
    def probe_of(name: str) -> tuple[ProbeDocument, ProbeWeights]:
        return read_probe(reader.objects, name)

    def score(probe: Column, row: Column) -> pa.Array:
        rows_N, given_N = _integers(row)
        names_N: Names = np.array(probe.to_pylist(), dtype=np.object_)
        scores_N = np.zeros(len(rows_N), dtype=np.float32)
        filled_N = np.zeros(len(rows_N), dtype=bool)
        for name in {*names_N} - {None}:
            document, weights = probe_of(name)
            index = np.flatnonzero(given_N & (names_N == name))
            extracted, found_ND = _vectors(reader, document.site, document.layer, document.alias, rows_N[index])
            scores_N[index[extracted]] = weights.scores(found_ND)
            filled_N[index[extracted]] = True
        return pa.array(scores_N, mask=~filled_N)

    return score


def _probe_weight(reader: StoreReader, width: int) -> Callable[[Column], pa.Array]:
    @cache
    def weights_of(name: str) -> list[float]:
        return [float(weight) for weight in read_probe(reader.objects, name)[1].w_D]

    def probe_weight(probe: Column) -> pa.Array:
        values = [None if name is None else weights_of(name) for name in probe.to_pylist()]
        return pa.array(values, type=pa.list_(pa.float32(), width))

    return probe_weight


def _vectors(
    reader: StoreReader, site: str, layer: int, alias: str, rows_N: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Return which of the rows are extracted, and the vectors of those, flattened to [M, width]."""
    capture, spec = reader.find_array(site, layer, alias)
    extracted = reader.extracted(capture.capture, rows_N)
    found = reader.vectors(site, layer, rows_N[extracted], alias)
    return extracted, found.reshape(len(found), int(np.prod(spec.row_shape)))


def _integers(column: Column) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return values (0 for null) and which are not null."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    given = whole.is_valid().to_numpy(zero_copy_only=False)
    return whole.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), given
