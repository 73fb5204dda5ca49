"""Plans against their tables, and the tables against each other.

Every table is read whole and compared with its digest in `plan.json`. Then, unit by unit, tokens are counted, rows
must be dense, and each example's digest is computed again from its text and tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.records import SEGMENTS
from cliffstore.schema import EXAMPLES, PlanDocument, Receipt
from cliffstore.store import layout
from cliffstore.store.checks.findings import Action, Finding, Kind
from cliffstore.store.checks.inventory import Inventory
from cliffstore.store.checks.readers import Readers

ExampleDigest = Callable[
    [Mapping[str, object], Mapping[str, object], npt.NDArray[np.int32], npt.NDArray[np.uint8]], str
]
"""(known columns, further columns, token ids, segments as indices into `SEGMENTS`) of an example -> its digest."""

_EXAMPLES, _TOKENS = "examples/", "tokens/"


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """A unit as a plan has it."""

    plan: str
    unit: int
    row_start: int
    n_rows: int
    n_examples: int
    n_tokens: int


@dataclass(slots=True)
class Planned:
    """What the plans of a store say.

    Attributes
    ----------
    units : unit -> what is planned
    blind : plans whose units cannot be told
    ends : unit behind the last one, of each plan
    stored : unit -> tokens that have a row, of units that were looked at
    """

    units: dict[int, PlannedUnit] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    ends: set[int] = field(default_factory=set)
    stored: dict[int, int] = field(default_factory=dict)
    n_tables: int = 0


def check_units(inventory: Inventory, unit_rows: int) -> tuple[Planned, list[Finding]]:
    """Read what units there are: each once, each in its own rows."""
    planned, findings = Planned(), []
    for plan in inventory.all(PlanDocument):
        key = layout.units_table(plan.plan)
        content, wrong = _read(inventory, plan, layout.path_in_plan(key))
        findings += wrong
        if content is None:
            planned.blind.add(plan.plan)
            continue
        names = ("plan", "unit", "row_start", "n_rows", "n_examples", "n_tokens")
        table = pq.read_table(pa.BufferReader(content), columns=list(names))
        units = [PlannedUnit(**{name: row[name] for name in names}) for row in table.to_pylist()]
        problems = [problem for unit in units for problem in _place(unit, plan.plan, planned, unit_rows)]
        findings += [Finding(key, Kind.DISAGREES, problem) for problem in problems]
        planned.units.update({unit.unit: unit for unit in units})
        planned.ends.add(max((unit.unit + 1 for unit in units), default=0))
        findings += _counts(plan, units)
    planned.blind |= {key.split("/")[1] for key in inventory.lost("plan")}
    return planned, findings


def check_tables(
    inventory: Inventory, planned: Planned, chosen: Collection[int], digest: ExampleDigest, readers: Readers
) -> list[Finding]:
    """Check every table of every plan, and in depth those units that are chosen."""
    findings = _strangers(inventory)
    jobs = [(plan, paths) for plan in inventory.all(PlanDocument) for paths in _groups(plan.tables)]

    def check(job: tuple[PlanDocument, list[str]]) -> tuple[list[Finding], dict[int, int]]:
        plan, paths = job
        contents = [_read(inventory, plan, path) for path in paths]
        wrong = [finding for _, one in contents for finding in one]
        whole = [content for content, _ in contents if content is not None]
        if len(whole) < 2 or len(paths) != 2:
            return wrong, {}
        examples, tokens = (pq.read_table(pa.BufferReader(content)) for content in whole)
        problems, stored = _agree(examples, tokens, planned, chosen, digest)
        key = layout.in_plan(plan.plan, paths[0])
        return [*wrong, *(Finding(key, Kind.DISAGREES, problem) for problem in problems)], stored

    for (plan, paths), (wrong, stored) in zip(jobs, readers.each(check, jobs), strict=True):
        findings += wrong
        planned.stored.update(stored)
        planned.n_tables += len(paths)
        planned.n_tables += layout.path_in_plan(layout.units_table(plan.plan)) in paths
    planned.n_tables += len(inventory.all(PlanDocument))
    return findings


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


def _place(unit: PlannedUnit, plan: str, planned: Planned, unit_rows: int) -> list[str]:
    other = planned.units.get(unit.unit)
    problems = [f"has unit {unit.unit}, which {other.plan} has too"] if other else []
    if unit.plan != plan:
        problems.append(f"has unit {unit.unit} of {unit.plan}")
    if unit.row_start != unit.unit * unit_rows or not 0 < unit.n_rows <= unit_rows:
        problems.append(f"has unit {unit.unit} outside its rows, or over those of another")
    return problems


def _counts(plan: PlanDocument, units: list[PlannedUnit]) -> list[Finding]:
    counts = plan.counts
    found = (len(units), *(sum(getattr(unit, name) for unit in units) for name in ("n_rows", "n_examples", "n_tokens")))
    if found == (counts.units, counts.rows, counts.examples, counts.tokens):
        return []
    return [Finding(layout.plan_document(plan.plan), Kind.DISAGREES, "counts other than its table of units")]


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
        problem = f"is a table of a plan whose {layout.plan_document(plan)} is lost: bring it from a backup"
        return Finding(key, Kind.ORPHAN, problem)
    problem = "is a table of a plan that is not finished: extracting the same corpus again settles it"
    return Finding(key, Kind.ORPHAN, problem, Action.REMOVE)


def _agree(
    examples: pa.Table, tokens: pa.Table, planned: Planned, chosen: Collection[int], digest: ExampleDigest
) -> tuple[list[str], dict[int, int]]:
    """Compare the examples and tokens of some units. Return what is wrong, and each unit's tokens that have a row."""
    ordinals = examples["example"].to_numpy()
    of_token = tokens["example"].to_numpy()
    starts = np.searchsorted(of_token, ordinals, side="left")
    stops = np.searchsorted(of_token, ordinals, side="right")
    rows = tokens["row"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
    columns = _Columns(examples, tokens, digest)
    problems: list[str] = []
    stored: dict[int, int] = {}
    if int((stops - starts).sum()) != len(of_token) or (np.diff(of_token) < 0).any():
        problems.append("does not have the examples of its tokens")
    units = examples["unit"].to_numpy()
    for unit in sorted({*units.tolist()} & set(chosen)):
        members = np.flatnonzero(units == unit)
        spans = [(int(starts[member]), int(stops[member])) for member in members]
        own = np.concatenate([rows[first:last] for first, last in spans])
        own = own[own >= 0]
        stored[unit] = len(own)
        problems += _unit(planned.units.get(unit), unit, len(members), sum(last - first for first, last in spans), own)
        problems += [
            problem for member, span in zip(members, spans, strict=True) for problem in columns.example(int(member), *span)
        ]
    return problems, stored


def _unit(
    unit: PlannedUnit | None, number: int, n_examples: int, n_tokens: int, rows: npt.NDArray[np.int64]
) -> list[str]:
    if unit is None:
        return [f"has unit {number}, which is not planned"]
    problems = []
    if (n_examples, n_tokens) != (unit.n_examples, unit.n_tokens):
        problems.append(f"has {n_examples} examples and {n_tokens} tokens of unit {number}, planned are others")
    if not np.array_equal(np.unique(rows), np.arange(unit.row_start, unit.row_start + unit.n_rows)):
        problems.append(f"leaves out rows of unit {number}, or has others")
    return problems


class _Columns:
    """The columns of a file of examples and of their tokens, as `digest` and checks need them."""

    def __init__(self, examples: pa.Table, tokens: pa.Table, digest: ExampleDigest) -> None:
        known = set(EXAMPLES.names)
        further = [field.name for field in examples.schema if field.name not in known]
        self._known = examples.select(EXAMPLES.names).to_pylist()
        # Numbers that are not whole and nested values may have come from others of the same meaning: 1 and 1.0.
        plain = all(_is_plain(examples.schema.field(name).type) for name in further)
        self._further = examples.select(further).to_pylist() if plain and further else [{}] * examples.num_rows
        self._digest = digest if plain else None
        self._positions = tokens["position"].to_numpy()
        self._to_decision = tokens["to_decision"].to_numpy()
        self._token_ids = tokens["token_id"].to_numpy().astype(np.int32)
        self._segments = _segments(tokens["segment"])

    def example(self, index: int, first: int, last: int) -> list[str]:
        """Return what is wrong with an example, whose tokens are [first, last)."""
        known = self._known[index]
        name, n_tokens, decision = known["id"], known["n_tokens"], known["decision"]
        if last - first != n_tokens or not 0 <= decision < n_tokens:
            return [f"has {last - first} tokens of {name!r}, its row says {n_tokens}, decision at {decision}"]
        positions = np.arange(n_tokens)
        if not np.array_equal(self._positions[first:last], positions):
            return [f"has the tokens of {name!r} out of order"]
        if not np.array_equal(self._to_decision[first:last], positions - decision):
            return [f"has another decision position of {name!r} than its tokens"]
        if self._digest is None:
            return []
        own = self._digest(known, self._further[index], self._token_ids[first:last], self._segments[first:last])
        return [] if own == known["digest"] else [f"has another digest of {name!r} than its text and tokens"]


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _segments(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Return segments as indices into `SEGMENTS`."""
    whole = pa.concat_arrays(column.unify_dictionaries().chunks) if column.num_chunks != 1 else column.chunk(0)
    names = [segment.value for segment in SEGMENTS]
    codes = np.array([names.index(name) for name in whole.dictionary.to_pylist()], dtype=np.uint8)
    return codes[whole.indices.to_numpy(zero_copy_only=False)]
