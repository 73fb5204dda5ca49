"""Receipts against plan and capture, and every vector against its checksum and its receipt."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from cliffstore.errors import DamagedStoreError
from cliffstore.schema import CaptureDocument, Chunking, Receipt, UnitError
from cliffstore.store import documents, layout
from cliffstore.store.arrays import ArrayIO, ArraySpec, array_metadata
from cliffstore.store.checks.findings import Action, Finding, Kind
from cliffstore.store.checks.inventory import Inventory
from cliffstore.store.checks.plans import Planned
from cliffstore.store.checks.readers import Readers
from cliffstore.store.writer import capture_specs, rows_digest


@dataclass(frozen=True, slots=True)
class _Shard:
    """One array's rows of one unit. `is_last` of the unit's."""

    spec: ArraySpec
    receipt: Receipt
    is_last: bool

    @property
    def key(self) -> str:
        return layout.shard(self.spec.key, self.receipt.unit, 1 + len(self.spec.row_shape))


def expected_metadata(captures: list[CaptureDocument], n_units: int, chunking: Chunking) -> dict[str, bytes]:
    """Return key -> content of all Zarr metadata of a store."""
    expected: dict[str, bytes] = {}
    for capture in captures:
        expected |= array_metadata(
            tuple(capture_specs(capture)),
            n_rows=n_units * chunking.unit_rows,
            chunk_rows=chunking.chunk_rows,
            unit_rows=chunking.unit_rows,
        )
    return expected


def check_metadata(inventory: Inventory, planned: Planned, chunking: Chunking) -> tuple[set[str], list[Finding]]:
    """Compare the metadata of arrays and groups. Return the keys of arrays that can be read, and what is wrong."""
    captures = inventory.all(CaptureDocument)
    expected = expected_metadata(captures, max(planned.ends, default=0), chunking)
    lengths = {end * chunking.unit_rows for end in planned.ends}
    found = set(inventory.of_kind("metadata"))
    findings = []
    for key, content in sorted(expected.items()):
        if key not in found:
            findings.append(Finding(key, Kind.MISSING, "is missing", Action.METADATA))
        elif not _describes(inventory.objects.get(key), content, lengths):
            problem = "is not the metadata that its capture asks for"
            findings.append(Finding(key, Kind.DAMAGED, problem, Action.METADATA))
    findings += _strange_arrays(inventory, found - set(expected))
    wrong = {finding.key for finding in findings}
    arrays = {spec.key for capture in captures for spec in capture_specs(capture)}
    return {key for key in arrays if layout.metadata(key) not in wrong}, findings


def _describes(content: bytes, expected: bytes, lengths: set[int]) -> bool:
    """Compare two zarr.json; an array may be as long as any place made it."""
    try:
        one, other = json.loads(content), json.loads(expected)
    except ValueError:
        return False
    if isinstance(one, dict) and isinstance(one.get("shape"), list) and one["shape"] and "shape" in other:
        length = one["shape"][0]
        if length in lengths:
            other["shape"][0] = length
    return bool(one == other)


def check_receipts(inventory: Inventory, planned: Planned) -> tuple[list[Receipt], list[Finding]]:
    """Compare receipts with plan and capture. Return those that agree with both, and what is wrong."""
    captures = {capture.capture: capture for capture in inventory.all(CaptureDocument)}
    lost = {layout.stem(key) for key in inventory.lost("capture")}
    good, findings = [], []
    for receipt in inventory.all(Receipt):
        capture = captures.get(receipt.capture)
        problem = _contradiction(receipt, capture, planned) if capture else None
        if capture is None and receipt.capture not in lost:
            text = "is a receipt of a capture whose document is lost: bring it from a backup, or remove the receipt"
            findings.append(Finding(documents.key_of(receipt), Kind.ORPHAN, text))
        elif problem is not None:
            findings.append(_condemned(receipt, problem, planned))
        elif capture is not None:
            good.append(receipt)
    for error in inventory.all(UnitError):
        if error.capture not in {*captures, *lost, layout.SCORES}:
            text = "is the error of a unit of a capture that is not there"
            findings.append(Finding(documents.key_of(error), Kind.ORPHAN, text, Action.REMOVE))
    return good, findings


def _contradiction(receipt: Receipt, capture: CaptureDocument, planned: Planned) -> str | None:
    unit = planned.units.get(receipt.unit)
    if unit is None:
        return None if receipt.plan in planned.blind else "is the receipt of a unit that is not planned"
    said = (receipt.plan, receipt.row_start, receipt.n_rows, receipt.n_examples, receipt.n_tokens)
    if said != (unit.plan, unit.row_start, unit.n_rows, unit.n_examples, unit.n_tokens):
        return "does not agree with the plan"
    specs = capture_specs(capture)
    if set(receipt.digests) != {spec.name for spec in specs}:
        return "does not cover the arrays of its capture"
    if receipt.bytes != receipt.n_rows * sum(spec.bytes_per_row for spec in specs):
        return "counts other bytes than its rows have"
    return None


def _condemned(receipt: Receipt, problem: str, planned: Planned) -> Finding:
    action = Action.EXTRACT if receipt.unit in planned.units else Action.REMOVE
    return Finding(documents.key_of(receipt), Kind.DISAGREES, problem, action, receipt.capture, receipt.unit)


def check_shards(inventory: Inventory, planned: Planned) -> list[Finding]:
    """Find shards that no receipt vouches for."""
    owner = {spec.key: capture for capture in inventory.all(CaptureDocument) for spec in capture_specs(capture)}
    receipts = set(inventory.of_kind("receipt"))
    vouched = bool(inventory.lost("capture")) or _has_strange_receipts(inventory)
    begun: dict[tuple[str, int], int] = {}
    findings = []
    for key in inventory.of_kind("shard"):
        place = layout.array_and_unit(key)
        assert place is not None
        array, unit = place
        if array not in owner:
            findings.append(_strange(key, "is a shard of an array that no capture has", vouched))
        elif layout.receipt(owner[array].capture, unit) in receipts:
            continue
        elif unit in planned.units:
            begun[owner[array].capture, unit] = begun.get((owner[array].capture, unit), 0) + 1
        elif not planned.blind:
            findings.append(Finding(key, Kind.ORPHAN, "is a shard of a unit that is not planned", Action.REMOVE))
    for (capture, unit), n_shards in sorted(begun.items()):
        problem = (
            f"is missing, but {n_shards} shards of its unit are there, as an interrupted run leaves them; extracting "
            "again settles it"
        )
        key = layout.receipt(capture, unit)
        findings.append(Finding(key, Kind.ORPHAN, problem, Action.EXTRACT, capture, unit))
    return findings


def check_vectors(
    inventory: Inventory,
    receipts: list[Receipt],
    arrays: ArrayIO,
    readable: Collection[str],
    unit_rows: int,
    readers: Readers,
    advance: Callable[[], None],
) -> tuple[int, list[Finding]]:
    """Read the vectors of units. Return how many shards were read, and what is wrong with them.

    A whole shard is read, so that every chunk of it is decoded; behind the unit's last row there must be zeros.
    """
    captures = {capture.capture: capture for capture in inventory.all(CaptureDocument)}
    there = set(inventory.of_kind("shard"))

    def jobs() -> Iterator[_Shard]:
        for receipt in receipts:
            specs = [spec for spec in capture_specs(captures[receipt.capture]) if spec.key in readable]
            for number, spec in enumerate(specs):
                yield _Shard(spec, receipt, number + 1 == len(specs))

    def check(shard: _Shard) -> tuple[bool, Finding | None]:
        return shard.is_last, _shard(shard, shard.key in there, arrays, unit_rows)

    n_shards, findings = 0, []
    for is_last, finding in readers.each(check, jobs()):
        n_shards += 1
        if finding is not None:
            findings.append(finding)
        if is_last:
            advance()
    return n_shards, findings


def _shard(shard: _Shard, is_there: bool, arrays: ArrayIO, unit_rows: int) -> Finding | None:
    receipt = shard.receipt
    vouched = f"{documents.key_of(receipt)} vouches for it"

    def finding(kind: Kind, problem: str) -> Finding:
        return Finding(shard.key, kind, problem, Action.EXTRACT, receipt.capture, receipt.unit)

    if not is_there:
        return finding(Kind.MISSING, f"is missing; {vouched}")
    try:
        rows = arrays.read_range(shard.spec.key, receipt.row_start, receipt.row_start + unit_rows)
    except (DamagedStoreError, FileNotFoundError, IndexError) as error:
        return finding(Kind.DAMAGED, f"cannot be read ({error}); {vouched}")
    if rows_digest(rows[: receipt.n_rows]) != receipt.digests[shard.spec.name]:
        return finding(Kind.DISAGREES, f"differs from its digest in {documents.key_of(receipt)}")
    if rows[receipt.n_rows :].any():
        return finding(Kind.DISAGREES, f"has vectors behind the last row of its unit; {vouched}")
    return None


def _strange_arrays(inventory: Inventory, keys: set[str]) -> list[Finding]:
    vouched = bool(inventory.lost("capture")) or _has_strange_receipts(inventory)
    return [_strange(key, "describes an array that no capture has", vouched) for key in sorted(keys)]


def _has_strange_receipts(inventory: Inventory) -> bool:
    """Return whether receipts speak of captures that are not there, whose arrays must not be taken for leftovers."""
    known = {capture.capture for capture in inventory.all(CaptureDocument)}
    return any(key.split("/")[1] not in known for key in inventory.of_kind("receipt"))


def _strange(key: str, problem: str, vouched: bool) -> Finding:
    if vouched:
        text = f"{problem}, but there are receipts of a capture whose document is lost: bring it from a backup"
        return Finding(key, Kind.ORPHAN, text)
    text = f"{problem}, as an interrupted run leaves it; extracting again settles it"
    return Finding(key, Kind.ORPHAN, text, Action.REMOVE)
