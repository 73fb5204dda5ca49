"""The table of examples as columns: ids, texts, labels, the corpus's further columns, and the cliffs of each probe.

Numbers are as the store has them, not rounded: the page sorts by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from cliffstore.publish.report.choice import ShownExamples
from cliffstore.publish.report.payload import finite
from cliffstore.schema import EXAMPLES
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader

FIGURES = ("cliff", "plateau", "final", "n_think", "steepest_position", "n_steep")
_CLIFFS = f"SELECT example, {', '.join(FIGURES)} FROM cliffs WHERE probe = $1 AND list_contains($2, example)"
_EXACT = 1 << 53
"""Whole numbers beyond this are not exact in a script."""

Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class ExampleRows:
    """The rows of the table of examples, as columns of equal length.

    Attributes
    ----------
    known : the columns that every store has, and `plan`
    further : the corpus's own columns
    is_number : which of the further columns hold numbers
    cliffs : by probe, the columns `FIGURES`; null where an example has none
    """

    known: Columns
    further: Columns
    is_number: Mapping[str, bool]
    cliffs: Mapping[str, Columns]

    def to_plain(self) -> dict[str, object]:
        return {
            "known": self.known,
            "further": [
                {"name": name, "number": self.is_number[name], "values": values}
                for name, values in self.further.items()
            ],
            "cliffs": dict(self.cliffs),
        }


def read_rows(catalog: Catalog, shown: ShownExamples, probes: Sequence[str]) -> ExampleRows:
    """Read the rows of the examples that are shown, by ordinal; only the units that hold them are read."""
    tables = [_rows_of(catalog.reader, unit, ordinals) for unit, ordinals in shown.units.items()]
    empty = EXAMPLES.append(pa.field("plan", pa.string())).empty_table()
    whole = pa.concat_tables([empty, *tables], promote_options="permissive").sort_by("example")
    names = [*EXAMPLES.names, "plan"]
    further = {name: whole[name].to_pylist() for name in whole.column_names if name not in names}
    is_number = {name: _holds_numbers(values) for name, values in further.items()}
    return ExampleRows(
        known={name: whole[name].to_pylist() for name in names},
        further={
            name: [_number(value) if is_number[name] else _text(value) for value in values]
            for name, values in further.items()
        },
        is_number=is_number,
        cliffs={probe: _cliffs_of(catalog, probe, whole["example"].to_pylist()) for probe in probes},
    )


def _rows_of(reader: StoreReader, unit: int, ordinals: list[int]) -> pa.Table:
    table = reader.plan_tables.examples(unit)
    chosen = table.filter(pa.compute.is_in(table["example"], pa.array(ordinals, pa.int64())))
    plan = pa.repeat(pa.scalar(reader.plan_tables.units[unit].plan, pa.string()), chosen.num_rows)
    taken = chosen.drop_columns(["plan"]) if "plan" in chosen.column_names else chosen
    return taken.append_column("plan", plan)


def _cliffs_of(catalog: Catalog, probe: str, ordinals: list[int]) -> Columns:
    found = {row["example"]: row for row in catalog.arrow(_CLIFFS, [probe, ordinals]).to_pylist()}
    nothing: dict[str, Any] = dict.fromkeys(FIGURES)
    lines = [found.get(one, nothing) for one in ordinals]
    return {
        name: [finite(line[name]) if isinstance(line[name], float) else line[name] for line in lines]
        for name in FIGURES
    }


def _holds_numbers(values: Sequence[object]) -> bool:
    """Return whether all values are numbers that a script holds as they are."""
    some = [value for value in values if value is not None]
    return bool(some) and all(
        isinstance(value, float | Decimal) or (isinstance(value, int) and not isinstance(value, bool) and _fits(value))
        for value in some
    )


def _fits(value: int) -> bool:
    return abs(value) <= _EXACT


def _number(value: Any) -> float | int | None:
    return value if value is None or isinstance(value, int) else finite(float(value))


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
