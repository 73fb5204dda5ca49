"""What is mixed in, the order, and the validation part: deterministic, and groups never part."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import SelectionError
from cliffstore.publish.mixture import (
    MIXED,
    SELECTED,
    VALIDATION,
    Chosen,
    count_mixed,
    groups,
    prompt_digest,
    shuffled,
    split,
)


def rows_of(prompts: list[int], values: list[int | None], parts: list[bool]) -> list[Chosen]:
    return [
        Chosen(
            number, f"id{number}", MIXED if part else SELECTED, prompt_digest(f"prompt {prompt}"),
            None if value is None else f"v{value}",
        )
        for number, (prompt, value, part) in enumerate(zip(prompts, values, parts, strict=True))
    ]  # fmt: skip


@st.composite
def many_rows(draw: st.DrawFn) -> list[Chosen]:
    n = draw(st.integers(2, 40))
    numbers = st.integers(0, 12)
    prompts = draw(st.lists(numbers, min_size=n, max_size=n))
    values = draw(st.lists(st.none() | numbers, min_size=n, max_size=n))
    parts = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return rows_of(prompts, values, parts)


@given(many_rows(), st.floats(0.05, 0.95), st.integers(0, 3))
def test_split_keeps_groups_whole(rows: list[Chosen], share: float, seed: int) -> None:
    if len(set(groups(rows))) < 2:
        with pytest.raises(SelectionError, match="two groups"):
            split(rows, share, seed)
        return
    side = split(rows, share, seed)
    for key in ("prompt", "group"):
        sides: dict[object, set[str]] = {}
        for row, part in zip(rows, side, strict=True):
            if getattr(row, key) is not None:
                sides.setdefault(getattr(row, key), set()).add(part)
        assert all(len(found) == 1 for found in sides.values())
    assert len(set(side)) == 2
    again = list(enumerate(rows))
    random.Random(seed).shuffle(again)
    shuffled_side = split([row for _, row in again], share, seed)
    assert [side[place] for place, _ in again] == shuffled_side


@given(many_rows(), st.integers(0, 3))
def test_order_is_one_of_rows_and_seed(rows: list[Chosen], seed: int) -> None:
    found = shuffled(rows, seed)
    assert sorted(found, key=lambda row: row.example) == rows
    assert shuffled(rows[::-1], seed) == found


def test_split_draws_from_both_parts_in_proportion() -> None:
    rows = rows_of(list(range(1000)), [None] * 1000, [number % 4 == 0 for number in range(1000)])
    side = split(rows, 0.1, 0)
    assert side.count(VALIDATION) == 100
    held_out = [row for row, part in zip(rows, side, strict=True) if part == VALIDATION]
    assert sum(row.part == MIXED for row in held_out) == 25
    assert split(rows, 0.1, 1) != side


def test_groups_join_through_prompts_and_values() -> None:
    """Rows 0 and 1 have a prompt in common, 1 and 2 a value, so the three are one group."""
    rows = rows_of([0, 0, 1, 2], [None, 5, 5, None], [False] * 4)
    found = groups(rows)
    assert found[0] == found[1] == found[2] != found[3]


def test_a_small_set_still_has_a_validation_part() -> None:
    rows = rows_of([0, 0, 0, 1], [None] * 4, [False] * 4)
    assert split(rows, 0.05, 0).index(VALIDATION) == 3


def test_equal_prompts_are_known_through_space_and_case() -> None:
    assert prompt_digest("Tell  me\nMORE ") == prompt_digest("tell me more")
    assert prompt_digest("tell me more") != prompt_digest("tell me")


@pytest.mark.parametrize(("share", "expected"), [(0.5, 70), (0.3, 30), (0.01, 1), (0.9, 630)])
def test_share_is_of_the_whole(share: float, expected: int) -> None:
    assert count_mixed(70, share) == expected
