"""A row's values as one text and back, with the types that JSON lacks: rows wait on disk while a corpus is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal

_MARK = "\ue000type"
"""Key of what JSON has no type for."""


def _nanoseconds(text: str) -> object:
    import pandas

    return pandas.Timestamp(text)


_READERS: dict[str, Callable[[str], object]] = {
    "bytes": bytes.fromhex,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(microseconds=int(text)),
    "decimal": Decimal,
    "timestamp": _nanoseconds,
}


def to_text(values: Mapping[str, object] | list[object]) -> str:
    """Return values as text; what has no reader here becomes its `str`."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=_tagged)


def from_text(text: str) -> dict[str, object]:
    """Return the values of `to_text`."""
    found: dict[str, object] = json.loads(text, object_hook=_untagged)
    return found


def _tagged(value: object) -> object:
    if isinstance(value, bytes):
        return {_MARK: "bytes", "value": value.hex()}
    if isinstance(value, timedelta):
        return {_MARK: "timedelta", "value": str(value // timedelta(microseconds=1))}
    if isinstance(value, Decimal):
        return {_MARK: "decimal", "value": str(value)}
    for kind, name in ((datetime, "datetime"), (date, "date"), (time, "time")):
        if type(value) is kind:
            return {_MARK: name, "value": value.isoformat()}
    if isinstance(value, datetime):  # pandas' own, which counts nanoseconds
        return {_MARK: "timestamp", "value": value.isoformat()}
    return str(value)


def _untagged(found: dict[str, object]) -> object:
    reader = _READERS.get(str(found.get(_MARK))) if len(found) == 2 else None
    return reader(str(found["value"])) if reader is not None and "value" in found else found
