"""Which examples the page shows one by one: all of a small store; of a larger one those that are chosen, the largest
cliffs, and a sample of the rest.

First come the examples of selections, by rank. Half of the places that are left go to the largest cliffs of the first
probe, the rest to a sample that seed and ids decide. What is not shown is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cliffstore.publish.candidates import draw
from cliffstore.store.catalog import Catalog

_EXAMPLES = "SELECT example, id, unit FROM examples ORDER BY example"
_SELECTED = "SELECT example FROM selections WHERE list_contains($1, selection) ORDER BY rank, selection"
_LARGEST = """
SELECT c.example FROM cliffs c JOIN examples e USING (example) WHERE c.probe = $1 AND isfinite(c.cliff)
ORDER BY c.cliff DESC, e.id
"""


@dataclass(frozen=True, slots=True)
class ShownExamples:
    """The examples that are shown, and how many are there.

    Attributes
    ----------
    units : unit -> ordinals in it, both ascending
    selected : examples of selections; `selected_left_out` more are not shown
    largest, sampled : those beyond them that are shown for their cliff, and by chance
    total : examples of the store
    """

    units: dict[int, list[int]]
    selected: int
    selected_left_out: int
    largest: int
    sampled: int
    total: int
    seed: int

    @property
    def ordinals(self) -> list[int]:
        """The examples, ascending."""
        return sorted(one for own in self.units.values() for one in own)

    @property
    def shown(self) -> int:
        return sum(map(len, self.units.values()))

    @property
    def left_out(self) -> int:
        return self.total - self.shown


def choose_shown(
    catalog: Catalog, most: int, *, probe: str | None, selections: list[str], seed: int = 0
) -> ShownExamples:
    """Return which examples to show.

    Parameters
    ----------
    most : examples
    probe : whose cliffs say which are large
    """
    table = catalog.arrow(_EXAMPLES)
    total = table.num_rows
    selected = _ordinals(catalog.arrow(_SELECTED, [selections]))
    first = selected[:most]
    taken = dict.fromkeys(first)
    largest: list[int] = []
    sampled: list[int] = []
    if total > most:
        places = most - len(taken)
        ranked = _ordinals(catalog.arrow(_LARGEST, [probe])) if probe is not None else []
        largest = [one for one in ranked if one not in taken][: (places + 1) // 2]
        taken |= dict.fromkeys(largest)
        drawn = sorted(
            (draw(seed, name), name, one)
            for one, name in zip(table["example"].to_pylist(), table["id"].to_pylist(), strict=True)
            if one not in taken
        )
        sampled = [one for _, _, one in drawn[: most - len(taken)]]
        taken |= dict.fromkeys(sampled)
        is_shown = pa.array([one in taken for one in table["example"].to_pylist()], pa.bool_())
        table = table.filter(is_shown)
    units: dict[int, list[int]] = {}
    for one, unit in zip(table["example"].to_pylist(), table["unit"].to_pylist(), strict=True):
        units.setdefault(unit, []).append(one)
    return ShownExamples(
        dict(sorted(units.items())), len(first), len(selected) - len(first), len(largest), len(sampled), total, seed
    )


def _ordinals(table: pa.Table) -> list[int]:
    """Return the examples of a table, each once."""
    return list(dict.fromkeys(table["example"].to_pylist()))
