"""SQL over a store: DuckDB views on Arrow datasets, and functions that gather vectors.

DuckDB reads the Parquet tables through Arrow, so every fsspec scheme works, only needed columns and rows are read,
and no DuckDB extension is involved. Functions are vectorised: DuckDB hands over some thousand rows at a time, and
each distinct row among them is read once.

Opening lists plans and captures and reads their documents, and the end of one table of examples a plan. What a view
holds is found when a statement first scans it (see `views`): receipts are listed by `SELECT extracted FROM units`, and
read once columns are asked for that only they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from cliffstore.errors import QueryError
from cliffstore.schema import CLIFFS, EXAMPLES, HEADS, SCORES, SELECTIONS, SKIPPED, TOKENS, UNITS, ProbeDocument
from cliffstore.store import layout, tables
from cliffstore.store.functions import FailedCalls, register_functions
from cliffstore.store.probes import list_probes
from cliffstore.store.reader import StoreReader
from cliffstore.store.receipt_table import RECEIPTS, ReceiptTable
from cliffstore.store.views import Found, Readers, View
from cliffstore.store.writer import capture_specs

_CAPTURES = pa.schema(
    [
        pa.field("capture", pa.string()),
        pa.field("model", pa.string()),
        pa.field("name", pa.string()),
        pa.field("revision", pa.string()),
        pa.field("site", pa.string()),
        pa.field("layer", pa.int32()),
        pa.field("row_shape", pa.list_(pa.int32())),
        pa.field("dtype", pa.string()),
        pa.field("key", pa.string()),
    ]
)
_BATCH_ROWS = 1 << 16
_MEASURED = ("auroc", "auroc_low", "auroc_high", "accuracy", "recall_at_1_fpr", "calibration_error", "log_loss")
_TESTED = tuple(f"test_{name}" for name in _MEASURED)
_FIT = [
    *((name, pa.float64()) for name in ("c", "shrinkage")),
    *((name, pa.int64()) for name in ("n_train", "n_validation", "n_test")),
]
_PROBES = pa.schema(
    [
        *((name, pa.string()) for name in ("probe", "kind", "model", "site")),
        ("layer", pa.int32()),
        *((name, pa.string()) for name in ("positions", "label", "positive")),
        *_FIT,
        *((name, pa.float64()) for name in (*_MEASURED, *_TESTED)),
        *((name, pa.float64()) for name in ("shuffled_auroc", "bag_auroc", "bag_test_auroc")),
        ("digest", pa.string()),
    ]
)
_PROBE_METRICS = pa.schema(
    [
        ("probe", pa.string()),
        ("positions", pa.string()),
        ("layer", pa.int32()),
        ("chosen", pa.bool_()),
        *_FIT,
        *((name, pa.float64()) for name in ("cv_auroc", "cv_auroc_sd", *_MEASURED, *_TESTED)),
    ]
)


class Catalog:
    """A DuckDB connection over one store. Each view shows the store as it was when a statement first read it.

    Use as a context manager, or call `close`.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.reader = reader
        self.connection = duckdb.connect(config={"enable_external_access": False, "python_enable_replacements": False})
        self._failed, self._readers = FailedCalls(), Readers()
        try:
            self._register_views()
            register_functions(self.connection, reader, self._failed)
        except BaseException:
            self.close()  # otherwise DuckDB complains, when the process ends, about what it still holds
            raise
        # DuckDB draws its bar on standard output, where answers go.
        self.connection.execute("SET enable_progress_bar = false")
        self.connection.execute("SET lock_configuration = true")

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and wait for reads that have begun."""
        self.connection.close()
        self._readers.close()

    def arrow(self, statement: str, parameters: Sequence[object] | dict[str, object] | None = None) -> pa.Table:
        """Run one statement and return its result.

        Raises
        ------
        QueryError
            The statement is malformed.
        StoreError, ProbeError
            A function was asked for a layer, model or probe that the store does not hold.
        DamagedStoreError, StorageError
            A table cannot be read.
        """
        try:
            relation = self.connection.sql(statement, params=parameters)
            table = relation.to_arrow_table() if relation is not None else pa.table({})
        except duckdb.Error as error:
            self._failed.check()
            raise QueryError(_one_line(error)) from None
        self._failed.check()
        return table

    def batches(
        self, statement: str, parameters: Sequence[object] | dict[str, object] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Run one statement and yield its result a batch at a time. Errors as for `arrow`."""
        try:
            relation = self.connection.sql(statement, params=parameters)
            yield from relation.to_arrow_reader(_BATCH_ROWS) if relation is not None else ()
        except (duckdb.Error, pa.ArrowException) as error:
            self._failed.check()
            raise QueryError(_one_line(error)) from None
        self._failed.check()

    def relation(self, statement: str) -> duckdb.DuckDBPyRelation:
        """Run one statement and return its result as a DuckDB relation. Errors as for `arrow`."""
        return self.connection.from_arrow(self.arrow(statement))

    def _register_views(self) -> None:
        reader = self.reader
        examples = _joint_schema(reader)
        for name, schema in (("examples", examples), ("tokens", TOKENS), ("skipped", SKIPPED)):
            self._view(name, schema, partial(self._plan_tables, name, schema))
        self._register("_units", UNITS, partial(self._plan_tables, "units", UNITS))
        self._register("_receipts", RECEIPTS, ReceiptTable(reader))
        self.connection.execute(
            "CREATE VIEW units AS SELECT u.*, r.capture, r.model, "
            "coalesce(r.extracted, false) AS extracted, r.attempt, r.worker, r.seconds, r.bytes, r.error "
            "FROM _units u LEFT JOIN _receipts r USING (unit)"
        )
        self._view("captures", _CAPTURES, lambda _: ds.dataset(_captures_table(reader)))
        self._view("probes", _PROBES, lambda _: ds.dataset(_probes_table(self._probes)))
        self._view("probe_metrics", _PROBE_METRICS, lambda _: ds.dataset(_metrics_table(self._probes)))
        self._named_view("scores", "probe", layout.SCORES, SCORES, layout.probe_of)
        self._named_view("cliffs", "probe", layout.CLIFFS, CLIFFS, layout.stem)
        self._named_view("heads", "name", layout.HEADS, HEADS, layout.stem)
        self._named_view("selections", "selection", layout.SELECTIONS, SELECTIONS, layout.stem)

    def _register(self, name: str, schema: pa.Schema, found: Found) -> None:
        where = f"table {name.lstrip('_')} of store {self.reader.url}"
        self.connection.register(name, View(where, schema, found, self._readers, self._failed.note))

    def _view(self, name: str, schema: pa.Schema, found: Found) -> None:
        self._register(f"_{name}", schema, found)
        self.connection.execute(f"CREATE VIEW {name} AS SELECT * FROM _{name}")

    def _named_view(
        self, view: str, column: str, folder: str, schema: pa.Schema, name_of: Callable[[str], str]
    ) -> None:
        """Show all tables in a folder, each under its name in a first column."""
        named = pa.schema([pa.field(column, pa.string()), *schema])
        listed: list[ds.Dataset] = []

        def found(_: Sequence[str]) -> ds.Dataset:
            if not listed:
                sizes = self.reader.objects.sizes(folder)
                parquet = {key: size for key, size in sizes.items() if key.endswith(".parquet")}
                listed.append(tables.dataset(self.reader.objects, parquet, named, (column, name_of)))
            return listed[0]

        self._view(view, named, found)

    def _plan_tables(self, kind: str, schema: pa.Schema, _: Sequence[str]) -> ds.Dataset:
        return tables.dataset(self.reader.objects, self.reader.table_sizes(kind), schema)

    @cached_property
    def _probes(self) -> list[ProbeDocument]:
        return list_probes(self.reader.objects)


