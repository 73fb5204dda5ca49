"""What a column holds, found value by value: the one Arrow type that takes all of them, or none.

`join` is associative and commutative, so the type of a column depends on its values alone, neither on their order nor
on how the corpus is cut into blocks. A kind is a nested tuple, small enough to send between processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TypeAlias

import pyarrow as pa

Kind: TypeAlias = tuple[object, ...]

NULL: Kind = ("null",)
MIXED: Kind = ("mixed",)
"""Values share no Arrow type."""
_TEXT: Kind = ("leaf", pa.string())
_BOOL: Kind = ("leaf", pa.bool_())
_FLOAT: Kind = ("leaf", pa.float64())
_INT: Kind = ("int",)
_LARGE_INT: Kind = ("large int",)
"""Integers that float64 does not hold exactly."""
_EXACT = 2**53
_MOST_DIGITS = 38


def kind_of(value: object) -> Kind:
    """Return the kind of one value."""
    if value is None:
        return NULL
    if isinstance(value, str):
        return _TEXT
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _INT if abs(value) <= _EXACT else _LARGE_INT if -(2**63) <= value < 2**63 else MIXED
    if isinstance(value, float):
        return _FLOAT
    if isinstance(value, list):
        return _list_of(kind_of_all(value))
    if isinstance(value, Mapping):
        return _struct_of({str(name): kind_of(inner) for name, inner in value.items()})
    return _leaf(value)


def kind_of_all(values: Iterable[object]) -> Kind:
    """Return the kind of several values together."""
    return reduce(join, map(kind_of, values), NULL)


def join(one: Kind, other: Kind) -> Kind:
    """Return the kind of a column that holds both."""
    if one == other or other == NULL:
        return one
    if one == NULL:
        return other
    kinds = {one, other}
    if kinds == {_INT, _LARGE_INT}:
        return _LARGE_INT
    if kinds == {_INT, _FLOAT}:
        return _FLOAT
    if one[0] == other[0] == "list":
        return _list_of(join(one[1], other[1]))  # type: ignore[arg-type]
    if one[0] == other[0] == "struct":
        left, right = _fields(one), _fields(other)
        return _struct_of({name: join(left.get(name, NULL), right.get(name, NULL)) for name in {**left, **right}})
    if one[0] == other[0] == "leaf":
        return _join_decimals(one[1], other[1])
    return MIXED


def arrow_type(kind: Kind) -> pa.DataType | None:
    """Return the Arrow type of a kind, text where all values are null; None where there is none in Parquet."""
    if kind == MIXED:
        return None
    if kind == NULL:
        return pa.string()
    if kind in (_INT, _LARGE_INT):
        return pa.int64()
    if kind[0] == "list":
        return pa.list_(arrow_type(kind[1]))  # type: ignore[arg-type]
    if kind[0] == "struct":
        return pa.struct([(name, arrow_type(inner)) for name, inner in _fields(kind).items()])
    return kind[1]


def _list_of(inner: Kind) -> Kind:
    return MIXED if inner == MIXED else ("list", inner)


def _struct_of(fields: Mapping[str, Kind]) -> Kind:
    # Parquet has no struct without fields.
    return MIXED if not fields or MIXED in fields.values() else ("struct", *sorted(fields.items()))


def _fields(struct: Kind) -> dict[str, Kind]:
    return dict(struct[1:])  # type: ignore[arg-type]


def _leaf(value: object) -> Kind:
    try:
        kind = pa.scalar(value).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return MIXED
    return MIXED if pa.types.is_nested(kind) else ("leaf", kind)


def _join_decimals(one: object, other: object) -> Kind:
    if not (pa.types.is_decimal(one) and pa.types.is_decimal(other)):
        return MIXED
    scale = max(one.scale, other.scale)  # type: ignore[attr-defined]
    digits = max(one.precision - one.scale, other.precision - other.scale) + scale  # type: ignore[attr-defined]
    return ("leaf", pa.decimal128(digits, scale)) if digits <= _MOST_DIGITS else MIXED
