"""Two selections held against each other: how many examples both chose, and whether they rank alike.

The rank correlation (Spearman) is over the examples that both chose, by rank, and over all examples that are
candidates of both, by value: for that the values are read again, the way each selection's document says. Where they
cannot be (the probe is gone, or has other weights or cliffs now), `not_compared` says why.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.errors import SelectionError, UserError
from cliffstore.publish.candidates import cliffs_read, read_candidates
from cliffstore.publish.provenance import read_its_probe
from cliffstore.publish.selection import settings_of
from cliffstore.ranks import spearman
from cliffstore.schema import SelectionDocument, damaged
from cliffstore.store import documents, layout, tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two selections."""

    name: str
    strategy: str
    probe: str | None
    examples: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two selections have in common.

    Attributes
    ----------
    overlap : examples that both chose
    jaccard : overlap over the examples that at least one chose
    of_first, of_second : overlap over the examples of one
    expected_overlap : overlap to expect if the second had drawn its examples from its candidates by chance
    rank_correlation : Spearman over the overlap; None where it has fewer than two examples
    common_candidates : examples that are candidates of both, by their settings now
    value_correlation : Spearman over these, best first in both; None where there are fewer than two, or all are equal
    not_compared : why candidates could not be compared, None where they were
    """

    first: Side
    second: Side
    overlap: int
    jaccard: float
    of_first: float
    of_second: float
    rank_correlation: float | None
    expected_overlap: float | None = None
    common_candidates: int | None = None
    value_correlation: float | None = None
    not_compared: str | None = None


def compare_selections(catalog: Catalog, first: str, second: str) -> Comparison:
    """Compare two selections of a store.

    Raises
    ------
    SelectionError
        One is not there; the message names those that are.
    DamagedStoreError
        A table or a document is damaged.
    """
    objects = catalog.reader.objects
    sides = [_document(objects, name) for name in (first, second)]
    chosen = [_chosen(objects, one.name) for one in sides]
    example_A, example_B = (np.asarray(table["example"], dtype=np.int64) for table in chosen)
    _, at_A, at_B = np.intersect1d(example_A, example_B, return_indices=True)
    rank_A, rank_B = (np.asarray(table["rank"], dtype=np.float64) for table in chosen)
    overlap = len(at_A)
    expected, common, correlation, why = _candidates(catalog, sides, example_A, len(example_B))
    return Comparison(
        first=_side(sides[0]),
        second=_side(sides[1]),
        overlap=overlap,
        jaccard=overlap / (len(example_A) + len(example_B) - overlap),
        of_first=overlap / len(example_A),
        of_second=overlap / len(example_B),
        rank_correlation=spearman(rank_A[at_A], rank_B[at_B]),
        expected_overlap=expected,
        common_candidates=common,
        value_correlation=correlation,
        not_compared=why,
    )


def _document(objects: ObjectStore, name: str) -> SelectionDocument:
    try:
        return documents.read(objects, SelectionDocument, layout.selection_document(name))
    except FileNotFoundError:
        there = [key for key in objects.list(layout.SELECTIONS) if layout.kind_of(key) == "selection"]
        known = ", ".join(sorted(map(layout.stem, there))) or "none yet; make one with `cliffstore select`"
        raise SelectionError(f"store {objects.url} has no selection {name!r}; it has: {known}") from None


def _chosen(objects: ObjectStore, name: str) -> pa.Table:
    key = layout.selection_table(name)
    try:
        return tables.read(objects, key, ["example", "rank"])
    except FileNotFoundError:
        raise damaged(key, "is missing") from None


def _side(document: SelectionDocument) -> Side:
    return Side(document.name, document.strategy, document.probe, document.examples, document.candidates)


def _candidates(
    catalog: Catalog, sides: list[SelectionDocument], example_A: npt.NDArray[np.int64], n_second: int
) -> tuple[float | None, int | None, float | None, str | None]:
    """Return expected overlap, number of common candidates, their correlation, and why there is none of these."""
    try:
        found = [_read(catalog, one) for one in sides]
    except UserError as error:
        return None, None, None, str(error)
    (first_N, x_N), (second_M, y_M) = found
    common, at_N, at_M = np.intersect1d(first_N, second_M, return_indices=True)
    inside = int(np.isin(example_A, second_M).sum())
    expected = inside * n_second / len(second_M) if len(second_M) else None
    return expected, len(common), spearman(x_N[at_N], y_M[at_M]), None


def _read(catalog: Catalog, document: SelectionDocument) -> tuple[npt.NDArray[np.int64], Numbers]:
    """Return the candidates of a selection and their values, the better the higher."""
    settings, objects = settings_of(document), catalog.reader.objects
    read_its_probe(objects, document)
    if cliffs_read(objects, settings, document.probe) != document.cliffs_digest:
        raise SelectionError(
            f"probe {document.probe!r} has other cliffs now than selection {document.name!r} was chosen with"
        )
    table = read_candidates(catalog, settings, document.probe).table
    value_N = np.asarray(table["value"], dtype=np.float64)
    return np.asarray(table["example"], dtype=np.int64), -value_N if settings.lowest_first else value_N
