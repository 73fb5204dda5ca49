"""The figures of attention heads of a store, for the page: what each head adds to a probe's score, or changes in it.

A table has one part for each group of examples; of several distances the one nearest the answer is shown, as
`cliffstore heads show` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cliffstore.publish.report.payload import finite
from cliffstore.store.catalog import Catalog

VALUE = "mean"
"""The column that is drawn."""
MOST_ROWS = 20
"""Heads that are listed, from each end."""
MOST_GROUPS = 12
"""Parts of a table that are on the page."""
_FIGURES = (VALUE, "low", "high", "n", "control_mean", "control_low", "control_high", "n_controls")
_KINDS = {
    "direct": ("share in the score", "What each head adds to the score by itself: below 0 it lowers the score."),
    "knockout": (
        "change of the score",
        "The score with a head ablated less the score as it is: above 0 the head held the score down.",
    ),
}
_ROWS = """
SELECT h.* FROM heads h JOIN (SELECT name, max(to_decision) AS last FROM heads GROUP BY name) USING (name)
WHERE to_decision IS NOT DISTINCT FROM last ORDER BY name, "group" NULLS LAST, layer, head, heads
"""


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """One group of a table of heads.

    Attributes
    ----------
    key : distinct on the page
    group : of examples; None where they are not grouped
    title, meaning : what the mean is
    place : where it was measured
    columns : of figures, beside layer and head
    lowest, highest : rows with the smallest and largest means, at most `MOST_ROWS` each
    rows : all heads, for the heat map
    sets : rows of several heads together
    further_groups : of the table, not on the page; told with the last that is
    """

    name: str
    key: str
    probe: str | None
    group: str | None
    title: str
    meaning: str
    place: str
    columns: Sequence[str]
    lowest: Sequence[dict[str, Any]]
    highest: Sequence[dict[str, Any]]
    rows: Sequence[dict[str, Any]]
    sets: Sequence[dict[str, Any]]
    further_groups: int = 0


def read_heads(catalog: Catalog) -> list[HeadFacts]:
    """Return the tables of heads, by name and group; none where the store has none."""
    found: dict[str, dict[str | None, list[dict[str, Any]]]] = {}
    for row in catalog.arrow(_ROWS).to_pylist():
        plain = {name: finite(value) if isinstance(value, float) else value for name, value in row.items()}
        found.setdefault(row["name"], {}).setdefault(row["group"], []).append(plain)
    facts = []
    for name, groups in found.items():
        for number, (group, rows) in enumerate(list(groups.items())[:MOST_GROUPS]):
            further = len(groups) - MOST_GROUPS if number == MOST_GROUPS - 1 else 0
            key, shown = (name, group) if len(groups) == 1 else (f"{name}:{number}", group or "no value")
            facts.append(_facts(name, key, shown, rows, further))
    return facts


def _facts(name: str, key: str, group: str | None, rows: list[dict[str, Any]], further_groups: int) -> HeadFacts:
    single = [row for row in rows if row["layer"] is not None]
    known = [row for row in single if row[VALUE] is not None]
    ordered = sorted(known, key=lambda row: (row[VALUE], row["layer"], row["head"]))
    half = min(MOST_ROWS, (len(ordered) + 1) // 2)
    first = rows[0]
    title, meaning = _KINDS.get(first["kind"], (VALUE, ""))
    return HeadFacts(
        name=name,
        key=key,
        probe=first["probe"],
        group=group,
        title=title,
        meaning=meaning,
        place=_place(first),
        columns=[column for column in _FIGURES if any(row[column] is not None for row in rows)],
        lowest=ordered[:half],
        highest=ordered[::-1][: min(MOST_ROWS, len(ordered) - half)],
        rows=single,
        sets=[row for row in rows if row["layer"] is None],
        further_groups=further_groups,
    )


def _place(row: dict[str, Any]) -> str:
    """Return where the figures are from: the distance from the decision, and what was ablated."""
    distance = row["to_decision"]
    at = "at the decision position" if not distance else f"{distance} from the decision position"
    if row["ablation"] is None:
        return at
    return f"{at}, {row['ablation']} ablation of {row['positions']} positions"
