"""How results of SQL are shown and saved: a table for people; CSV, JSON, JSON Lines and Parquet, which stream."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, BinaryIO

from cliffstore.cli.output import print_table, to_json
from cliffstore.errors import QueryError
from cliffstore.text import printable

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Buffer

    from cliffstore.store.results import Batches

FORMATS = ("table", "csv", "json", "jsonl", "parquet")


def show(batches: Batches, format: str, most: int) -> int:
    """Print a result on standard output. Return how many rows were not shown: of a table, those after `most`."""
    if format != "table":
        sys.stdout.flush()
        try:
            write(batches, format, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Who reads has had enough. Python would complain when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    rows: list[list[object]] = []
    left_out = 0
    for batch in batches:
        wanted = batch.slice(0, max(most - len(rows), 0)) if most else batch
        rows += [list(row.values()) for row in wanted.to_pylist()]
        left_out += batch.num_rows - wanted.num_rows
    if batches.schema.names == ["explain_key", "explain_value"]:
        print(*(row[1] for row in rows), sep="\n")
    else:
        print_table(batches.schema.names, rows)
    return left_out


def write(batches: Batches, format: str, sink: BinaryIO) -> int:
    """Write a result as it comes. Return its rows."""
    import pyarrow as pa

    writers = {"csv": _write_csv, "json": _write_json, "jsonl": _write_lines, "parquet": _write_parquet}
    try:
        return writers.get(format, _write_text)(batches, sink)
    except pa.ArrowException as error:
        raise QueryError(f"the result cannot be written as {format}: {' '.join(str(error).split())[:300]}") from None


def _write_csv(batches: Batches, sink: BinaryIO) -> int:
    from pyarrow import csv

    rows = 0
    flat = _flat_schema(batches.schema)
    sink.write(_csv_of(flat.empty_table(), csv.WriteOptions(include_header=True)))
    for batch in batches:
        sink.write(_csv_of(_flat(batch, flat), csv.WriteOptions(include_header=False)))
        rows += batch.num_rows
    return rows


def _csv_of(table: pa.Table, options: object) -> bytes:
    from pyarrow import csv

    buffer = io.BytesIO()
    csv.write_csv(table, buffer, options)
    return buffer.getvalue()


def _flat_schema(schema: pa.Schema) -> pa.Schema:
    """CSV has no lists and no dictionaries: the former are JSON, the latter text."""
    import pyarrow as pa

    def is_flat(kind: pa.DataType) -> bool:
        return not (pa.types.is_nested(kind) or pa.types.is_dictionary(kind))

    return pa.schema([field if is_flat(field.type) else pa.field(field.name, pa.string()) for field in schema])


def _flat(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        if pa.types.is_nested(column.type):
            values = [None if value is None else to_json(value) for value in column.to_pylist()]
            columns.append(pa.array(values, pa.string()))
        else:
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _write_json(batches: Batches, sink: BinaryIO) -> int:
    rows = 0
    for batch in batches:
        for row in batch.to_pylist():
            sink.write((",\n " if rows else "[").encode() + to_json(row).encode())
            rows += 1
    sink.write(b"]\n" if rows else b"[]\n")
    return rows


def _write_lines(batches: Batches, sink: BinaryIO) -> int:
    rows = 0
    for batch in batches:
        sink.writelines(to_json(row).encode() + b"\n" for row in batch.to_pylist())
        rows += batch.num_rows
    return rows


def _write_text(batches: Batches, sink: BinaryIO) -> int:
    """Write the whole table, a line a row, cells apart by tabs; what does not print is escaped."""
    rows = 0
    sink.write("\t".join(map(printable, batches.schema.names)).encode() + b"\n")
    for batch in batches:
        for row in batch.to_pylist():
            cells = ("" if value is None else printable(str(value)) for value in row.values())
            sink.write("\t".join(cells).encode() + b"\n")
        rows += batch.num_rows
    return rows


def _write_parquet(batches: Batches, sink: BinaryIO) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    rows = 0
    with (
        pa.PythonFile(_LeftOpen(sink), mode="w") as file,
        parquet.ParquetWriter(file, batches.schema, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


class _LeftOpen(io.RawIOBase):
    """A file to write that stays open when its writer closes it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, content: Buffer) -> int:
        return self._sink.write(content)
