"""Rows with responses, from the files of a corpus or from a store.

Rows go through in blocks, so memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cliffstore.access import scheme_of
from cliffstore.corpus.files import BLOCK_ROWS
from cliffstore.corpus.scratch import new_folder
from cliffstore.corpus.sources import read_corpus
from cliffstore.errors import CliffstoreError, ConfigError, SelectionError
from cliffstore.run.judging.config import JudgeConfig
from cliffstore.schema import EXAMPLES
from cliffstore.store import layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

Row = dict[str, object]
_KNOWN = ("id", "prompt", "system", "thinking", "response", "label", "source")
_OF_A_STORE = frozenset(EXAMPLES.names) - frozenset(_KNOWN)


@dataclass(frozen=True, slots=True)
class JudgedInput:
    """Rows to judge.

    Attributes
    ----------
    schema : of a row
    n_skipped : rows of the corpus that cannot be used
    blocks : gives the rows, once
    """

    schema: pa.Schema
    n_rows: int
    n_skipped: int
    blocks: Callable[[], Iterator[list[Row]]]


@contextmanager
def judged_input(config: JudgeConfig, notice: Callable[[str], object]) -> Iterator[JudgedInput]:
    """Open the rows that settings name.

    Raises
    ------
    CorpusError, StoreError, QueryError
        There are none, or they cannot be read.
    """
    if len(config.corpus) == 1 and _is_store(config.corpus[0], config.storage_options):
        if config.map:
            raise ConfigError("--map is for files: a store has its columns by their names already")
        with Catalog(StoreReader(config.corpus[0], config.storage_options)) as catalog:
            yield _of_store(catalog, config)
        return
    with new_folder() as folder:
        corpus = read_corpus(
            config.corpus,
            Path(folder),
            mapping=config.map,
            where=config.where,
            limit=config.limit,
            storage_options=config.storage_options,
        )
        try:
            for line in corpus.notices:
                notice(line)
            schema = pa.schema([*(pa.field(name, pa.string()) for name in _KNOWN), *corpus.extra_schema])

            def blocks() -> Iterator[list[Row]]:
                block: list[Row] = []
                for located in corpus.rows():
                    row = located.row
                    block.append({**{name: getattr(row, name) for name in _KNOWN}, **row.extra})
                    if len(block) == BLOCK_ROWS:
                        yield block
                        block = []
                yield block

            yield JudgedInput(schema, corpus.n_rows, corpus.n_skipped, blocks)
        finally:
            corpus.close()


def check_columns(schema: pa.Schema, written: Sequence[str], needed: Mapping[str, str | None]) -> None:
    """Raise `SelectionError` where a column that an option names is missing, or one to be written is there already."""
    for option, column in needed.items():
        if column is not None and column not in schema.names:
            raise SelectionError(f"--{option}: rows have no column {column!r}; there are: {', '.join(schema.names)}")
    taken = [name for name in written if name in schema.names]
    if taken:
        raise SelectionError(
            f"rows have a column {taken[0]!r} already: say --suffix, such as --suffix _again, for the names of the new "
            "columns"
        )


def _is_store(url: str, options: Mapping[str, object]) -> bool:
    if scheme_of(url) == "file":
        return (Path(url.removeprefix("file://")) / layout.MANIFEST).is_file()
    if any(mark in url for mark in "*?["):
        return False
    try:
        return ObjectStore(url, options).exists(layout.MANIFEST)
    except CliffstoreError:
        return False  # reading it as a corpus says what is wrong


def _of_store(catalog: Catalog, config: JudgeConfig) -> JudgedInput:
    columns = [name for name in catalog.arrow("SELECT * FROM examples LIMIT 0").column_names if name not in _OF_A_STORE]
    listed = ", ".join('e."' + name.replace('"', '""') + '"' for name in columns)
    where = f" WHERE (\n{config.where}\n)" if config.where else ""
    limit = f" LIMIT {config.limit}" if config.limit else ""
    chosen = f"FROM examples e{where} ORDER BY e.example{limit}"
    (count,) = catalog.arrow(f"SELECT count(*) AS n FROM (SELECT e.example {chosen})")["n"].to_pylist()
    schema = catalog.arrow(f"SELECT {listed} FROM examples e LIMIT 0").schema
    if not count:
        raise SelectionError(f"no example of {catalog.reader.url} satisfies {config.where}")

    def blocks() -> Iterator[list[Row]]:
        with catalog.batches(f"SELECT {listed} {chosen}", rows=BLOCK_ROWS) as batches:
            for batch in batches:
                yield batch.to_pylist()

    return JudgedInput(schema, count, 0, blocks)
