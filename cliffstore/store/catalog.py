"""SQL over a store: DuckDB views on Arrow datasets, and functions that gather vectors.

DuckDB reads the Parquet tables through Arrow, so every fsspec scheme works, only needed columns and rows are read,
and no DuckDB extension is involved. Functions are vectorised: DuckDB hands over some thousand rows at a time, and
each distinct row among them is read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from cliffstore.errors import QueryError
from cliffstore.schema import CLIFFS, EXAMPLES, HEADS, SCORES, SELECTIONS, SKIPPED, TOKENS, UNITS
from cliffstore.store import layout, receipts, tables
from cliffstore.store.functions import register_functions
from cliffstore.store.probes import list_probes
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import capture_specs

_RECEIPTS = pa.schema(
    [
        pa.field("capture", pa.string()),
        pa.field("model", pa.string()),
        pa.field("unit", pa.int32()),
        pa.field("extracted", pa.bool_()),
        pa.field("attempt", pa.int32()),
        pa.field("worker", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("error", pa.string()),
    ]
)
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
_PROBES = pa.schema(
    [
        pa.field("probe", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("model", pa.string()),
        pa.field("site", pa.string()),
        pa.field("layer", pa.int32()),
        pa.field("positions", pa.string()),
        pa.field("label", pa.string()),
        pa.field("positive", pa.string()),
        pa.field("n_train", pa.int32()),
        pa.field("n_validation", pa.int32()),
        pa.field("n_test", pa.int32()),
        pa.field("auroc", pa.float64()),
        pa.field("test_auroc", pa.float64()),
        pa.field("shuffled_auroc", pa.float64()),
        pa.field("digest", pa.string()),
    ]
)
_PROBE_METRICS = pa.schema(
    [
        pa.field("probe", pa.string()),
        pa.field("layer", pa.int32()),
        pa.field("auroc", pa.float64()),
        pa.field("accuracy", pa.float64()),
        pa.field("log_loss", pa.float64()),
        pa.field("test_auroc", pa.float64()),
        pa.field("test_accuracy", pa.float64()),
    ]
)


class Catalog:
    """A DuckDB connection over one store, as the store was when the catalog was opened.

    Use as a context manager, or call `close`.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.reader = reader
        self.connection = duckdb.connect(config={"enable_external_access": False, "python_enable_replacements": False})
        self._register_tables()
        self._failed = register_functions(self.connection, reader)
        self.connection.execute("SET lock_configuration = true")

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def arrow(self, statement: str, parameters: Sequence[object] | dict[str, object] | None = None) -> pa.Table:
        """Run one statement and return its result.

        Raises
        ------
        QueryError
            The statement is malformed.
        StoreError, ProbeError
            A function was asked for a layer, model or probe that the store does not hold.
        """
        try:
            relation = self.connection.sql(statement, params=parameters)
            table = relation.to_arrow_table() if relation is not None else pa.table({})
        except duckdb.Error as error:
            raise QueryError(_one_line(error)) from None
        self._failed.check()
        return table

    def relation(self, statement: str) -> duckdb.DuckDBPyRelation:
        """Run one statement and return its result as a DuckDB relation. Errors as for `arrow`."""
        return self.connection.from_arrow(self.arrow(statement))

    def _register_tables(self) -> None:
        reader, objects = self.reader, self.reader.objects
        plans = [plan.plan for plan in reader.plans()]
        plan_keys = [key for plan in plans for key in objects.list(f"{layout.PLANS}/{plan}")]
        example_keys = [key for key in plan_keys if layout.kind_of(key) == "plan_table" and "/examples/" in key]
        self._view("examples", tables.dataset(objects, example_keys, _joint_schema(self.reader, example_keys)))
        self._view("tokens", tables.dataset(objects, [key for key in plan_keys if "/tokens/" in key], TOKENS))
        self._view("skipped", tables.dataset(objects, [layout.skipped_table(plan) for plan in plans], SKIPPED))
        self.connection.register("_units", tables.dataset(objects, [layout.units_table(plan) for plan in plans], UNITS))
        self.connection.register("_receipts", _receipts_table(reader))
        self.connection.execute(
            "CREATE VIEW units AS SELECT u.*, r.capture, r.model, "
            "coalesce(r.extracted, false) AS extracted, r.attempt, r.worker, r.seconds, r.bytes, r.error "
            "FROM _units u LEFT JOIN _receipts r USING (unit)"
        )
        self._view("captures", _captures_table(reader))
        probes, metrics = _probe_tables(reader)
        self._view("probes", probes)
        self._view("probe_metrics", metrics)
        scored = [key for key in objects.list(layout.SCORES) if key.endswith(".parquet")]
        self._named_view("scores", "probe", _by_folder(scored), SCORES)
        cliffs = _by_name(objects.list(layout.CLIFFS))
        self._named_view("cliffs", "probe", cliffs, CLIFFS)
        heads = _by_name(objects.list(layout.HEADS))
        self._named_view("heads", "name", heads, HEADS)
        selections = _by_name(objects.list(layout.SELECTIONS))
        self._named_view("selections", "selection", selections, SELECTIONS)

    def _view(self, name: str, source: ds.Dataset | pa.Table) -> None:
        self.connection.register(f"_{name}", source)
        self.connection.execute(f"CREATE VIEW {name} AS SELECT * FROM _{name}")

    def _named_view(self, view: str, column: str, keys: dict[str, list[str]], schema: pa.Schema) -> None:
        """Join several sets of files into one view, each under its name in a first column."""
        parts = keys or {"": []}
        selects = []
        for number, (name, names) in enumerate(sorted(parts.items())):
            self.connection.register(f"_{view}_{number}", tables.dataset(self.reader.objects, names, schema))
            quoted = name.replace("'", "''")
            selects.append(f"SELECT '{quoted}' AS {column}, * FROM _{view}_{number}")
        self.connection.execute(f"CREATE VIEW {view} AS {' UNION ALL '.join(selects)}")


