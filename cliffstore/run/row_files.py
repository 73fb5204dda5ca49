"""Rows written as JSON lines or Parquet, as the name of the file says: a corpus again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.access import scheme_of

SUFFIXES = (".jsonl", ".parquet")
_READ_ONLY = ("http", "https")


def check_output(output: str) -> str:
    """Return the name of a file of rows. Raises ValueError where none can be written by it."""
    if not output.lower().endswith(SUFFIXES):
        raise ValueError(f"output {output}: name a file that ends in {' or '.join(SUFFIXES)}")
    if scheme_of(output) in _READ_ONLY:
        raise ValueError(f"output {output}: web addresses are read and not written; name a path, or a URL of storage")
    return output


class Sink(Protocol):
    """A file that is written."""

    def write(self, content: bytes, /) -> int: ...

    def flush(self) -> None: ...


class RowWriter:
    """Writes rows in blocks. Use as a context manager: leaving it writes what ends the file.

    Parameters
    ----------
    output : name of the file, which ends in one of `SUFFIXES`, in capitals or not
    schema : columns in their order; a row need not have all, and what else it has is not written
    """

    def __init__(self, output: str, sink: Sink, schema: pa.Schema) -> None:
        self._sink, self._schema = sink, schema
        self._parquet: pq.ParquetWriter | None = None
        if output.lower().endswith(".parquet"):
            self._parquet = pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd")

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write some rows. In JSON a row without messages has no such key."""
        if self._parquet is not None:
            self._parquet.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))
            return
        for row in rows:
            kept = {name: row.get(name) for name in self._schema.names}
            if kept.get("messages", "") is None:
                del kept["messages"]
            self._sink.write(json.dumps(kept, ensure_ascii=False, default=str).encode() + b"\n")


def without_answer(messages: object) -> object:
    """Return messages up to the last turn of the user: what the assistant answered is what `response` says."""
    is_answered = isinstance(messages, list) and messages and messages[-1].get("role") == "assistant"
    return messages[:-1] if is_answered and isinstance(messages, list) else messages
