"""Rendered examples in the order of their tokens, on local disk: DuckDB sorts what does not fit into memory.

The order is that of the computed tokens, then of all tokens, then of ids; equal prefixes become neighbours. Token
sequences are kept as big-endian bytes, whose order is the lexicographic one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from cliffstore.corpus.scratch import batches, insert, open_scratch
from cliffstore.corpus.values import to_text
from cliffstore.errors import CorpusError
from cliffstore.plan.positions import Positions, selected
from cliffstore.plan.prefix import sort_key
from cliffstore.plan.units import Member, example_digest
from cliffstore.records import RenderedExample, SkippedRow

NO_POSITION = "no position to store"
HELD = "in the store already"

_ROWS = pa.schema(
    [
        ("computed", pa.binary()),
        ("behind", pa.binary()),
        ("id", pa.string()),
        ("decision", pa.int32()),
        ("segments", pa.binary()),
        ("digest", pa.string()),
        *((name, pa.string()) for name in ("prompt", "system", "thinking", "response", "label", "source")),
        ("extra", pa.string()),
    ]
)
"""`computed` and `behind`: tokens up to the last stored one, and after it; `extra`: a `corpus.values` text."""
_SKIPPED = pa.schema([(name, pa.string()) for name in ("id", "source", "location", "reason", "detail")])
_SKIPPED_ORDER = "location, coalesce(source, ''), coalesce(id, ''), reason, detail"
_MEMBER = "id, computed, behind, segments, decision, digest"
_BATCH_ROWS, _BATCH_BYTES = 8_192, 16 << 20


@dataclass(frozen=True, slots=True)
class RenderedRows:
    """Some examples, and rows that are left out, as they are put in order."""

    examples: pa.Table
    skipped: pa.Table


def lay_out(rendered: Sequence[RenderedExample | SkippedRow], positions: Positions) -> RenderedRows:
    """Turn rendered rows into tables. An example without a position to store is left out."""
    rows: list[dict[str, object]] = []
    skipped: list[SkippedRow] = []
    for one in rendered:
        if isinstance(one, SkippedRow):
            skipped.append(one)
            continue
        stored = np.flatnonzero(selected(positions, one.segments, one.decision))
        if not len(stored):
            skipped.append(_without_position(one, positions))
            continue
        rows.append(_row(one, int(stored[-1]) + 1))
    return RenderedRows(pa.Table.from_pylist(rows, schema=_ROWS), _skipped_table(skipped))


class SortedExamples:
    """Takes rendered rows in any order and gives them back in theirs, as often as wanted.

    Parameters
    ----------
    folder : local folder for what is larger than memory
    """

    def __init__(self, folder: str | Path) -> None:
        self._connection = open_scratch(folder, "examples")
        self._n_bytes = self.n_examples = 0
        insert(self._connection, "rendered", _ROWS.empty_table())
        insert(self._connection, "skipped", _SKIPPED.empty_table())

    def add(self, rows: RenderedRows) -> None:
        """Take some more rows."""
        insert(self._connection, "rendered", rows.examples)
        insert(self._connection, "skipped", rows.skipped)
        self._n_bytes += rows.examples.nbytes
        self.n_examples += rows.examples.num_rows

    def skip(self, rows: Iterable[SkippedRow]) -> None:
        """Take rows that were left out before they were rendered."""
        rest = iter(rows)
        while block := list(islice(rest, _BATCH_ROWS)):
            insert(self._connection, "skipped", _skipped_table(block))

    def sort(self) -> None:
        """Put the examples in order; no more are taken."""
        self._connection.execute("CREATE TABLE ordered AS SELECT * FROM rendered ORDER BY computed, behind, id")
        self._connection.execute("DROP TABLE rendered")

    def leave_out(self, held: Iterable[pa.Table]) -> int:
        """Leave out the examples that a store holds already (tables of id and digest). Return how many.

        Raises
        ------
        CorpusError
            The store holds an id with other content.
        """
        connection = self._connection
        insert(connection, "held", pa.schema([("id", pa.string()), ("digest", pa.string())]).empty_table())
        for table in held:
            insert(connection, "held", table.select(["id", "digest"]))
        clash = connection.execute(
            "SELECT o.id FROM ordered o JOIN held h USING (id) WHERE o.digest <> h.digest ORDER BY o.id LIMIT 1"
        ).fetchall()
        if clash:
            raise CorpusError(
                f"the id {clash[0][0]!r} is in the store already, with other content: give the changed row another id"
            )
        connection.execute(
            f"INSERT INTO skipped SELECT id, source, '', '{HELD}', '' FROM ordered SEMI JOIN held USING (id)"
        )
        (n_left_out,) = connection.execute("SELECT count(*) FROM ordered SEMI JOIN held USING (id)").fetchall()[0]
        if n_left_out:
            connection.execute("DELETE FROM ordered WHERE id IN (SELECT id FROM held)")
            self.n_examples -= n_left_out
        return int(n_left_out)

    def members(self) -> Iterator[Member]:
        """Yield what planning needs of each example, in order."""
        for batch in batches(self._connection, f"SELECT {_MEMBER} FROM ordered", self._batch_rows()):
            yield from members_of(pa.Table.from_batches([batch]))

    def tables(self) -> Iterator[pa.Table]:
        """Yield the examples in order, some at a time; `members_of` makes members of them."""
        for batch in batches(self._connection, "SELECT * FROM ordered", self._batch_rows()):
            yield pa.Table.from_batches([batch])

    def digests(self) -> Iterator[str]:
        """Yield the digest of each example, in order."""
        for batch in batches(self._connection, "SELECT digest FROM ordered", _BATCH_ROWS):
            yield from batch["digest"].to_pylist()

    def skipped_tables(self) -> Iterator[pa.Table]:
        """Yield the rows that are left out, sorted, some at a time."""
        for batch in batches(self._connection, f"SELECT * FROM skipped ORDER BY {_SKIPPED_ORDER}", _BATCH_ROWS):
            yield pa.Table.from_batches([batch])

    def skipped(self) -> Iterator[SkippedRow]:
        """Yield the rows that are left out, sorted."""
        for table in self.skipped_tables():
            yield from (SkippedRow(**row) for row in table.to_pylist())

    def reasons(self) -> dict[str, int]:
        """Return how many rows are left out for each reason, most frequent first."""
        found = self._connection.execute("SELECT reason, count(*) AS n FROM skipped GROUP BY 1 ORDER BY n DESC, 1")
        return dict(found.fetchall())

    def sources(self) -> list[str]:
        """Return the values of the column source."""
        found = self._connection.execute("SELECT DISTINCT coalesce(source, '') FROM ordered ORDER BY 1").fetchall()
        return [row[0] for row in found]

    def close(self) -> None:
        """Let go of the examples."""
        self._connection.close()

    def _batch_rows(self) -> int:
        return max(min(_BATCH_ROWS, _BATCH_BYTES * self.n_examples // max(self._n_bytes, 1)), 1)


def members_of(examples: pa.Table) -> list[Member]:
    """Return examples as members."""
    columns = [examples[name].to_pylist() for name in ("id", "computed", "behind", "segments", "decision", "digest")]
    return [
        Member(
            id_,
            np.frombuffer(computed + behind, dtype=">u4").astype(np.int32),
            np.frombuffer(segments, dtype=np.uint8),
            decision,
            len(computed) // 4,
            digest,
        )
        for id_, computed, behind, segments, decision, digest in zip(*columns, strict=True)
    ]


def _row(example: RenderedExample, n_computed: int) -> dict[str, object]:
    row = example.row
    return {
        "computed": sort_key(example.token_ids[:n_computed]),
        "behind": sort_key(example.token_ids[n_computed:]),
        "id": row.id,
        "decision": example.decision,
        "segments": example.segments.tobytes(),
        "digest": example_digest(example),
        "prompt": row.prompt,
        "system": row.system,
        "thinking": row.thinking,
        "response": row.response,
        "label": row.label,
        "source": row.source,
        "extra": to_text(row.extra) if row.extra else None,
    }


def _without_position(example: RenderedExample, positions: Positions) -> SkippedRow:
    detail = f"positions {positions}: none among its {len(example.token_ids)} tokens"
    return SkippedRow(example.row.id, example.row.source, example.location, NO_POSITION, detail)


def _skipped_table(rows: Sequence[SkippedRow]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in _SKIPPED.names}
    return pa.table(columns, schema=_SKIPPED)
