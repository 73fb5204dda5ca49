"""A corpus: files to `CorpusRow`s with ids, labels and extra columns, and what was left out, with reasons.

Steps: read the files in blocks, draft each row, keep the drafts on local disk, then settle what needs all of them:
ids, types of the other columns, the filter. Row ids and column types are settled before `where` and `limit`, and
do not depend on the order of the files, so a filtered corpus names its rows as the whole one does. Cost: the memory
of a block and of DuckDB's limit, and disk for the drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cliffstore.corpus.columns import Settled, settle_names
from cliffstore.corpus.drafts import (
    DraftBlock,
    DraftRules,
    LocatedRow,
    corpus_rows,
    draft_block,
    extra_of,
    skipped_rows,
)
from cliffstore.corpus.files import BLOCK_BYTES, BLOCK_ROWS, Blocks, RawRow, read_files
from cliffstore.corpus.kinds import NULL, Kind, join
from cliffstore.corpus.rows import KNOWN
from cliffstore.corpus.scratch import batches, insert, open_scratch
from cliffstore.corpus.where import ROW, rows_where
from cliffstore.errors import CorpusError
from cliffstore.records import SkippedRow

A = TypeVar("A")
B = TypeVar("B")
Apply = Callable[[Callable[[A], B], Iterable[A]], Iterable[B]]
"""Like `map`, and perhaps in other processes."""
_KEPT = ("id", "prompt", "system", "thinking", "response", "label", "source")


class Corpus:
    """What `read_corpus` found; its rows lie on local disk.

    Attributes
    ----------
    n_rows, n_skipped : usable rows, and rows that are not
    settled : the columns beyond the known ones
    notices : one line each, for the user to see
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, settled: Settled, notices: Sequence[str], block_rows: int
    ) -> None:
        self._connection, self._block_rows = connection, block_rows
        self.settled, self.notices = settled, tuple(notices)
        self.n_rows, self.n_skipped = connection.execute(
            "SELECT count(*) FILTER (reason IS NULL), count(*) FILTER (reason IS NOT NULL) FROM chosen"
        ).fetchall()[0]

    @property
    def extra_schema(self) -> pa.Schema:
        """Arrow types of `CorpusRow.extra`, sorted by column name."""
        return self.settled.schema

    def tables(self) -> Iterator[pa.Table]:
        """Yield the usable drafts a block at a time, in any order; `drafts.corpus_rows` makes rows of them."""
        for batch in batches(self._connection, "SELECT * FROM chosen WHERE reason IS NULL", self._block_rows):
            yield pa.Table.from_batches([batch])

    def rows(self) -> Iterator[LocatedRow]:
        """Yield the usable rows in input order."""
        statement = "SELECT * FROM chosen WHERE reason IS NULL ORDER BY seq"
        for batch in batches(self._connection, statement, self._block_rows):
            yield from corpus_rows(pa.Table.from_batches([batch]), self.settled)

    def skipped(self) -> Iterator[SkippedRow]:
        """Yield the rows that cannot be used, in input order."""
        for batch in batches(
            self._connection, "SELECT * FROM chosen WHERE reason IS NOT NULL ORDER BY seq", BLOCK_ROWS
        ):
            yield from skipped_rows(pa.Table.from_batches([batch]))

    def close(self) -> None:
        """Let go of the rows."""
        self._connection.close()


