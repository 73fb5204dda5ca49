"""Checking a store against itself: tables against the plan's digests, vectors against crc32c and receipts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cliffstore.errors import DamagedStoreError
from cliffstore.schema import CaptureDocument, PlanDocument, Receipt
from cliffstore.store import layout, tables
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import capture_specs, rows_digest


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: the key of the object, and what is wrong with it."""

    key: str
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How much was checked and what is wrong with it. `units_missing` are planned but not extracted."""

    tables: int
    arrays: int
    units: int
    units_missing: int
    findings: tuple[Finding, ...]


def verify_store(reader: StoreReader, begin: Callable[[int], None], advance: Callable[[str], None]) -> VerifyReport:
    """Read everything that is committed and compare it with its digests."""
    findings: list[Finding] = []
    planned: dict[int, tuple[str, int, int]] = {}
    n_tables = 0
    for plan in reader.plans():
        n_tables += _check_plan(reader, plan, findings, planned)
    captures = [(capture, reader.receipts(capture.capture)) for capture in reader.captures()]
    begin(sum(len(receipts) for _, receipts in captures))
    n_units = n_arrays = n_missing = 0
    for capture, receipts in captures:
        n_missing += len(planned) - len(receipts)
        for receipt in receipts:
            n_units += 1
            n_arrays += _check_unit(reader, capture, receipt, planned, findings)
            advance("")
    return VerifyReport(n_tables, n_arrays, n_units, n_missing, tuple(findings))


def _check_plan(
    reader: StoreReader, plan: PlanDocument, findings: list[Finding], planned: dict[int, tuple[str, int, int]]
) -> int:
    for path, digest in plan.tables.items():
        _check_object(reader, layout.in_plan(plan.plan, path), digest, findings)
    for unit in tables.read(reader.objects, layout.units_table(plan.plan)).to_pylist():
        planned[unit["unit"]] = (plan.plan, unit["row_start"], unit["n_rows"])
    return len(plan.tables)


def _check_object(reader: StoreReader, key: str, digest: str, findings: list[Finding]) -> bool:
    try:
        content = reader.objects.get(key)
    except FileNotFoundError:
        findings.append(Finding(key, "is missing"))
        return False
    if hashlib.sha256(content).hexdigest() != digest:
        findings.append(Finding(key, "differs from its digest in the plan"))
        return False
    return True


def _check_unit(
    reader: StoreReader,
    capture: CaptureDocument,
    receipt: Receipt,
    planned: dict[int, tuple[str, int, int]],
    findings: list[Finding],
) -> int:
    key = layout.receipt(capture.capture, receipt.unit)
    if planned.get(receipt.unit) != (receipt.plan, receipt.row_start, receipt.n_rows):
        findings.append(Finding(key, "does not agree with the plan"))
        return 0
    specs = capture_specs(capture)
    if set(receipt.digests) != {spec.name for spec in specs}:
        findings.append(Finding(key, "does not cover the arrays of its capture"))
        return 0
    for spec in specs:
        try:
            rows = reader.arrays.read_range(spec.key, receipt.row_start, receipt.row_start + receipt.n_rows)
        except (DamagedStoreError, FileNotFoundError) as error:
            findings.append(Finding(f"{spec.key} unit {receipt.unit}", str(error)))
            continue
        if rows_digest(rows) != receipt.digests[spec.name]:
            findings.append(Finding(f"{spec.key} unit {receipt.unit}", "differs from the digest in its receipt"))
    return len(specs)
