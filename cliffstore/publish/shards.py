"""The Parquet files of a training set: zstd, row groups and files of sensible size, the same bytes for the same rows.

Rows are written to temporary files on this machine as they come; only what is complete is put where it is wanted.
Names are those that `datasets` and the hub know: `train.parquet`, or `train-00000-of-00002.parquet` where there are
several. Memory holds one row group while rows come, and one file while it is put.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.store import tables
from cliffstore.store.objects import ObjectStore

GROUP_ROWS, GROUP_BYTES = 10_000, 32 << 20
"""A row group ends at whichever comes first; bytes are those before compression."""
FILE_BYTES = 1 << 30
"""A file ends above this much before compression: a few hundred MB as text is compressed."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a training set."""

    name: str
    split: str
    rows: int
    digest: str


class ShardWriter:
    """The files of one split.

    Parameters
    ----------
    folder : for temporary files
    split : `train` or `validation`
    provenance : goes into each file's metadata
    file_bytes : see `FILE_BYTES`; None for one file, however large
    """

    def __init__(
        self, folder: Path, split: str, schema: pa.Schema, provenance: Mapping[str, str], file_bytes: int | None
    ) -> None:
        self.split = split
        self._folder, self._file_bytes = folder, file_bytes
        self._schema = schema.with_metadata(tables.metadata({**provenance, "split": split}))
        self._pending: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._written = 0
        self._rows: list[int] = []

    def add(self, table: pa.Table) -> None:
        """Take rows in."""
        self._pending.append(table)
        waiting = sum(one.num_rows for one in self._pending), sum(one.nbytes for one in self._pending)
        if waiting[0] >= GROUP_ROWS or waiting[1] >= GROUP_BYTES:
            self._end_group()

    def close(self) -> None:
        """End the last file."""
        self._end_group()
        self._end_file()

    def put(self, target: ObjectStore, stem: str) -> Iterator[DataFile]:
        """Put the files where they are wanted, unless they are there already.

        Parameters
        ----------
        stem : of their names, such as `train`
        """
        many = len(self._rows)
        for number, rows in enumerate(self._rows):
            name = f"{stem}-{number:05d}-of-{many:05d}.parquet" if many > 1 else f"{stem}.parquet"
            content = self._path(number).read_bytes()
            target.put_if_new(name, content)
            yield DataFile(name, self.split, rows, hashlib.sha256(content).hexdigest())

    def _path(self, number: int) -> Path:
        return self._folder / f"{self.split}-{number}.parquet"

    def _end_group(self) -> None:
        if not self._pending:
            return
        table = pa.concat_tables(self._pending).combine_chunks().replace_schema_metadata(self._schema.metadata)
        self._pending = []
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path(len(self._rows)), self._schema, compression="zstd")
            self._written = 0
            self._rows.append(0)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._rows[-1] += table.num_rows
        self._written += table.nbytes
        if self._file_bytes is not None and self._written >= self._file_bytes:
            self._end_file()

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