def read_corpus(
    inputs: Sequence[str],
    folder: str | Path,
    *,
    mapping: Mapping[str, str] = {},
    where: str | None = None,
    limit: int | None = None,
    storage_options: Mapping[str, object] | None = None,
    apply: Apply[Sequence[RawRow], DraftBlock] = map,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Read the rows of all inputs.

    Parameters
    ----------
    inputs : files, globs, folders or `datasets` folders; any fsspec URL
    folder : local folder for what is larger than memory
    mapping : known name -> the corpus column that holds it
    where : SQL boolean expression over the corpus columns; other rows are left out
    limit : keep only so many rows, in input order, after `where`
    storage_options : for fsspec, given to remote inputs only
    apply : maps a function over blocks of rows
    on_rows : told how many rows have been read so far

    Raises
    ------
    CorpusError
        The corpus as a whole cannot be used.
    QueryError
        `where` is malformed.
    """
    if limit is not None and limit < 1:
        raise CorpusError(f"limit must be at least 1, not {limit}")
    columns = _known_columns(mapping)
    text_columns = frozenset(column for name, column in columns.items() if name != "messages")
    seen = _Seen(columns, mapping)
    rules = DraftRules(columns, tuple(sorted(set(mapping.values()))) if where is not None else ())
    connection = open_scratch(folder, "corpus")
    try:
        insert(connection, "drafts", _numbered(draft_block([], rules).drafts, 0))
        kinds: dict[str, Kind] = {}
        raw_kinds: dict[str, Kind] = {}
        n_rows = n_bytes = 0
        blocks = (block.rows for block in seen.watch(read_files(inputs, text_columns, storage_options)))
        for found in apply(partial(draft_block, rules=rules), blocks):
            insert(connection, "drafts", _numbered(found.drafts, n_rows))
            n_rows, n_bytes = n_rows + found.drafts.num_rows, n_bytes + found.drafts.nbytes
            on_rows(n_rows)
            for into, more in ((kinds, found.kinds), (raw_kinds, found.raw_kinds)):
                into.update({name: join(into.get(name, NULL), kind) for name, kind in more.items()})
        seen.check()
        _name_rows(connection)
        names, renamed = settle_names([*kinds])
        settled = Settled(names, kinds)
        notices = [*seen.notices, *renamed, *settled.notices]
        n_kept = n_rows
        if where is not None:
            n_kept = _keep_where(connection, Path(folder), settled, raw_kinds, where)
            notices.append(f"--where keeps {n_kept} of {n_rows} rows")
            if not n_kept:
                raise CorpusError(f"empty corpus: --where {where!r} keeps none of {n_rows} rows; change it")
        if limit is not None and limit < n_kept:
            notices.append(f"--limit keeps the first {limit} of {n_kept} rows")
        _choose(connection, filtered=where is not None, limit=limit)
        corpus = Corpus(connection, settled, notices, _block_rows(n_rows, n_bytes))
        _check_some_usable(corpus, connection)
    except BaseException:
        connection.close()
        raise
    return corpus


class _Seen:
    """What the files had: columns, and whether there were rows."""

    def __init__(self, columns: Mapping[str, str], mapping: Mapping[str, str]) -> None:
        self._mapping = mapping
        self._needed = {columns[name] for name in ("prompt", "messages") if name in columns}
        self._files: dict[str, dict[str, None]] = {}
        self._with_rows: set[str] = set()
        self.notices: list[str] = []

    def watch(self, blocks: Blocks) -> Blocks:
        for block in blocks:
            self._files.setdefault(block.name, {}).update(dict.fromkeys(block.columns))
            self.notices.extend(block.notices)
            if block.rows:
                self._with_rows.add(block.name)
                yield block

    def check(self) -> None:
        """Raise `CorpusError` where there is no row, or a column that is needed is not there."""
        if not self._with_rows:
            names = ", ".join(self._files) or "nothing was given"
            raise CorpusError(f"empty corpus: no rows in the input ({names}); give at least one row")
        there = sorted({column for columns in self._files.values() for column in columns})
        for name, column in self._mapping.items():
            if column not in there:
                raise CorpusError(f"--map {name}={column}: no such column; there are {', '.join(there)}")
        for file in (name for name in self._files if name in self._with_rows):
            if not self._needed & set(self._files[file]):
                wanted = " or ".join(sorted(self._needed))
                found = ", ".join(self._files[file]) or "none"
                hint = "choose one with --map prompt=COLUMN"
                raise CorpusError(f"{file}: no column {wanted}; there are {found}; {hint}")


def _known_columns(mapping: Mapping[str, str]) -> dict[str, str]:
    """Give the corpus column of each known name. A mapped `prompt` wins over an unmapped `messages`."""
    unknown = sorted(mapping.keys() - set(KNOWN))
    if unknown:
        raise CorpusError(f"--map {unknown[0]}={mapping[unknown[0]]}: known names are {', '.join(KNOWN)}")
    columns = {name: mapping.get(name, name) for name in KNOWN}
    if "prompt" in mapping and "messages" not in mapping:
        del columns["messages"]
    return columns


def _numbered(drafts: pa.Table, first: int) -> pa.Table:
    return drafts.append_column("seq", pa.array(range(first, first + drafts.num_rows), pa.int64()))


def _name_rows(connection: duckdb.DuckDBPyConnection) -> None:
    """Give each row its id: its own, or one made of its content with `-2`, `-3` for exact copies."""
    connection.execute(
        "CREATE TABLE copies AS SELECT seq, id || '-' || copy AS id FROM ("
        "SELECT seq, id, row_number() OVER (PARTITION BY id ORDER BY seq) AS copy FROM drafts WHERE NOT has_own_id "
        "AND id IN (SELECT id FROM drafts WHERE NOT has_own_id GROUP BY id HAVING count(*) > 1)) WHERE copy > 1"
    )
    connection.execute(
        "CREATE VIEW named AS SELECT d.* REPLACE (coalesce(c.id, d.id) AS id) "
        "FROM drafts d LEFT JOIN copies c USING (seq)"
    )
    twice = connection.execute(
        "WITH again AS (SELECT id FROM named GROUP BY id HAVING count(*) > 1), "
        "places AS (SELECT id, location, seq, row_number() OVER (PARTITION BY id ORDER BY seq) AS time FROM named "
        "SEMI JOIN again USING (id)), "
        "first AS (SELECT id FROM places WHERE time = 2 ORDER BY seq LIMIT 1) "
        "SELECT id, location FROM places SEMI JOIN first USING (id) ORDER BY seq LIMIT 2"
    ).fetchall()
    if twice:
        (id_, one), (_, other) = twice
        raise CorpusError(f"the id {id_!r} is there twice, at {one} and {other}; make ids unique or leave them out")


def _choose(connection: duckdb.DuckDBPyConnection, *, filtered: bool, limit: int | None) -> None:
    """Make the view of rows that are kept."""
    if limit is not None:
        those = "SEMI JOIN kept USING (seq)" if filtered else ""
        connection.execute(f"CREATE TABLE first AS SELECT seq FROM drafts {those} ORDER BY seq LIMIT {limit}")
    those = "SEMI JOIN first USING (seq)" if limit is not None else "SEMI JOIN kept USING (seq)" if filtered else ""
    connection.execute(f"CREATE VIEW chosen AS SELECT * FROM named {those}")


def _keep_where(
    connection: duckdb.DuckDBPyConnection, folder: Path, settled: Settled, raw_kinds: Mapping[str, Kind], where: str
) -> int:
    """Make the table of rows for which the expression is true; return how many they are."""
    taken = {*_KEPT, *(name.lower() for name in settled.schema.names)}
    raw = Settled({name: name for name in sorted(raw_kinds) if name.lower() not in taken}, raw_kinds)
    path = folder / "where.parquet"
    known = [pa.field(name, pa.string()) for name in _KEPT]
    schema = pa.schema([*known, *settled.schema, *raw.schema, pa.field(ROW, pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches(connection, "SELECT * FROM named", BLOCK_ROWS):
            drafts = pa.Table.from_batches([batch])
            writer.write_table(_query_table(drafts, settled, raw, schema))
    kept = rows_where(ds.dataset(path), where)
    path.unlink()
    insert(connection, "kept", pa.table({"seq": kept}))
    return len(kept)


def _query_table(drafts: pa.Table, settled: Settled, raw: Settled, schema: pa.Schema) -> pa.Table:
    """Lay out rows for `--where`: known columns as text, extra ones, mapped ones by raw name too."""
    extras = [settled.row(extra_of(text)) for text in drafts["extra"].to_pylist()]
    raws = [raw.row(extra_of(text)) for text in drafts["raw"].to_pylist()]
    data = {ROW: drafts["seq"], **{name: drafts[name] for name in _KEPT}}
    for part, rows in ((settled, extras), (raw, raws)):
        for field in part.schema:
            data[field.name] = pa.array([row[field.name] for row in rows], type=field.type)
    return pa.table(data, schema=schema)


def _block_rows(n_rows: int, n_bytes: int) -> int:
    return max(min(BLOCK_ROWS, BLOCK_BYTES * n_rows // max(n_bytes, 1)), 1)


def _check_some_usable(corpus: Corpus, connection: duckdb.DuckDBPyConnection) -> None:
    if corpus.n_rows:
        return
    reasons = connection.execute("SELECT reason, count(*) AS n FROM chosen GROUP BY 1 ORDER BY n DESC, min(seq)")
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.fetchall())
    location, detail = connection.execute("SELECT location, detail FROM chosen ORDER BY seq LIMIT 1").fetchall()[0]
    raise CorpusError(f"every row was skipped: {counts}; the first is {location}: {detail}")
