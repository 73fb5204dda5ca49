"""The prefix tree: equal prefixes and nothing else share a row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.plan.prefix import assign_rows, common_prefix, shared_lengths, sort_key

# Two token ids give deep trees; the large ones catch an order that is not the numbers' own.
SEQUENCE = st.lists(st.sampled_from([0, 1, 255, 256, 70_000, 2**31 - 1]) | st.integers(0, 1), min_size=1, max_size=12)


def _array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


@given(SEQUENCE, SEQUENCE)
def test_sort_key_orders_as_the_token_lists_do(left: list[int], right: list[int]) -> None:
    assert (sort_key(_array(left)) < sort_key(_array(right))) == (left < right)
    assert (sort_key(_array(left)) == sort_key(_array(right))) == (left == right)


@given(SEQUENCE, SEQUENCE)
def test_common_prefix_is_the_longest(left: list[int], right: list[int]) -> None:
    n = common_prefix(_array(left), _array(right))
    assert left[:n] == right[:n]
    assert n == min(len(left), len(right)) or left[n] != right[n]


@given(st.lists(SEQUENCE, min_size=1, max_size=12), st.integers(0, 10_000))
def test_rows_are_the_nodes_of_the_tree(sequences: list[list[int]], row_start: int) -> None:
    ordered = [_array(tokens) for tokens in sorted(sequences)]
    rows = assign_rows(ordered, shared_lengths(ordered), row_start)
    assert [len(one) for one in rows] == [len(one) for one in ordered]
    row_of: dict[tuple[int, ...], int] = {}
    for tokens, own in zip(ordered, rows, strict=True):
        for position, row in enumerate(own.tolist()):
            prefix = tuple(tokens[: position + 1].tolist())
            assert row_of.setdefault(prefix, row) == row
    assert sorted(row_of.values()) == list(range(row_start, row_start + len(row_of)))


def test_shared_system_prompt_is_stored_once() -> None:
    system = list(range(100))
    sequences = [_array([*system, 500 + i, 7]) for i in range(10)]
    rows = assign_rows(sequences, shared_lengths(sequences), 0)
    assert len(set(np.concatenate(rows).tolist())) == 100 + 10 * 2
