"""`cliffstore sql`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Json, OptionsFrom, StoreUrl, open_to_read, print_json, print_table, to_json
from cliffstore.errors import QueryError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "parquet")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="sql",
        help="Query a store. Views: examples, tokens, units, skipped, captures, scores, cliffs, heads, probes, "
        "probe_metrics, selections. Functions: resid_post(row, layer), score(probe, row), probe_weight(probe).",
    )(sql)


def sql(
    store: StoreUrl,
    statement: Annotated[str, typer.Argument(help="One SQL statement.")],
    format: Annotated[str, typer.Option(help="table, csv, json, parquet.")] = "table",
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write to a file.")] = None,
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    if json:
        format = "json"
    if format not in FORMATS:
        raise QueryError(f"format {format!r} is not known: choose from {', '.join(FORMATS)}")
    with open_to_read(store, config) as opened:
        table = opened.catalog.arrow(statement)
    if output is None and format == "table":
        print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])
    elif output is None and format == "json":
        print_json(table.to_pylist())
    else:
        content = _encoded(table, format)
        if output is None:
            sys.stdout.buffer.write(content)
        else:
            _write(Path(output), content)
            print(f"{output}: {table.num_rows} rows")


def _encoded(table: pa.Table, format: str) -> bytes:
    import pyarrow.csv
    import pyarrow.parquet

    sink = io.BytesIO()
    if format == "parquet":
        pyarrow.parquet.write_table(table, sink, compression="zstd")
    elif format == "csv":
        pyarrow.csv.write_csv(_flat(table), sink)
    elif format == "json":
        sink.write((to_json(table.to_pylist()) + "\n").encode())
    else:
        sink.write(_as_text(table).encode())
    return sink.getvalue()


def _flat(table: pa.Table) -> pa.Table:
    """CSV has no lists and no dictionaries: write the former as JSON, the latter as text."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            values = [None if v is None else to_json(v) for v in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(values, pa.string()))
        elif pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
    return table


def _as_text(table: pa.Table) -> str:
    lines = ["\t".join(table.column_names)]
    lines += ["\t".join("" if v is None else str(v) for v in row.values()) for row in table.to_pylist()]
    return "\n".join(lines) + "\n"


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise QueryError(f"cannot write {path}: {error.strerror or error}") from None
