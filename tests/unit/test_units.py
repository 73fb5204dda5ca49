"""Planning: which rows exist, which unit holds them, and on what the plan depends."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliffstore.plan.prefix import common_prefix
from cliffstore.plan.units import Plan, choose_unit_rows, make_plan
from cliffstore.records import CorpusRow, Message, RenderedExample, SkippedRow

UNIT_ROWS = 16
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=UNIT_ROWS), min_size=1, max_size=25)


def _example(number: int, tokens: list[int], label: str | None = "yes") -> RenderedExample:
    prompt = f"prompt {number}"
    row = CorpusRow(f"id-{number:03d}", prompt, (Message("user", prompt),), label=label, extra={"topic": "t"})
    ids = np.array(tokens, dtype=np.int32)
    return RenderedExample(row, ids, np.zeros(len(ids), dtype=np.uint8), len(ids) - 1, f"corpus.jsonl:{number}")


def _examples(sequences: list[list[int]]) -> list[RenderedExample]:
    return [_example(number, tokens) for number, tokens in enumerate(sequences)]


def _plan(
    examples: list[RenderedExample],
    skipped: tuple[SkippedRow, ...] = (),
    *,
    tokenizer: str = "t",
    max_tokens: int | None = None,
    unit_rows: int | None = UNIT_ROWS,
) -> Plan:
    return make_plan(
        examples,
        skipped,
        bytes_per_row=1_000,
        identity={"tokenizer": tokenizer},
        settings={"max_tokens": max_tokens},
        unit_rows=unit_rows,
    )


def _content(plan: Plan) -> list[tuple[object, ...]]:
    return [
        (unit.number, unit.row_start, unit.n_rows, one.ordinal, one.example.row.id, one.digest, one.rows.tolist())
        for unit in plan.units
        for one in unit.examples
    ]


@given(SEQUENCES)
def test_every_position_has_the_row_of_its_prefix(sequences: list[list[int]]) -> None:
    plan = _plan(_examples(sequences))
    planned = [one for unit in plan.units for one in unit.examples]
    assert sorted(one.example.row.id for one in planned) == [f"id-{n:03d}" for n in range(len(sequences))]
    assert [one.ordinal for one in planned] == list(range(len(sequences)))
    assert plan.n_examples == len(sequences)
    assert plan.n_tokens == sum(map(len, sequences))
    for unit in plan.units:
        row_of: dict[tuple[int, ...], int] = {}
        for one in unit.examples:
            tokens = one.example.token_ids.tolist()
            assert one.unit == unit.number
            assert len(one.rows) == len(tokens)
            for position, row in enumerate(one.rows.tolist()):
                assert row_of.setdefault(tuple(tokens[: position + 1]), row) == row
        assert sorted(row_of.values()) == list(range(unit.row_start, unit.row_start + unit.n_rows))


@given(SEQUENCES)
def test_units_are_aligned_and_never_overflow(sequences: list[list[int]]) -> None:
    plan = _plan(_examples(sequences))
    assert [unit.number for unit in plan.units] == list(range(len(plan.units)))
    assert all(unit.row_start == unit.number * plan.unit_rows for unit in plan.units)
    assert all(0 < unit.n_rows <= plan.unit_rows for unit in plan.units)


@given(SEQUENCES)
def test_units_are_full(sequences: list[list[int]]) -> None:
    """A unit ends only where the next example does not fit: no unit number is spent on air."""
    plan = _plan(_examples(sequences))
    for unit, following in pairwise(plan.units):
        last = unit.examples[-1].example.token_ids
        first = following.examples[0].example.token_ids
        shared = common_prefix(last, first)
        assert unit.n_rows + len(first) - shared > plan.unit_rows


@settings(max_examples=60)
@given(SEQUENCES, st.randoms(use_true_random=False))
def test_plan_does_not_depend_on_the_order_of_its_input(sequences: list[list[int]], random: object) -> None:
    examples = _examples(sequences)
    skipped = [SkippedRow(f"s{n}", "corpus", f"corpus.jsonl:{n}", "empty prompt", "") for n in range(4)]
    first = _plan(examples, tuple(skipped))
    random.shuffle(examples)  # type: ignore[attr-defined]
    random.shuffle(skipped)  # type: ignore[attr-defined]
    second = _plan(examples, tuple(skipped))
    assert second.digest == first.digest
    assert second.name == first.name
    assert second.skipped == first.skipped
    assert _content(second) == _content(first)


def _changed_plans() -> dict[str, Plan]:
    base = _examples([[1, 2, 3], [1, 2, 4], [5]])
    skipped = SkippedRow("s", "corpus", "corpus.jsonl:9", "empty prompt", "")

    def with_first(**changes: object) -> list[RenderedExample]:
        return [replace(base[0], **changes), *base[1:]]  # type: ignore[arg-type]

    return {
        "nothing": _plan(base),
        "token": _plan([_example(0, [1, 2, 9]), *base[1:]]),
        "segment": _plan(with_first(segments=np.array([0, 0, 1], dtype=np.uint8))),
        "decision": _plan(with_first(decision=0)),
        "label": _plan([_example(0, [1, 2, 3], label="no"), *base[1:]]),
        "no label": _plan([_example(0, [1, 2, 3], label=None), *base[1:]]),
        "extra column": _plan(with_first(row=replace(base[0].row, extra={"topic": "other"}))),
        "response": _plan(with_first(row=replace(base[0].row, response="I will"))),
        "fewer examples": _plan(base[:2]),
        "skipped row": _plan(base, (skipped,)),
        "skip reason": _plan(base, (replace(skipped, reason="too long"),)),
        "setting": _plan(base, max_tokens=100),
        "tokenizer": _plan(base, tokenizer="other"),
        "unit rows": _plan(base, unit_rows=32),
    }


def test_digest_changes_with_whatever_the_plan_holds() -> None:
    digests = {what: plan.digest for what, plan in _changed_plans().items()}
    assert len(set(digests.values())) == len(digests), digests


def test_digest_is_stable() -> None:
    assert _changed_plans()["nothing"].digest == _changed_plans()["nothing"].digest


def test_skipped_rows_at_the_same_place_of_two_files_have_an_order() -> None:
    """`a/corpus.jsonl` and `b/corpus.jsonl` have the same base name, hence the same locations."""
    skipped = tuple(SkippedRow(id_, "corpus", "corpus.jsonl:1", "empty prompt", "") for id_ in "xy")
    assert _plan(_examples([[1]]), skipped).digest == _plan(_examples([[1]]), skipped[::-1]).digest


def test_location_of_an_example_is_no_part_of_the_plan() -> None:
    examples = _examples([[1, 2], [3]])
    moved = [replace(example, location="elsewhere/corpus.jsonl:1") for example in examples]
    assert _plan(moved).digest == _plan(examples).digest


def test_example_longer_than_the_unit_of_the_store_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens"):
        _plan([_example(0, list(range(17)))])


def test_empty_corpus_has_no_units() -> None:
    plan = _plan([], unit_rows=None)
    assert plan.units == ()
    assert plan.n_rows == plan.n_tokens == plan.n_examples == 0


def test_unit_rows_are_chosen_where_the_store_has_none() -> None:
    plan = _plan([_example(n, [n % 7] * 40 + [n]) for n in range(30)], unit_rows=None)
    assert plan.unit_rows == 1_024
    assert len(plan.units) == 1


@given(st.integers(0, 10**9), st.integers(1, 200_000), st.integers(1, 1 << 26))
def test_unit_rows_stay_within_bounds(n_nodes: int, longest: int, bytes_per_row: int) -> None:
    rows = choose_unit_rows(n_nodes, longest, bytes_per_row)
    assert rows % 256 == 0
    assert rows >= longest
    assert rows >= 1_024
    assert rows <= max(65_536, longest + 255)


@given(st.integers(10**7, 10**9), st.integers(1 << 14, 1 << 20))
def test_unit_of_a_large_corpus_holds_a_gibibyte(n_nodes: int, bytes_per_row: int) -> None:
    rows = choose_unit_rows(n_nodes, 1_000, bytes_per_row)
    within_chunk = 256 * bytes_per_row
    expected = min(max(1 << 30, 1_024 * bytes_per_row), 65_536 * bytes_per_row)
    assert abs(rows * bytes_per_row - expected) <= within_chunk


@given(st.integers(16 * 1_024, 16 * 30_000))
def test_small_corpus_has_some_sixteen_units(n_nodes: int) -> None:
    rows = choose_unit_rows(n_nodes, 1_000, 1_152)
    assert 13 <= -(-n_nodes // rows) <= 16


def test_small_corpus_is_shared_out_after_packing() -> None:
    generator = np.random.default_rng(0)
    examples = [_example(n, generator.integers(0, 50_000, 60).tolist()) for n in range(600)]
    plan = _plan(examples, unit_rows=None)
    assert plan.unit_rows == 2_304
    assert 14 <= len(plan.units) <= 18
