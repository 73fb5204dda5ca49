"""SQL over stores: DuckDB views on Arrow datasets, and functions that gather vectors.

DuckDB reads the Parquet tables through Arrow, so every fsspec scheme works, only needed columns and rows are read,
and no DuckDB extension is involved. Functions are vectorised: DuckDB hands over some thousand rows at a time, and
each chunk of an array is decoded once where the cache of chunks holds it (see `vector_columns`).

Opening lists plans and captures and reads their documents, and the end of one table of examples a plan. What a view
holds is found when a statement first scans it (see `views`): receipts are listed by `SELECT extracted FROM units`, and
read once columns are asked for that only they hold.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial

import duckdb
import pyarrow as pa

from cliffstore.errors import QueryError
from cliffstore.schema import SKIPPED, TOKENS, UNITS, ProbeDocument
from cliffstore.store.functions import Functions
from cliffstore.store.intervention_words import in_words
from cliffstore.store.probes import list_probes
from cliffstore.store.reader import StoreReader
from cliffstore.store.receipt_table import ReceiptTable
from cliffstore.store.results import Batches
from cliffstore.store.running import FailedCalls
from cliffstore.store.session import QueryLimits, Statement, connect, lock, parse, relation_of
from cliffstore.store.sources import PlanTables, Told, examples_schema, named_tables
from cliffstore.store.views import Found, Readers, View
from cliffstore.store.writer import capture_specs

Parameters = Sequence[object] | dict[str, object] | None

_NAME = re.compile("[A-Za-z][A-Za-z0-9_]{0,62}")
_RESERVED = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
_TAKEN = "SELECT lower(schema_name) FROM duckdb_schemas() UNION SELECT lower(database_name) FROM duckdb_databases()"

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
        pa.field("interventions", pa.string()),
        pa.field("key", pa.string()),
    ]
)
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
    """A DuckDB connection over one store, or several. A view shows a store as it was when a statement first read it.

    Use as a context manager, or call `close`.

    Parameters
    ----------
    reader : of the store whose views and functions need no prefix
    limits : what SQL may use; by default the machine's memory, any time, and nothing outside the store
    """

    def __init__(self, reader: StoreReader, limits: QueryLimits | None = None) -> None:
        self.reader, self.limits = reader, limits or QueryLimits()
        self.connection, remove_spilled = connect(self.limits)
        self._failed, self._readers = FailedCalls(), Readers()
        self._functions = Functions(self.connection, self._failed)
        self._views: dict[str, View] = {}
        self._own_tables: set[str] = set()
        self._open: weakref.WeakSet[Batches] = weakref.WeakSet()
        # What a process leaves open when it ends complains, or aborts it.
        parts = (self._open, self.connection, self._functions, self._readers, remove_spilled)
        self._closing = weakref.finalize(self, _close, *parts)
        try:
            self._add(reader, "main")
            lock(self.connection, self.limits)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, wait for reads that have begun, and remove what was spilled to disk."""
        self._closing()

    def attach(self, name: str, reader: StoreReader) -> None:
        """Show another store, as `<name>.examples`, `<name>.resid_post(row, layer)` and so on.

        Raises
        ------
        QueryError
            `name` cannot be the name of a schema, or is one.
        """
        self._check_name(name)
        if name.lower() in {str(row[0]) for row in self.connection.sql(_TAKEN).fetchall()}:
            raise QueryError(f"cannot attach a store as {name!r}: the name is taken; choose another")
        self.connection.execute(f'CREATE SCHEMA "{name}"')
        self._add(reader, name)

    def register(self, name: str, table: object) -> None:
        """Let SQL read an Arrow table, or what Arrow takes for one, under a name.

        Raises
        ------
        QueryError
            `name` is none, or is taken by a view; or Arrow does not take the table.
        """
        self._check_name(name)
        if name.lower() in self.names() and name not in self._own_tables:
            raise QueryError(f"cannot register a table as {name!r}: the name is taken; choose another")
        held = arrow_table(name, table)
        self._own_tables.add(name)
        self._view("main", name, Told(held.schema, lambda: held), "registered from Python")

    def names(self) -> list[str]:
        """Return the names of views and tables, in lower case; those of attached stores with theirs before."""
        found = self.connection.sql(
            "SELECT lower(CASE schema_name WHEN 'main' THEN '' ELSE schema_name || '.' END || name) FROM "
            "(SELECT schema_name, view_name AS name, internal FROM duckdb_views() UNION ALL "
            "SELECT schema_name, table_name, internal FROM duckdb_tables()) WHERE NOT internal AND name[1] <> '_'"
        )
        return sorted(str(row[0]) for row in found.fetchall())

    def statements(self, text: str) -> list[Statement]:
        """Return the statements of a text. Raises `QueryError` where one is malformed or may not run."""
        return parse(self.connection, text, self.limits)

    def arrow(self, text: str, parameters: Parameters = None) -> pa.Table:
        """Run one statement, or several, and return the result of the last. Only that takes parameters.

        Raises
        ------
        QueryError
            The statement is malformed or may not run.
        StoreError, ProbeError
            A function was asked for a layer, model or probe that the store does not hold.
        DamagedStoreError, StorageError
            A table cannot be read.
        QueryStoppedError
            A limit was reached.
        """
        statements = self.statements(text)
        for statement in statements[:-1]:
            with self.run(statement) as batches:
                pa.Table.from_batches(batches, batches.schema)
        if not statements:
            return pa.table({})
        with self.run(statements[-1], parameters) as batches:
            return pa.Table.from_batches(batches, batches.schema)

    def run(self, statement: Statement, parameters: Parameters = None, rows: int | None = None) -> Batches:
        """Run one statement and return its result in batches; nothing else may run before they are closed."""
        return self._batches(self.connection, statement, parameters, rows)

    def batches(self, text: str, rows: int | None = None, parameters: Parameters = None) -> Batches:
        """Run one statement beside others, on a connection of its own that sees no temporary table of theirs.

        Parameters
        ----------
        rows : of a batch, at most; if it is not said, 65,536, or as many as hold 64 MiB of vectors

        Raises
        ------
        QueryError
            There is not one statement. Further errors as for `arrow`, also from the batches.
        """
        statements = self.statements(text)
        if len(statements) != 1:
            raise QueryError(f"say one statement to read in batches, not {len(statements)}")
        cursor = self.connection.cursor()
        for name, view in self._views.items():
            cursor.register(name, view)
        return self._batches(cursor, statements[0], parameters, rows)

    def relation(self, text: str, parameters: Parameters = None) -> duckdb.DuckDBPyRelation:
        """Run one statement and return its result as a DuckDB relation. Errors as for `arrow`."""
        return relation_of(self.arrow(text, parameters), self.limits)

    def _batches(
        self, connection: duckdb.DuckDBPyConnection, statement: Statement, parameters: Parameters, rows: int | None
    ) -> Batches:
        batches = Batches(connection, statement, parameters, rows, self._failed, self.limits)
        self._open.add(batches)
        return batches

    def _check_name(self, name: str) -> None:
        reserved = {row[0] for row in self.connection.sql(_RESERVED).fetchall()}
        if not _NAME.fullmatch(name) or name.lower() in reserved:
            raise QueryError(
                f"{name!r} cannot be a name in SQL: use up to 63 letters, digits or '_', beginning with a letter, "
                "and no word of SQL's own"
            )

    def _add(self, reader: StoreReader, schema: str) -> None:
        where = f"of store {reader.url}"
        for name, columns in (("examples", examples_schema(reader)), ("tokens", TOKENS), ("skipped", SKIPPED)):
            self._view(schema, name, PlanTables(reader, name, columns), where)
        self._register(f"_{schema}.units", PlanTables(reader, "units", UNITS), where)
        self._register(f"_{schema}.receipts", ReceiptTable(reader), where)
        self.connection.execute(
            f'CREATE VIEW "{schema}".units AS SELECT u.*, r.capture, r.model, '
            "coalesce(r.extracted, false) AS extracted, r.attempt, r.worker, r.seconds, r.bytes, r.error "
            f'FROM "_{schema}.units" u LEFT JOIN "_{schema}.receipts" r USING (unit)'
        )
        probes = cache(partial(list_probes, reader.objects))
        for name, columns, table in (
            ("captures", _CAPTURES, lambda: _captures_table(reader)),
            ("probes", _PROBES, lambda: _probes_table(probes())),
            ("probe_metrics", _PROBE_METRICS, lambda: _metrics_table(probes())),
        ):
            self._view(schema, name, Told(columns, table), where)
        for name, tables in named_tables(reader).items():
            self._view(schema, name, tables, where)
        self._functions.register(reader, schema)

    def _view(self, schema: str, name: str, found: Found, where: str) -> None:
        hidden = f"_{schema}.{name}"
        self._register(hidden, found, where)
        self.connection.execute(f'CREATE OR REPLACE VIEW "{schema}"."{name}" AS SELECT * FROM "{hidden}"')

    def _register(self, hidden: str, found: Found, where: str) -> None:
        view = View(f"table {hidden.partition('.')[2]} {where}", found, self._readers, self._failed)
        self._views[hidden] = view
        self.connection.register(hidden, view)


def arrow_table(name: str, table: object) -> pa.Table:
    """Return what Arrow makes of a table. Raises `QueryError` where it makes nothing of it."""
    try:
        return table if isinstance(table, pa.Table) else pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise QueryError(f"table {name!r}: Arrow cannot read a {type(table).__name__}: {error}") from None


def _close(
    batches: weakref.WeakSet[Batches],
    connection: duckdb.DuckDBPyConnection,
    functions: Functions,
    readers: Readers,
    remove_spilled: Callable[[], None],
) -> None:
    for one in list(batches):
        one.close()
    functions.close()
    connection.close()
    readers.close()
    remove_spilled()


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
            "interventions": in_words(capture.interventions),
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
