"""Receipts and errors of all captures as one table, with no more read than a statement needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.dataset as ds

from cliffstore.store import layout, receipts
from cliffstore.store.reader import StoreReader

RECEIPTS = pa.schema(
    [
        pa.field("capture", pa.string()),
        pa.field("model", pa.string()),
        pa.field("unit", pa.int32()),
        pa.field("extracted", pa.bool_()),
        pa.field("attempt", pa.int32()),
        pa.field("worker", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("error", pa.string()),
    ]
)
_IN_KEYS = frozenset({"capture", "model", "unit", "extracted"})
"""Columns that a listing tells."""
_OF_A_RECEIPT = {"capture", "unit", "attempt", "worker", "seconds", "bytes"}
_OF_AN_ERROR = {"capture", "unit", "attempt", "worker", "error"}

Row = Mapping[str, object]


class ReceiptTable:
    """One row a capture and unit that is extracted or has failed. Listed once, and read once if it must be."""

    schema = RECEIPTS

    def __init__(self, reader: StoreReader) -> None:
        self._reader = reader

    def __call__(self, columns: Sequence[str]) -> ds.Dataset:
        """Return a dataset of `RECEIPTS`; columns that were not asked for may be null."""
        return self._listed if _IN_KEYS.issuperset(columns) else self._read

    @cached_property
    def _listed(self) -> ds.Dataset:
        return _dataset(self._rows_of_keys())

    @cached_property
    def _read(self) -> ds.Dataset:
        return _dataset(self._rows_of_documents())

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        """Keys by capture; those of runs that store scores only are under `SCORES`, which stands for no capture."""
        names = [*self._models, layout.SCORES]
        return {name: self._reader.objects.list(layout.receipts_of(name)) for name in names}

    @cached_property
    def _models(self) -> dict[str, str]:
        return {capture.capture: capture.alias for capture in self._reader.captures()}

    def _rows_of_keys(self) -> Iterator[Row]:
        for name, keys in self._keys.items():
            of = self._capture_and_model(name)
            units = {unit for key in keys if (unit := layout.unit_of(key)) is not None} if of["capture"] else set()
            yield from ({**of, "unit": unit, "extracted": True} for unit in sorted(units))
            failed = (layout.unit_of_error(key) for key in receipts.failed(keys))
            yield from ({**of, "unit": unit, "extracted": False} for unit in failed)

    def _rows_of_documents(self) -> Iterator[Row]:
        objects = self._reader.objects
        for name, keys in self._keys.items():
            of = self._capture_and_model(name)
            for receipt in receipts.read_all(objects, name, keys) if of["capture"] else ():
                yield {**receipt.model_dump(include=_OF_A_RECEIPT), **of, "extracted": True}
            for error in receipts.read_errors(objects, name, keys):
                yield {**error.model_dump(include=_OF_AN_ERROR), **of, "extracted": False}

    def _capture_and_model(self, name: str) -> dict[str, str | None]:
        model = self._models.get(name)
        return {"capture": None if model is None else name, "model": model}


def _dataset(rows: Iterator[Row]) -> ds.Dataset:
    return ds.dataset(pa.Table.from_pylist(list(rows), schema=RECEIPTS))
