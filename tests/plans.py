"""Plans made in memory from rendered examples, by the functions that plan large corpora."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cliffstore.plan import sorting, units
from cliffstore.plan.positions import Positions
from cliffstore.plan.sorting import members_of
from cliffstore.plan.tables import examples_table, tokens_table
from cliffstore.plan.units import Survey, Unit, build_unit, pack, plan_digest, skipped_key
from cliffstore.records import RenderedExample, SkippedRow
from cliffstore.run.planned import Planned
from cliffstore.schema import (
    EXAMPLES,
    Chunking,
    CorpusRecipe,
    Manifest,
    PlanCounts,
    PlanDocument,
    PlanPlace,
    TokenizerIdentity,
)  # fmt: skip
from cliffstore.store.plans import PlanWriter


@dataclass(frozen=True)
class Plan:
    """A whole plan; `rows` are its examples as `sorting` keeps them, in order."""

    digest: str
    unit_rows: int
    units: tuple[Unit, ...]
    skipped: tuple[SkippedRow, ...]
    settings: Mapping[str, str | int | None]
    rows: pa.Table

    @property
    def name(self) -> str:
        return f"plan-{self.digest[:12]}"

    @property
    def n_examples(self) -> int:
        return sum(len(unit.examples) for unit in self.units)

    @property
    def n_tokens(self) -> int:
        return sum(unit.n_tokens for unit in self.units)

    @property
    def n_rows(self) -> int:
        return sum(unit.n_rows for unit in self.units)

    @property
    def n_nodes(self) -> int:
        return sum(unit.n_nodes for unit in self.units)


def make_plan(
    examples: Sequence[RenderedExample],
    skipped: Sequence[SkippedRow],
    *,
    positions: Positions,
    bytes_per_row: int,
    identity: Mapping[str, str],
    settings: Mapping[str, str | int | None],
    unit_rows: int | None = None,
) -> Plan:
    """Sort, survey, pack and number examples, all at once."""
    laid = sorting.lay_out([*examples, *skipped], positions)
    order = [("computed", "ascending"), ("behind", "ascending"), ("id", "ascending")]
    rows = laid.examples.sort_by(order)
    members = members_of(rows)
    survey = Survey(positions)
    for member in members:
        survey.add(member)
    if unit_rows is None:
        unit_rows = survey.unit_rows(bytes_per_row)
    built: list[Unit] = []
    first = 0
    for group in pack(members, positions, unit_rows):
        built.append(build_unit(len(built), first, group, positions, unit_rows))
        first += len(group)
    left_out = tuple(sorted((SkippedRow(**row) for row in laid.skipped.to_pylist()), key=skipped_key))
    settings = {**settings, "positions": str(positions)}
    digest = plan_digest([member.digest for member in members], left_out, identity, settings, unit_rows)
    return Plan(digest, unit_rows, tuple(built), left_out, settings, rows)


def planned_of(plan: Plan) -> Planned:
    """Return a plan with its tables in a local folder, as `plan_corpus` does; tokens are called by their numbers."""
    folder = tempfile.TemporaryDirectory(prefix="plan-")
    writer = PlanWriter(Path(folder.name) / "plan", plan.name, EXAMPLES, {"plan": plan.name})
    facts, first = [], 0
    for unit in plan.units:
        one = unit.facts(plan.name, *writer.place())
        rows = plan.rows.slice(first, len(unit.examples))
        writer.add(one, examples_table(unit, rows, pa.schema([])), tokens_table(unit, lambda ids: [*map(str, ids)]))
        facts.append(one)
        first += len(unit.examples)
    skipped = pa.Table.from_pylist(
        [{name: getattr(row, name) for name in SkippedRow.__slots__} for row in plan.skipped], schema=sorting._SKIPPED
    )
    document = PlanDocument(
        plan=plan.name, digest=plan.digest,
        counts=PlanCounts(examples=plan.n_examples, tokens=plan.n_tokens, rows=plan.n_rows, units=len(plan.units),
                          skipped=len(plan.skipped)),
        settings=dict(plan.settings), sources=["made up"],
        corpus=CorpusRecipe(inputs=[], map={}, where=None, limit=None),
        place=0, tables=writer.finish([skipped]), cliffstore_version="0",
    )  # fmt: skip
    tokenizer = TokenizerIdentity(
        name="t", digest="t", template_digest="u", think_open="<", think_close=">", template_date="2024-07-26"
    )
    manifest = Manifest(
        cliffstore_version="0", created="2026-01-01T00:00:00+00:00", tokenizer=tokenizer,
        chunking=Chunking(chunk_rows=units.CHUNK_ROWS, unit_rows=plan.unit_rows),
    )  # fmt: skip
    place = PlanPlace(
        number=0, plan=plan.name, first_unit=0, n_units=len(plan.units), first_example=0, n_examples=plan.n_examples,
        base=[],
    )  # fmt: skip
    return Planned(document, tuple(facts), manifest, place, folder)