def _joint_schema(reader: StoreReader, keys: Sequence[str]) -> pa.Schema:
    """Return the schema of all plans' examples: the corpus's own columns differ from plan to plan."""
    first_of_plan = {key.split("/")[1]: key for key in reversed(keys)}
    schemas = [tables.schema_of(reader.objects, key) for key in first_of_plan.values()]
    return pa.unify_schemas([EXAMPLES, *schemas], promote_options="permissive")


def _receipts_table(reader: StoreReader) -> pa.Table:
    rows: list[dict[str, object]] = []
    for capture in reader.captures():
        for receipt in reader.receipts(capture.capture):
            known = receipt.model_dump(include={"capture", "unit", "attempt", "worker", "seconds", "bytes"})
            rows.append({**known, "model": capture.alias, "extracted": True, "error": None})
        for error in receipts.read_errors(reader.objects, capture.capture):
            known = error.model_dump(include={"capture", "unit", "attempt", "worker", "error"})
            rows.append({**known, "model": capture.alias, "extracted": False})
    for error in receipts.read_errors(reader.objects, layout.SCORES):  # of runs that store scores only
        rows.append({**error.model_dump(include={"unit", "attempt", "worker", "error"}), "extracted": False})
    return pa.Table.from_pylist(rows, schema=_RECEIPTS)


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


def _probe_tables(reader: StoreReader) -> tuple[pa.Table, pa.Table]:
    probes: list[dict[str, object]] = []
    metrics: list[dict[str, object]] = []
    for probe in list_probes(reader.objects):
        chosen = next(layer for layer in probe.layers if layer.layer == probe.layer)
        probes.append(
            {
                **probe.model_dump(include=set(_PROBES.names)),
                "probe": probe.name,
                "model": probe.alias,
                "auroc": chosen.auroc,
                "test_auroc": chosen.test_auroc,
            }
        )
        metrics.extend({"probe": probe.name, **layer.model_dump()} for layer in probe.layers)
    return pa.Table.from_pylist(probes, schema=_PROBES), pa.Table.from_pylist(metrics, schema=_PROBE_METRICS)


def _by_folder(keys: Sequence[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for key in keys:
        folders.setdefault(key.split("/")[1], []).append(key)
    return folders


def _by_name(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the tables among the keys by their names; beside them lie the documents of what they were made from."""
    return {layout.stem(key): [key] for key in keys if key.endswith(".parquet")}


def _one_line(error: duckdb.Error) -> str:
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= {"^"}]
    return "; ".join(lines)[:600]
