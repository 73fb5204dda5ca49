"""The tables of attention heads of a store, for the page: what each head writes along a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cliffstore.publish.report.payload import finite
from cliffstore.store.catalog import Catalog

MOST_ROWS = 20
"""Heads that are listed, from each end."""
_KNOWN = ("name", "probe", "layer", "head")

_FIGURES = """
SELECT concat_ws('-', name, "group") AS name, probe, layer, head, mean, low, high, n FROM heads
WHERE layer IS NOT NULL
QUALIFY coalesce(to_decision, 0) = max(coalesce(to_decision, 0)) OVER (PARTITION BY name)
ORDER BY 1, layer, head
"""


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """One table of heads.

    Attributes
    ----------
    columns : of figures, beside layer and head; the first is what the heat map shows
    lowest, highest : rows with the smallest and largest values of the first column, at most `MOST_ROWS` each
    rows : all, for the heat map
    """

    name: str
    probe: str | None
    columns: Sequence[str]
    lowest: Sequence[dict[str, Any]]
    highest: Sequence[dict[str, Any]]
    rows: Sequence[dict[str, Any]]


def read_heads(catalog: Catalog) -> list[HeadFacts]:
    """Return the tables of heads, by name; none where the store has none.

    Of a table are shown single heads, at the distance nearest to the answer; each group is a table of its own.
    """
    table = catalog.arrow(_FIGURES)
    columns = [name for name in table.column_names if name not in _KNOWN]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        plain = {name: finite(value) if isinstance(value, float) else value for name, value in row.items()}
        found.setdefault(row["name"], []).append(plain)
    return [_facts(name, columns, rows) for name, rows in found.items()]


def _facts(name: str, columns: Sequence[str], rows: list[dict[str, Any]]) -> HeadFacts:
    known = [row for row in rows if row[columns[0]] is not None]
    ordered = sorted(known, key=lambda row: (row[columns[0]], row["layer"], row["head"]))
    half = min(MOST_ROWS, (len(ordered) + 1) // 2)
    return HeadFacts(
        name=name,
        probe=rows[0]["probe"],
        columns=[column for column in columns if any(row[column] is not None for row in rows)],
        lowest=ordered[:half],
        highest=ordered[::-1][: min(MOST_ROWS, len(ordered) - half)],
        rows=rows,
    )