def _joint_schema(reader: StoreReader) -> pa.Schema:
    """Return the schema of all plans' examples: the corpus's own columns differ from plan to plan."""
    sizes = reader.table_sizes("examples")
    first_of_plan = {layout.plan_of(key): key for key in reversed(sizes)}
    schemas = [tables.schema_of(reader.objects, key, sizes[key]) for key in first_of_plan.values()]
    return pa.unify_schemas([EXAMPLES, *schemas], promote_options="permissive")


def _captures_table(reader: StoreReader) -> pa.Table:
    rows = [
        {
            "capture": capture.capture,
            "model": capture.alias,
            "name": capture.model.name,
            "revision": capture.model.revision,
            "site": spec.site,
            "layer": spec.layer,
            "row_shape": list(spec.row_shape),
            "dtype": spec.dtype,
            "key": spec.key,
        }
        for capture in reader.captures()
        for spec in capture_specs(capture)
    ]
    return pa.Table.from_pylist(rows, schema=_CAPTURES)


def _probes_table(probes: Sequence[ProbeDocument]) -> pa.Table:
    rows = []
    for probe in probes:
        measured = probe.chosen.model_dump(include={*_MEASURED, *_TESTED}) if probe.chosen else {}
        known = probe.model_dump(include=set(_PROBES.names))
        rows.append({**measured, **known, "probe": probe.name, "model": probe.alias})
    return pa.Table.from_pylist(rows, schema=_PROBES)


def _metrics_table(probes: Sequence[ProbeDocument]) -> pa.Table:
    """Return one line a cell: a position and a layer of a probe."""
    rows = [
        {"probe": probe.name, "chosen": cell == probe.chosen, **cell.model_dump()}
        for probe in probes
        for cell in probe.cells
    ]
    return pa.Table.from_pylist(rows, schema=_PROBE_METRICS)


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= {"^"}]
    return "; ".join(lines)[:600]
