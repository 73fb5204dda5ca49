"""Sorted examples to the units of a plan and their tables, one unit after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from cliffstore.plan.positions import Positions
from cliffstore.plan.sorting import SortedExamples, members_of
from cliffstore.plan.tables import TokenText, examples_table, tokens_table
from cliffstore.plan.units import Member, build_unit, pack
from cliffstore.records import PlannedUnit
from cliffstore.schema import PlanPlace
from cliffstore.store.plans import PlanWriter


def write_units(
    examples: SortedExamples,
    positions: Positions,
    unit_rows: int,
    place: PlanPlace,
    writer: PlanWriter,
    extra_schema: pa.Schema,
    token_text: TokenText,
    tell: Callable[[str], None],
) -> list[PlannedUnit]:
    """Pack examples into units, write the tables of each, and return what is kept of the units.

    Parameters
    ----------
    extra_schema : types of the corpus's further columns
    tell : told how far it is, after every unit
    """
    units: list[PlannedUnit] = []
    n_examples = 0
    for members, rows in _units_of(examples, positions, unit_rows):
        number, ordinal = place.first_unit + len(units), place.first_example + n_examples
        unit = build_unit(number, ordinal, members, positions, unit_rows)
        facts = unit.facts(place.plan, *writer.place())
        writer.add(facts, examples_table(unit, rows, extra_schema), tokens_table(unit, token_text))
        units.append(facts)
        n_examples += len(members)
        tell(f"plan: {n_examples:,} of {examples.n_examples:,} examples in {len(units):,} units")
    return units


def _units_of(
    examples: SortedExamples, positions: Positions, unit_rows: int
) -> Iterator[tuple[list[Member], pa.Table]]:
    """Yield the members of each unit, and the same examples as they are kept."""
    waiting: list[pa.Table] = []

    def members() -> Iterator[Member]:
        for table in examples.tables():
            waiting.append(table)
            yield from members_of(table)

    for unit in pack(members(), positions, unit_rows):
        kept = pa.concat_tables(waiting)
        waiting[:] = [kept.slice(len(unit))]
        yield unit, kept.slice(0, len(unit))
