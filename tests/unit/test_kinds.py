"""What a column holds does not depend on the order of its values, nor on how they are cut into blocks."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.corpus.columns import Settled
from cliffstore.corpus.kinds import MIXED, NULL, arrow_type, join, kind_of, kind_of_all
from cliffstore.corpus.values import from_text, to_text

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5),
    st.binary(max_size=4), st.dates(), st.datetimes(), st.times(), st.decimals(allow_nan=False, allow_infinity=False),
    st.timedeltas(),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, VALUES, VALUES)
def test_join_has_no_order(one: object, other: object, third: object) -> None:
    a, b, c = map(kind_of, (one, other, third))
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    assert join(a, NULL) == a


@given(st.lists(VALUES, max_size=6))
def test_type_takes_every_value(values: list[object]) -> None:
    kind = arrow_type(kind_of_all(values))
    if kind is not None:
        assert len(pa.array(values, type=kind)) == len(values)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([2**60, 1], pa.int64()),
        ([2**60, 2.5], None),
        ([2**60, 1, 2.5], None),
        ([2**70], None),
        ([True, 1], None),
        ([1, "1"], None),
        ([None, None], pa.string()),
        ([[], [1]], pa.list_(pa.int64())),
        ([[1], [2.5]], pa.list_(pa.float64())),
        ([[1], ["a"]], None),
        ([{"b": 1}, {"a": "x"}], pa.struct([("a", pa.string()), ("b", pa.int64())])),
        ([{}], None),
        ([b"x"], pa.binary()),
        ([date(2026, 1, 1)], pa.date32()),
        ([date(2026, 1, 1), datetime(2026, 1, 1)], None),
        ([Decimal("1.25"), Decimal("100.5")], pa.decimal128(5, 2)),
    ],
)
def test_types(values: list[object], kind: pa.DataType | None) -> None:
    assert arrow_type(kind_of_all(values)) == kind
    assert arrow_type(kind_of_all(reversed(values))) == kind
    assert kind is not None or kind_of_all(values) == MIXED


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_values_come_back_from_their_text(values: dict[str, object]) -> None:
    assert from_text(to_text(values)) == values


def test_values_with_a_zone_or_nanoseconds_come_back() -> None:
    pandas = pytest.importorskip("pandas")
    values = {
        "zone": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "nano": pandas.Timestamp("2026-01-02T03:04:05.123456789"),
        "time": time(1, 2, 3),
        "long": timedelta(days=3, microseconds=1),
        "other": object,
    }
    found = from_text(to_text(values))
    assert found == {**values, "other": str(object)}


def test_messages_keep_their_order_of_fields() -> None:
    turns = [{"role": "user", "content": "u"}]
    for values in ([turns, []], [[]]):
        settled = Settled({"messages": "messages"}, {"messages": kind_of_all(values)})
        assert [field.name for field in settled.schema.field("messages").type.value_type] == ["role", "content"]
    strings = Settled({"messages": "messages"}, {"messages": kind_of(["a"])})
    assert strings.schema.field("messages").type == pa.list_(pa.string())
