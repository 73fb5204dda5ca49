"""Receipts: the objects whose existence commits a unit, and the errors of units that failed."""

from __future__ import annotations

from collections.abc import Sequence

from cliffstore.schema import Receipt, UnitError
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore


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


def read_all(objects: ObjectStore, capture: str, listed: Sequence[str] | None = None) -> list[Receipt]:
    """Return the receipts of a capture in the order of their units.

    Parameters
    ----------
    listed : the keys of its receipts and errors, where they are known

    Raises
    ------
    DamagedStoreError
        One is damaged.
    """
    listed = objects.list(layout.receipts_of(capture)) if listed is None else listed
    keys = [key for key in listed if layout.unit_of(key) is not None]
    found = documents.read_many(objects, Receipt, keys)
    return sorted(found, key=lambda receipt: receipt.unit)


def read_one(objects: ObjectStore, capture: str, unit: int) -> Receipt:
    """Return one receipt. Raises FileNotFoundError where the unit is not extracted."""
    return documents.read(objects, Receipt, layout.receipt(capture, unit))


def failed(listed: Sequence[str]) -> list[str]:
    """Return those keys of a capture's receipts and errors that are errors of units without a receipt."""
    done = {layout.unit_of(key) for key in listed}
    errors = ((key, layout.unit_of_error(key)) for key in listed)
    return [key for key, unit in errors if unit is not None and unit not in done]


def read_errors(objects: ObjectStore, capture: str, listed: Sequence[str] | None = None) -> list[UnitError]:
    """Return the recorded errors of a capture's units that have no receipt. `listed` as for `read_all`."""
    keys = failed(objects.list(layout.receipts_of(capture)) if listed is None else listed)
    # The next attempt, made meanwhile, removes an error.
    return list(documents.read_many(objects, UnitError, keys, missing_ok=True))
