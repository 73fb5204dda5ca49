"""The columns of a corpus beyond the known ones: their names and Arrow types, settled over all rows.

A column whose values share no Arrow type becomes JSON text. A name that cliffstore uses itself gets the
prefix `corpus_`. Names are compared without case, as SQL does. Every change is told in a notice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

RESERVED = frozenset(
    {"example", "id", "unit", "n_tokens", "decision", "digest", "plan"}
    | {"prompt", "system", "thinking", "response", "label", "source"}
)
MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def settle_names(columns: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Give each extra column the name it is kept under, and a notice for each one renamed."""
    taken = {*RESERVED}
    names: dict[str, str] = {}
    notices = []
    for column in sorted(columns):
        name = column
        while not name or name.lower() in taken:
            name = f"corpus_{name or 'column'}"
        taken.add(name.lower())
        names[column] = name
        if name != column:
            notices.append(f"the corpus column {column!r} is kept as {name!r}: the name is already in use")
    return names, tuple(notices)


def settle_types(
    rows: Sequence[Mapping[str, object]], names: Sequence[str]
) -> tuple[list[dict[str, object]], pa.Schema, tuple[str, ...]]:
    """Infer the Arrow type of each extra column over the whole corpus.

    Returns
    -------
    The rows with every column in `names` (null where a row has none), the schema sorted by name, and a notice
    for each column that became JSON text.
    """
    settled: list[dict[str, object]] = [{} for _ in rows]
    fields, notices = [], []
    for name in sorted(names):
        values = [row.get(name) for row in rows]
        kind = MESSAGES_TYPE if name == "messages" and _are_messages(values) else _infer(values)
        if kind is None:
            notices.append(f"the column {name!r} holds values of several types: it is kept as JSON text")
            values = [None if value is None else as_json(value) for value in values]
            kind = pa.string()
        fields.append(pa.field(name, kind))
        for row, value in zip(settled, values, strict=True):
            row[name] = value
    return settled, pa.schema(fields), tuple(notices)


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _are_messages(values: Sequence[object]) -> bool:
    lists = [value for value in values if value is not None]
    if not lists or not all(isinstance(value, list) for value in lists):
        return False
    turns = [turn for value in lists if isinstance(value, list) for turn in value]
    return all(isinstance(turn, dict) and turn.keys() == {"role", "content"} for turn in turns)


def _infer(values: Sequence[object]) -> pa.DataType | None:
    """Give the one Arrow type that takes all the values; None where Parquet can hold no such type."""
    try:
        kind = _without_null(pa.array(values).type)
        if kind is not None:
            pa.array(values, type=kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return kind


def _without_null(kind: pa.DataType) -> pa.DataType | None:
    """Replace the type of all-null values by string at any depth; None for a struct without fields."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = _without_null(kind.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = [(field.name, _without_null(field.type)) for field in kind]
        return pa.struct(fields) if fields and all(inner is not None for _, inner in fields) else None
    return kind
