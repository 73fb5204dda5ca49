"""Receipts against plan and capture, and every vector against its checksum and its receipt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from cliffstore.errors import DamagedStoreError
from cliffstore.schema import CaptureDocument, Chunking, Receipt, UnitError
from cliffstore.store import documents, layout
from cliffstore.store.arrays import ArrayIO, ArraySpec, array_metadata
from cliffstore.store.checks.findings import Action, Finding, Kind
from cliffstore.store.checks.inventory import Inventory
from cliffstore.store.checks.plans import Planned
from cliffstore.store.checks.readers import Readers
from cliffstore.store.objects import ObjectStore
from cliffstore.store.writer import capture_specs

_READ_BYTES = 64 << 20
"""Vectors that one thread has in memory: a shard of a capture with few arrays may be as large as a unit."""


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


def check_metadata(
    inventory: Inventory, planned: Planned, chunking: Chunking, readers: Readers
) -> tuple[set[str], list[Finding]]:
    """Compare the metadata of arrays and groups. Return the keys of arrays that can be read, and what is wrong."""
    captures = inventory.all(CaptureDocument)
    expected = expected_metadata(captures, max(planned.ends, default=0), chunking)
    lengths = {end * chunking.unit_rows for end in planned.ends}
    found = set(inventory.of_kind("metadata"))

    def check(key: str) -> Finding | None:
        if key not in found:
            return Finding(key, Kind.MISSING, "is missing", Action.METADATA)
        if _describes(inventory.objects.get(key), expected[key], lengths):
            return None
        return Finding(key, Kind.DAMAGED, "is not the metadata that its capture asks for", Action.METADATA)

    findings = [finding for finding in readers.each(check, sorted(expected)) if finding is not None]
    if not _is_vouched(inventory):
        strange = sorted(found - set(expected))
        findings += [_leftover(key, "describes an array that no capture has") for key in strange]
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
            findings.append(_bereft(receipt, "capture"))
        elif receipt.unit not in planned.units and receipt.plan in planned.blind:
            findings += [] if layout.plan_document(receipt.plan) in inventory.keys else [_bereft(receipt, "plan")]
        elif problem is not None:
            findings.append(_condemned(receipt, problem, planned))
        elif capture is not None:
            good.append(receipt)
    probes = {layout.probe_of(key) for kind in ("probe", "weights") for key in inventory.of_kind(kind)}
    known = {*captures, *lost, layout.SCORES, *map(layout.score_errors, probes)}
    for error in inventory.all(UnitError):
        if error.capture not in known:
            text = "is the error of a unit of a capture or probe that is not there"
            findings.append(Finding(documents.key_of(error), Kind.ORPHAN, text, Action.REMOVE))
    return good, findings


def _contradiction(receipt: Receipt, capture: CaptureDocument, planned: Planned) -> str | None:
    unit = planned.units.get(receipt.unit)
    if unit is None:
        return "is the receipt of a unit that is not planned"
    said = (receipt.plan, receipt.row_start, receipt.n_rows, receipt.n_examples, receipt.n_tokens)
    if said != (unit.plan, unit.row_start, unit.n_rows, unit.n_examples, unit.n_tokens):
        return "does not agree with the plan"
    specs = capture_specs(capture)
    if set(receipt.digests) != {spec.name for spec in specs}:
        return "does not cover the arrays of its capture"
    if receipt.bytes != receipt.n_rows * sum(spec.bytes_per_row for spec in specs):
        return "counts other bytes than its rows have"
    return None


def _bereft(receipt: Receipt, of_what: str) -> Finding:
    text = f"is a receipt of a {of_what} whose document is lost: bring it from a backup, or remove the receipt"
    return Finding(documents.key_of(receipt), Kind.ORPHAN, text)


def _condemned(receipt: Receipt, problem: str, planned: Planned) -> Finding:
    action = Action.EXTRACT if receipt.unit in planned.units else Action.REMOVE
    return Finding(documents.key_of(receipt), Kind.DISAGREES, problem, action, receipt.capture, receipt.unit)


def check_shards(inventory: Inventory, planned: Planned) -> list[Finding]:
    """Find shards that no receipt vouches for."""
    owner = {spec.key: capture for capture in inventory.all(CaptureDocument) for spec in capture_specs(capture)}
    receipts = set(inventory.of_kind("receipt"))
    is_vouched = _is_vouched(inventory)
    begun: dict[tuple[str, int], int] = {}
    findings = []
    for key in inventory.of_kind("shard"):
        place = layout.array_and_unit(key)
        assert place is not None
        array, unit = place
        if array not in owner:
            if not is_vouched:
                findings.append(_leftover(key, "is a shard of an array that no capture has"))
        elif layout.receipt(owner[array].capture, unit) in receipts:
            continue
        elif unit in planned.units:
            begun[owner[array].capture, unit] = begun.get((owner[array].capture, unit), 0) + 1
        elif not planned.blind:
            findings.append(Finding(key, Kind.ORPHAN, "is a shard of a unit that is not planned", Action.REMOVE))
    for (capture, unit), n_shards in sorted(begun.items()):
        problem = (
            f"is missing, but {n_shards} shards of its unit are there, as a run leaves them that was interrupted or is "
            "at work; extracting again settles it"
        )
        key = layout.receipt(capture, unit)
        findings.append(Finding(key, Kind.ORPHAN, problem, Action.EXTRACT, capture, unit))
    return findings


def check_vectors(
    inventory: Inventory,
    receipts: list[Receipt],
    arrays: ArrayIO,
    readable: Collection[str],
    chunking: Chunking,
    readers: Readers,
    advance: Callable[[], None],
) -> tuple[int, list[Finding]]:
    """Read the vectors of units. Return how many shards were read, and what is wrong with them.

    A whole shard is read, so that every chunk of it is decoded; behind the unit's last row there must be zeros.
    """
    captures = {capture.capture: capture for capture in inventory.all(CaptureDocument)}

    def jobs() -> Iterator[_Shard]:
        for receipt in receipts:
            specs = [spec for spec in capture_specs(captures[receipt.capture]) if spec.key in readable]
            for number, spec in enumerate(specs):
                yield _Shard(spec, receipt, number + 1 == len(specs))

    def check(shard: _Shard) -> tuple[bool, Finding | None]:
        return shard.is_last, _shard(shard, inventory.objects, arrays, chunking)

    n_shards, findings = 0, []
    for is_last, finding in readers.each(check, jobs()):
        n_shards += 1
        if finding is not None:
            findings.append(finding)
        if is_last:
            advance()
    return n_shards, findings


def _shard(shard: _Shard, objects: ObjectStore, arrays: ArrayIO, chunking: Chunking) -> Finding | None:
    receipt, key = shard.receipt, documents.key_of(shard.receipt)

    def finding(kind: Kind, problem: str) -> Finding:
        return Finding(shard.key, kind, problem, Action.EXTRACT, receipt.capture, receipt.unit)

    try:
        digest, is_clean = _digest(shard, arrays, chunking)
    except (DamagedStoreError, FileNotFoundError, IndexError) as error:
        if not objects.exists(shard.key):
            return finding(Kind.MISSING, f"is missing; {key} vouches for it")
        reason = str(error).rsplit(": ", 1)[-1][:120]
        return finding(Kind.DAMAGED, f"cannot be read ({reason}); {key} vouches for it")
    if digest != receipt.digests[shard.spec.name]:
        return finding(Kind.DISAGREES, f"differs from its digest in {key}")
    return None if is_clean else finding(Kind.DISAGREES, f"has vectors behind the last row of its unit; {key}")


def _digest(shard: _Shard, arrays: ArrayIO, chunking: Chunking) -> tuple[str, bool]:
    """Read a shard piece by piece. Return the digest of its unit's rows, and whether there is nothing behind them."""
    step = max(_READ_BYTES // (shard.spec.bytes_per_row * chunking.chunk_rows), 1) * chunking.chunk_rows
    first, n_rows = shard.receipt.row_start, shard.receipt.n_rows
    digest, is_clean = hashlib.sha256(), True
    for start in range(0, chunking.unit_rows, step):
        stop = min(start + step, chunking.unit_rows)
        rows = arrays.read_range(shard.spec.key, first + start, first + stop)
        own = rows[: max(n_rows - start, 0)]
        digest.update(np.ascontiguousarray(own).data)
        is_clean = is_clean and not rows[len(own) :].any()
    return digest.hexdigest(), is_clean


def _is_vouched(inventory: Inventory) -> bool:
    """Return whether a capture's document is lost whose arrays must not be taken for leftovers: receipts tell of it."""
    known = {capture.capture for capture in inventory.all(CaptureDocument)}
    return bool(inventory.lost("capture")) or any(
        key.split("/")[1] not in known for key in inventory.of_kind("receipt")
    )


def _leftover(key: str, problem: str) -> Finding:
    text = f"{problem}, as an interrupted run leaves it; extracting again settles it"
    return Finding(key, Kind.ORPHAN, text, Action.REMOVE)
