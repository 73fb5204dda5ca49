"""Forward passes of a unit: every row once, within the limit, rightly padded."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.extract.passes import Pass, UnitExample, plan_passes
from cliffstore.plan.prefix import assign_rows, shared_lengths

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=20)


def _unit(sequences: list[list[int]], row_start: int = 48) -> list[UnitExample]:
    ordered = [np.array(tokens, dtype=np.int32) for tokens in sorted(sequences)]
    rows = assign_rows(ordered, shared_lengths(ordered), row_start)
    return [UnitExample(10 + n, tokens, own) for n, (tokens, own) in enumerate(zip(ordered, rows, strict=True))]


def _same(left: Pass, right: Pass) -> bool:
    arrays = ("input_ids", "mask", "kept", "rows")
    return left.examples == right.examples and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays
    )


@given(SEQUENCES, st.integers(1, 60))
def test_each_row_is_kept_once(sequences: list[list[int]], batch_tokens: int) -> None:
    examples = _unit(sequences)
    passes = plan_passes(examples, batch_tokens)
    kept = Counter(row for one in passes for row in one.rows.tolist())
    assert set(kept) == {row for example in examples for row in example.rows.tolist()}
    assert set(kept.values()) == {1}


@given(SEQUENCES, st.integers(1, 60))
def test_kept_position_has_the_prefix_of_its_row(sequences: list[list[int]], batch_tokens: int) -> None:
    examples = _unit(sequences)
    prefix_of = {
        row: example.token_ids[: position + 1].tolist()
        for example in examples
        for position, row in enumerate(example.rows.tolist())
    }
    for one in plan_passes(examples, batch_tokens):
        width = one.input_ids.shape[1]
        for place, row in zip(one.kept.tolist(), one.rows.tolist(), strict=True):
            line, position = divmod(place, width)
            assert one.mask[line, position] == 1
            assert one.input_ids[line, : position + 1].tolist() == prefix_of[row]


@given(SEQUENCES, st.integers(1, 60))
def test_padding_is_on_the_right_and_masked(sequences: list[list[int]], batch_tokens: int) -> None:
    examples = _unit(sequences)
    tokens_of = {example.example: example.token_ids.tolist() for example in examples}
    for one in plan_passes(examples, batch_tokens):
        assert one.input_ids.dtype == one.mask.dtype == np.int64
        assert one.input_ids.shape == one.mask.shape == (len(one.examples), one.mask.sum(axis=1).max())
        for line, ordinal in enumerate(one.examples):
            n = len(tokens_of[ordinal])
            assert one.input_ids[line, :n].tolist() == tokens_of[ordinal]
            assert one.mask[line].tolist() == [1] * n + [0] * (one.mask.shape[1] - n)
            assert not one.input_ids[line, n:].any()


@given(SEQUENCES, st.integers(1, 60))
def test_pass_holds_at_most_batch_tokens(sequences: list[list[int]], batch_tokens: int) -> None:
    for one in plan_passes(_unit(sequences), batch_tokens):
        assert one.input_ids.size <= batch_tokens or len(one.examples) == 1


@given(SEQUENCES, st.integers(1, 60))
def test_example_without_rows_of_its_own_is_not_run(sequences: list[list[int]], batch_tokens: int) -> None:
    examples = _unit(sequences)
    run = [ordinal for one in plan_passes(examples, batch_tokens) for ordinal in one.examples]
    assert len(run) == len(set(run))
    seen: set[int] = set()
    adding = []
    for example in examples:
        adding += [example.example] if set(example.rows.tolist()) - seen else []
        seen.update(example.rows.tolist())
    assert sorted(run) == adding


@given(SEQUENCES, st.integers(1, 60))
def test_same_unit_same_passes(sequences: list[list[int]], batch_tokens: int) -> None:
    first = plan_passes(_unit(sequences), batch_tokens)
    second = plan_passes(_unit(sequences), batch_tokens)
    assert len(first) == len(second)
    assert all(_same(left, right) for left, right in zip(first, second, strict=True))


def test_equal_prompts_are_run_once() -> None:
    (only,) = plan_passes(_unit([[1, 2, 3]] * 50), 1_000)
    assert only.input_ids.tolist() == [[1, 2, 3]]
    assert only.rows.tolist() == [48, 49, 50]


def test_large_limit_puts_everything_into_one_pass() -> None:
    (only,) = plan_passes(_unit([[1], [2, 2], [3, 3, 3]]), 9)
    assert only.input_ids.shape == (3, 3)


def test_lengths_are_kept_together() -> None:
    """Short examples do not pay for the padding of a long one."""
    passes = plan_passes(_unit([[1, 1], [2] * 10, [3, 3], [3, 1]]), 12)
    assert [one.input_ids.shape for one in passes] == [(3, 2), (1, 10)]
