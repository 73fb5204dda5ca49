"""Plans against their tables, and the tables against each other.

Every table is read whole and compared with its digest in `plan.json`. Then, unit by unit, tokens are counted, rows
must be dense, and each example's digest is computed again from its text and tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from cliffstore.records import PlannedUnit
from cliffstore.schema import PlanDocument, PlanPlace, Receipt
from cliffstore.store import layout, tables
from cliffstore.store.checks.examples import ExampleDigest, check_unit
from cliffstore.store.checks.findings import Action, Finding, Kind
from cliffstore.store.checks.inventory import Inventory
from cliffstore.store.checks.readers import Readers

_EXAMPLES, _TOKENS = "examples/", "tokens/"


@dataclass(slots=True)
class Planned:
    """What the plans of a store say.

    Attributes
    ----------
    units : unit -> what is planned
    blind : plans whose units cannot be told; as long as there is one, no unit is taken for a leftover
    ends : unit behind the last one, of each place
    stored : unit -> tokens that have a row, of units that were looked at and are right
    """

    units: dict[int, PlannedUnit] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    ends: set[int] = field(default_factory=set)
    stored: dict[int, int] = field(default_factory=dict)
    n_tables: int = 0


def check_units(inventory: Inventory, unit_rows: int) -> tuple[Planned, list[Finding]]:
    """Read what units there are: each once, each in its own rows."""
    places = {place.plan: place for place in inventory.all(PlanPlace)}
    planned, findings = Planned(), _unfinished_places(inventory)
    planned.ends = {place.first_unit + place.n_units for place in places.values()}
    for plan in inventory.all(PlanDocument):
        key = layout.units_table(plan.plan)
        content, wrong = _read(inventory, plan, layout.path_in_plan(key))
        findings += wrong
        if content is None:
            planned.blind.add(plan.plan)
            continue
        units = [PlannedUnit(**row) for row in tables.decode(key, content).to_pylist()]
        problems = [problem for unit in units for problem in _misplaced(unit, plan.plan, planned, unit_rows)]
        wrong = [Finding(key, Kind.DISAGREES, problem) for problem in problems]
        wrong += _counts(plan, units, places.get(plan.plan))
        findings += wrong
        if wrong:
            planned.blind.add(plan.plan)  # nothing is condemned by what contradicts itself
        else:
            planned.units.update({unit.unit: unit for unit in units})
    planned.blind |= {key.split("/")[1] for key in inventory.lost("plan")}
    planned.blind |= {receipt.plan for receipt in inventory.all(Receipt)} - _names(inventory)
    return planned, findings


def check_tables(
    inventory: Inventory, planned: Planned, chosen: Collection[int], digest: ExampleDigest, readers: Readers
) -> list[Finding]:
    """Check every table of every plan, and in depth those units that are chosen."""
    findings = _strangers(inventory)
    jobs = [(plan, paths) for plan in inventory.all(PlanDocument) for paths in _groups(plan.tables)]
    units_of: dict[str, list[PlannedUnit]] = {}
    for unit in planned.units.values():
        if unit.unit in chosen:
            units_of.setdefault(layout.examples_part(unit.plan, unit.part), []).append(unit)

    def check(job: tuple[PlanDocument, list[str]]) -> tuple[list[Finding], dict[int, int]]:
        plan, paths = job
        contents = [_read(inventory, plan, path) for path in paths]
        wrong = [finding for _, one in contents for finding in one]
        whole = [content for content, _ in contents if content is not None]
        if len(whole) < 2:
            return wrong, {}
        key = layout.in_plan(plan.plan, paths[0])
        problems, stored = _parts(whole[0], whole[1], units_of.get(key, []), digest)
        return [*wrong, *(Finding(key, Kind.DISAGREES, problem) for problem in problems)], stored

    for (_, paths), (wrong, stored) in zip(jobs, readers.each(check, jobs), strict=True):
        findings += wrong
        planned.stored.update(stored)
        planned.n_tables += len(paths)
    planned.n_tables += len(inventory.all(PlanDocument))
    return findings


def _parts(
    examples: bytes, tokens: bytes, units: Iterable[PlannedUnit], digest: ExampleDigest
) -> tuple[list[str], dict[int, int]]:
    """Check units of one part. Return what is wrong, and the tokens that have a row of each unit that is right."""
    problems: list[str] = []
    stored: dict[int, int] = {}
    files = [tables.open_parquet(pa.BufferReader(content)) for content in (examples, tokens)]
    for unit in units:
        if any(unit.row_group >= file.num_row_groups for file in files):
            problems.append(f"has no row group {unit.row_group} for unit {unit.unit}")
            continue
        own_examples, own_tokens = (file.read_row_group(unit.row_group, use_threads=False) for file in files)
        found, n_stored = check_unit(unit, own_examples, own_tokens, digest)
        problems += found
        if not found:
            stored[unit.unit] = n_stored
    return problems, stored


def _groups(paths: Iterable[str]) -> list[list[str]]:
    """Put the examples and tokens of the same units together; the table of units was read before."""
    known = set(paths)
    groups: list[list[str]] = []
    for path in sorted(known):
        twin = path.replace(_EXAMPLES, _TOKENS, 1)
        if path.startswith(_EXAMPLES) and twin in known:
            groups.append([path, twin])
        elif path.startswith(_TOKENS) and path.replace(_TOKENS, _EXAMPLES, 1) in known:
            continue
        elif path != layout.path_in_plan(layout.units_table("plan")):
            groups.append([path])
    return groups


def _read(inventory: Inventory, plan: PlanDocument, path: str) -> tuple[bytes | None, list[Finding]]:
    """Read a table. Return its bytes if they are those that were planned, and otherwise what is wrong."""
    key = layout.in_plan(plan.plan, path)
    if path not in plan.tables:
        return None, [Finding(layout.plan_document(plan.plan), Kind.DISAGREES, f"has no digest of {path}")]
    try:
        content = inventory.objects.get(key)
    except FileNotFoundError:
        return None, [Finding(key, Kind.MISSING, "is missing", Action.PLAN, plan.plan)]
    if hashlib.sha256(content).hexdigest() != plan.tables[path]:
        return None, [Finding(key, Kind.DAMAGED, "differs from its digest in the plan", Action.PLAN, plan.plan)]
    return content, []


def _misplaced(unit: PlannedUnit, plan: str, planned: Planned, unit_rows: int) -> list[str]:
    other = planned.units.get(unit.unit)
    problems = [f"has unit {unit.unit}, which {other.plan} has too"] if other else []
    if unit.plan != plan:
        problems.append(f"has unit {unit.unit} of {unit.plan}")
    if unit.row_start != unit.unit * unit_rows or not 0 < unit.n_rows <= unit_rows:
        problems.append(f"has unit {unit.unit} outside its rows, or over those of another")
    return problems


def _counts(plan: PlanDocument, units: list[PlannedUnit], place: PlanPlace | None) -> list[Finding]:
    """Compare a plan's counts and its place with its units."""
    counts, findings = plan.counts, []
    found = (len(units), *(sum(getattr(unit, name) for unit in units) for name in ("n_rows", "n_examples", "n_tokens")))
    if found != (counts.units, counts.rows, counts.examples, counts.tokens):
        key = layout.plan_document(plan.plan)
        findings.append(Finding(key, Kind.DISAGREES, "counts other than its table of units"))
    if place is None:
        problem = f"is missing, the place of {plan.plan}, and there is no good copy: bring one from a backup"
        findings.append(Finding(layout.place(plan.place), Kind.MISSING, problem))
    elif [unit.unit for unit in units] != list(range(place.first_unit, place.first_unit + place.n_units)):
        problem = f"reserves other units than {plan.plan} has"
        findings.append(Finding(layout.place(place.number), Kind.DISAGREES, problem))
    return findings


