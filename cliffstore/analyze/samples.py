"""The rows that a probe reads: of each place, which examples have a stored vector there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.labels import LabelledExamples, Notice, Ordinals
from cliffstore.analyze.places import Place
from cliffstore.analyze.split import Groups, Labels
from cliffstore.store.catalog import Catalog

MOST_OF_SEGMENT = 64
"""Samples of one example in one segment; of a longer one, evenly spaced tokens."""

Rows = npt.NDArray[np.int64]

_SEGMENT = f"""
SELECT example, row, n FROM (
    SELECT example, position, row, row_number() OVER (PARTITION BY example ORDER BY position) AS k,
        count(*) OVER (PARTITION BY example) AS n
    FROM tokens WHERE segment = $1 AND row IS NOT NULL AND example BETWEEN $2 AND $3
) WHERE n <= {MOST_OF_SEGMENT} OR k * {MOST_OF_SEGMENT} // n > (k - 1) * {MOST_OF_SEGMENT} // n
ORDER BY example, position
"""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Samples of one place: row int64 [N], y 0 or 1 [N], digest of the prompt [N], ordinal of the example [N]."""

    place: Place
    rows_N: Rows
    y_N: Labels
    groups_N: Groups
    examples_N: Ordinals

    def chosen(self, keep_N: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> LabelledRows:
        """Return some of them."""
        return LabelledRows(
            self.place, self.rows_N[keep_N], self.y_N[keep_N], self.groups_N[keep_N], self.examples_N[keep_N]
        )


def read_samples(
    catalog: Catalog, labelled: LabelledExamples, places: Sequence[Place], captures: Sequence[str], notice: Notice
) -> tuple[list[LabelledRows], bool]:
    """Return the extracted samples of each place, by example; what is left out is told with its count.

    Parameters
    ----------
    captures : names of those that must have the rows

    Returns
    -------
    The samples, and whether more are planned than are extracted.
    """
    found = {place: _of_segment(catalog, labelled, place, notice) for place in places if place.segment is not None}
    offsets = [place for place in places if place.segment is None]
    if offsets:
        found |= _at_offsets(catalog, labelled, offsets)
    samples, unextracted = [], False
    for place in places:
        one = found[place]
        missing = len(labelled.examples_E) - len(np.unique(one.examples_N))
        if missing and len(one.rows_N):
            notice(f"{missing} examples have no vector {place.words} and are left out")
        stored_N = np.ones(len(one.rows_N), dtype=bool)
        for capture in captures:
            stored_N &= catalog.reader.extracted(capture, one.rows_N)
        if not stored_N.all():
            some = len(np.unique(one.examples_N[~stored_N]))
            notice(f"{some} examples are not extracted yet and are left out")
            one, unextracted = one.chosen(stored_N), True
        samples.append(one)
    return samples, unextracted


def _at_offsets(catalog: Catalog, labelled: LabelledExamples, places: Sequence[Place]) -> dict[Place, LabelledRows]:
    offsets = sorted({int(place.offset or 0) for place in places})
    listed = ", ".join(str(offset) for offset in offsets)
    first, last = int(labelled.examples_E[0]), int(labelled.examples_E[-1])
    parts: list[list[npt.NDArray[np.int64]]] = []
    for batch in catalog.batches(
        f"SELECT example, to_decision, row FROM tokens WHERE to_decision IN ({listed}) AND row IS NOT NULL "
        f"AND example BETWEEN {first} AND {last}"
    ):
        columns = [batch.column(name).to_numpy().astype(np.int64) for name in ("example", "to_decision", "row")]
        index_N = labelled.find(columns[0])
        parts.append([one[index_N >= 0] for one in (index_N, *columns[1:])])
    index_N, offset_N, rows_N = _joined(parts, 3)
    found = {}
    for place in places:
        here = np.flatnonzero(offset_N == place.offset)
        found[place] = _samples(labelled, place, index_N[here], rows_N[here])
    return found


def _of_segment(catalog: Catalog, labelled: LabelledExamples, place: Place, notice: Notice) -> LabelledRows:
    first, last = int(labelled.examples_E[0]), int(labelled.examples_E[-1])
    parts: list[list[npt.NDArray[np.int64]]] = []
    for batch in catalog.batches(_SEGMENT, parameters=[place.segment, first, last]):
        columns = [batch.column(name).to_numpy().astype(np.int64) for name in ("example", "row", "n")]
        index_N = labelled.find(columns[0])
        parts.append([one[index_N >= 0] for one in (index_N, *columns[1:])])
    index_N, rows_N, n_N = _joined(parts, 3)
    _, first_N = np.unique(index_N, return_index=True)
    longer = n_N[first_N] > MOST_OF_SEGMENT
    if longer.any():
        notice(
            f"{len(rows_N):,} of {int(n_N[first_N].sum()):,} stored tokens of {place.segment} are samples: "
            f"{MOST_OF_SEGMENT} evenly spaced ones of each of the {int(longer.sum()):,} examples that have more"
        )
    return _samples(labelled, place, index_N, rows_N)


def _joined(parts: list[list[npt.NDArray[np.int64]]], n_columns: int) -> list[npt.NDArray[np.int64]]:
    if not parts:
        return [np.zeros(0, dtype=np.int64)] * n_columns
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def _samples(labelled: LabelledExamples, place: Place, index_N: Rows, rows_N: Rows) -> LabelledRows:
    order = np.argsort(index_N, kind="stable")  # DuckDB gives rows in any order
    index_N = index_N[order]
    return LabelledRows(
        place, rows_N[order], labelled.y_E[index_N], labelled.groups_E[index_N], labelled.examples_E[index_N]
    )
