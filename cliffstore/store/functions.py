"""The vector functions of the SQL catalog.

`<site>(row, layer[, model]) -> FLOAT[width]` for each stored site, `score(probe, row) -> FLOAT` and
`probe_weight(probe) -> FLOAT[width]`. A row that is null or not extracted gives NULL. DuckDB's Python functions have
a fixed number of arguments, so each public name is a macro over one function that takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
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
from cliffstore.store.writer import capture_specs

Column: TypeAlias = "pa.Array | pa.ChunkedArray"
Names: TypeAlias = npt.NDArray[np.object_]


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
        create(f"_{site}", _gather(reader, site, width), ["BIGINT", "INTEGER", "VARCHAR"], width)
        last = _only_layer(specs, site)
        short = f"(row_number) AS _{site}(row_number, {last}, '{model}'), " if last is not None else ""
        connection.execute(
            f"CREATE MACRO {site} {short}(row_number, layer) AS _{site}(row_number, layer, '{model}'), "
            f"(row_number, layer, model) AS _{site}(row_number, layer, model)"
        )
    create("_score", _score(reader), ["VARCHAR", "BIGINT"], None)
    connection.execute("CREATE MACRO score(probe, row_number) AS _score(probe, row_number)")
    width = max(widths.values(), default=1)
    create("_probe_weight", _probe_weight(reader, width), ["VARCHAR"], width)
    connection.execute("CREATE MACRO probe_weight(probe) AS _probe_weight(probe)")


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