def _names(inventory: Inventory) -> set[str]:
    return {plan.plan for plan in inventory.all(PlanDocument)}


def _unfinished_places(inventory: Inventory) -> list[Finding]:
    plans = _names(inventory) | {key.split("/")[1] for key in inventory.lost("plan")}
    wanted = {receipt.plan for receipt in inventory.all(Receipt)}
    return [
        _unfinished(layout.place(place.number), place.plan, place.plan in wanted)
        for place in inventory.all(PlanPlace)
        if place.plan not in plans
    ]


def _strangers(inventory: Inventory) -> list[Finding]:
    """Find tables that no plan names."""
    plans = {plan.plan: plan for plan in inventory.all(PlanDocument)}
    lost = {key.split("/")[1] for key in inventory.lost("plan")}
    wanted = {receipt.plan for receipt in inventory.all(Receipt)}
    findings = []
    for key in inventory.of_kind("plan_table"):
        plan = key.split("/")[1]
        if plan in plans:
            if layout.path_in_plan(key) not in plans[plan].tables:
                findings.append(Finding(key, Kind.ORPHAN, f"is no table of {plan}", Action.REMOVE))
        elif plan not in lost:
            findings.append(_unfinished(key, plan, plan in wanted))
    return findings


def _unfinished(key: str, plan: str, is_wanted: bool) -> Finding:
    if is_wanted:
        problem = f"is of a plan whose {layout.plan_document(plan)} is lost: bring it from a backup"
        return Finding(key, Kind.ORPHAN, problem)
    problem = "is of a plan that was not finished, as an interrupted run leaves it; extracting again settles it"
    return Finding(key, Kind.ORPHAN, problem, Action.REMOVE)
