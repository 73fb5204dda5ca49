"""Receipts: the objects whose existence commits a unit, and the errors of units that failed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cliffstore.schema import Receipt, UnitError
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore

_READERS = 16


def commit(objects: ObjectStore, receipt: Receipt) -> bool:
    """Commit a unit. Return False where another worker had committed it before."""
    created = objects.create(layout.receipt(receipt.capture, receipt.unit), receipt.to_bytes())
    objects.delete(layout.unit_error(receipt.capture, receipt.unit))
    return created


def record_error(objects: ObjectStore, error: UnitError) -> None:
    """Write down why a unit failed; the next attempt replaces it, a receipt removes it."""
    objects.put(layout.unit_error(error.capture, error.unit), error.to_bytes())


def committed(objects: ObjectStore, capture: str) -> set[int]:
    """Return the units of a capture that are extracted: one listing, no reads."""
    units = (layout.unit_of(key) for key in objects.list(layout.receipts_of(capture)))
    return {unit for unit in units if unit is not None}


def read_all(objects: ObjectStore, capture: str) -> list[Receipt]:
    """Return the receipts of a capture in the order of their units. Raises `DamagedStoreError` for a damaged one."""
    keys = [key for key in objects.list(layout.receipts_of(capture)) if layout.unit_of(key) is not None]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(pool.map(objects.get, keys))
    found = (documents.parse(Receipt, key, content) for key, content in zip(keys, contents, strict=True))
    return sorted(found, key=lambda receipt: receipt.unit)


def read_one(objects: ObjectStore, capture: str, unit: int) -> Receipt:
    """Return one receipt. Raises FileNotFoundError where the unit is not extracted."""
    return documents.read(objects, Receipt, layout.receipt(capture, unit))


def read_errors(objects: ObjectStore, capture: str) -> list[UnitError]:
    """Return the recorded errors of a capture's units that have no receipt."""
    done = committed(objects, capture)
    keys = [key for key in objects.list(layout.receipts_of(capture)) if layout.unit_of_error(key) is not None]
    errors = [documents.read(objects, UnitError, key) for key in keys]
    return [error for error in errors if error.unit not in done]
