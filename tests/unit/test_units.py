"""Planning: which rows exist, which unit holds them, and on what the plan depends."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import Plan, make_plan

from cliffstore.plan import units as units_module
from cliffstore.plan.positions import ALL, Positions, parse_positions, selected
from cliffstore.plan.prefix import common_prefix
from cliffstore.plan.sorting import NO_POSITION
from cliffstore.plan.tables import tokens_table
from cliffstore.plan.units import MAX_UNIT_NODES, Member, Survey, Unit, choose_unit_rows, whole_chunks
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, Segment, SkippedRow

UNIT_ROWS = 16
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=UNIT_ROWS), min_size=1, max_size=25)
USER, THINK = SEGMENTS.index(Segment.USER), SEGMENTS.index(Segment.THINK)
TOKEN = st.tuples(st.integers(0, 2), st.booleans())
PARTS = st.lists(
    st.tuples(st.lists(TOKEN, min_size=1, max_size=UNIT_ROWS), st.integers(0, UNIT_ROWS)), min_size=1, max_size=25
)
"""Examples: tokens, each with whether it is thinking; the decision position, modulo the length."""
POSITIONS = st.sampled_from(
    ["all", "decision", "think", "last:1", "last:3", "stride:1", "stride:3", "stride:5,think", "decision,think"]
).map(parse_positions)


def _example(number: int, tokens: list[int], label: str | None = "yes") -> RenderedExample:
    prompt = f"prompt {number}"
    row = CorpusRow(f"id-{number:03d}", prompt, (Message("user", prompt),), label=label, extra={"topic": "t"})
    ids = np.array(tokens, dtype=np.int32)
    return RenderedExample(row, ids, np.zeros(len(ids), dtype=np.uint8), len(ids) - 1, f"corpus.jsonl:{number}")


def _examples(sequences: list[list[int]]) -> list[RenderedExample]:
    return [_example(number, tokens) for number, tokens in enumerate(sequences)]


def _marked_examples(parts: list[tuple[list[tuple[int, bool]], int]]) -> list[RenderedExample]:
    examples = []
    for number, (tokens, decision) in enumerate(parts):
        segments = np.array([THINK if is_think else USER for _, is_think in tokens], dtype=np.uint8)
        example = _example(number, [token for token, _ in tokens])
        examples.append(replace(example, segments=segments, decision=decision % len(tokens)))
    return examples


def _stored(example: RenderedExample | Member, positions: Positions) -> list[int]:
    return np.flatnonzero(selected(positions, example.segments, example.decision)).tolist()


def _prefixes(example: RenderedExample | Member, positions: list[int]) -> list[tuple[int, ...]]:
    """The token prefixes that end at these positions."""
    tokens = example.token_ids.tolist()
    return [tuple(tokens[: position + 1]) for position in positions]


def _distinct_prefixes(examples: list[Member], positions: Positions) -> tuple[int, int]:
    """Count rows and nodes as the definition says: distinct prefixes that are stored, and that are computed."""
    rows: set[tuple[int, ...]] = set()
    nodes: set[tuple[int, ...]] = set()
    for example in examples:
        stored = _stored(example, positions)
        rows.update(_prefixes(example, stored))
        nodes.update(_prefixes(example, list(range(stored[-1] + 1))))
    return len(rows), len(nodes)


def _members(unit: Unit) -> list[Member]:
    return [one.example for one in unit.examples]


def _plan(
    examples: list[RenderedExample],
    skipped: tuple[SkippedRow, ...] = (),
    *,
    tokenizer: str = "t",
    max_tokens: int | None = None,
    unit_rows: int | None = UNIT_ROWS,
    positions: Positions = ALL,
) -> Plan:
    return make_plan(
        examples,
        skipped,
        positions=positions,
        bytes_per_row=1_000,
        identity={"tokenizer": tokenizer},
        settings={"max_tokens": max_tokens},
        unit_rows=unit_rows,
    )


def _content(plan: Plan) -> list[tuple[object, ...]]:
    return [
        (unit.number, unit.row_start, unit.n_rows, one.ordinal, one.example.id, one.example.digest, one.rows.tolist())
        for unit in plan.units
        for one in unit.examples
    ]


@given(SEQUENCES)
def test_every_position_has_the_row_of_its_prefix(sequences: list[list[int]]) -> None:
    plan = _plan(_examples(sequences))
    planned = [one for unit in plan.units for one in unit.examples]
    assert sorted(one.example.id for one in planned) == [f"id-{n:03d}" for n in range(len(sequences))]
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
        "positions": _plan(base, positions=parse_positions("stride:1")),
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
    rows = choose_unit_rows(n_nodes, longest, bytes_per_row, n_nodes=n_nodes)
    assert rows % 256 == 0
    assert rows >= longest
    assert rows >= 1_024
    assert rows <= max(65_536, longest + 255)


@given(st.integers(10**7, 10**9), st.integers(1 << 14, 1 << 20))
def test_unit_of_a_large_corpus_holds_a_gibibyte(n_nodes: int, bytes_per_row: int) -> None:
    rows = choose_unit_rows(n_nodes, 1_000, bytes_per_row, n_nodes=n_nodes)
    within_chunk = 256 * bytes_per_row
    expected = min(max(1 << 30, 1_024 * bytes_per_row), 65_536 * bytes_per_row)
    assert abs(rows * bytes_per_row - expected) <= within_chunk


@given(st.integers(16 * 1_024, 16 * 30_000))
def test_small_corpus_has_some_sixteen_units(n_nodes: int) -> None:
    rows = choose_unit_rows(n_nodes, 1_000, 1_152, n_nodes=n_nodes)
    assert 13 <= -(-n_nodes // rows) <= 16


def test_small_corpus_is_shared_out_after_packing() -> None:
    generator = np.random.default_rng(0)
    examples = [_example(n, generator.integers(0, 50_000, 60).tolist()) for n in range(600)]
    plan = _plan(examples, unit_rows=None)
    assert plan.unit_rows == 2_304
    assert 14 <= len(plan.units) <= 18


def test_plans_of_all_positions_stay_as_they_are() -> None:
    """Digests and rows as they were before a plan could leave positions out: stores of that time go on."""
    examples = _examples([[7, 8, 9, 1], [7, 8], [7, 8, 9, 2, 3], [5], [7, 8, 9, 1], [300, 1, 2, 3, 4, 5, 6], [7, 9]])
    skipped = (SkippedRow("s", "corpus", "corpus.jsonl:9", "empty prompt", ""),)
    small, chosen = _plan(examples, skipped, unit_rows=10), _plan(examples, skipped, unit_rows=None)
    assert small.digest == "54ec03112066cec2b236790afbb652db656e32ad0828b7105c7a692eb54fcaec"
    assert chosen.digest == "ad3e51f16878c3a17d598c110efb64dca1db48f3eb98643ccfc01b68d9500fa1"
    assert [one[3:5] + one[6:] for one in _content(small)] == [
        (0, "id-003", [0]),
        (1, "id-001", [1, 2]),
        (2, "id-000", [1, 2, 3, 4]),
        (3, "id-004", [1, 2, 3, 4]),
        (4, "id-002", [1, 2, 3, 5, 6]),
        (5, "id-006", [1, 7]),
        (6, "id-005", [10, 11, 12, 13, 14, 15, 16]),
    ]
    assert [(unit.row_start, unit.n_rows, unit.n_nodes) for unit in small.units] == [(0, 8, 8), (10, 7, 7)]


@given(SEQUENCES)
def test_all_positions_have_a_row_for_each_node(sequences: list[list[int]]) -> None:
    """Examples in the order of their tokens, packed until the distinct prefixes are too many: nothing else matters."""
    plan = _plan(_examples(sequences))
    expected: list[list[str]] = []
    held: set[tuple[int, ...]] = set()
    for tokens, number in sorted((tokens, number) for number, tokens in enumerate(sequences)):
        own = {tuple(tokens[:end]) for end in range(1, len(tokens) + 1)}
        if not expected or len(held | own) > UNIT_ROWS:
            expected.append([])
            held = set()
        held |= own
        expected[-1].append(f"id-{number:03d}")
    assert [[example.id for example in _members(unit)] for unit in plan.units] == expected
    assert all(unit.n_nodes == unit.n_rows for unit in plan.units)
    assert plan.n_nodes == plan.n_rows


@given(PARTS, POSITIONS)
def test_stored_positions_and_no_others_have_rows(parts: list, positions: Positions) -> None:
    examples = _marked_examples(parts)
    plan = _plan(examples, positions=positions)
    for unit in plan.units:
        for one in unit.examples:
            assert one.rows.dtype == np.int64
            assert len(one.rows) == len(one.example.token_ids)
            assert np.flatnonzero(one.rows >= 0).tolist() == _stored(one.example, positions)
            assert set(one.rows[one.rows < 0].tolist()) <= {-1}
    planned = {example.id for unit in plan.units for example in _members(unit)}
    assert planned == {example.row.id for example in examples if _stored(example, positions)}
    assert {row.id for row in plan.skipped} == {example.row.id for example in examples} - planned


@given(PARTS, POSITIONS)
def test_rows_are_the_stored_prefixes_in_their_order(parts: list, positions: Positions) -> None:
    """Equal prefixes share a row, others never do, and rows are dense and depth first."""
    for unit in _plan(_marked_examples(parts), positions=positions).units:
        row_of: dict[tuple[int, ...], int] = {}
        for one in unit.examples:
            stored = _stored(one.example, positions)
            for prefix, row in zip(_prefixes(one.example, stored), one.rows[stored].tolist(), strict=True):
                assert row_of.setdefault(prefix, row) == row
        in_order = [row_of[prefix] for prefix in sorted(row_of)]
        assert in_order == list(range(unit.row_start, unit.row_start + unit.n_rows))


@given(PARTS, POSITIONS)
def test_nodes_are_the_prefixes_up_to_the_last_stored_position(parts: list, positions: Positions) -> None:
    plan = _plan(_marked_examples(parts), positions=positions)
    for unit in plan.units:
        assert (unit.n_rows, unit.n_nodes) == _distinct_prefixes(_members(unit), positions)
    assert plan.n_nodes == sum(unit.n_nodes for unit in plan.units)


@given(PARTS, POSITIONS, st.integers(1, UNIT_ROWS), st.integers(1, 30))
def test_sparse_units_hold_what_fits_and_no_less(
    parts: list, positions: Positions, unit_rows: int, max_nodes: int
) -> None:
    examples = _marked_examples(parts)
    unit_rows = max([unit_rows, *(len(_stored(example, positions)) for example in examples)])
    with patch.object(units_module, "MAX_UNIT_NODES", max_nodes):
        plan = _plan(examples, positions=positions, unit_rows=unit_rows)
    limit = unit_rows if positions == ALL else max_nodes
    for unit in plan.units:
        assert unit.row_start == unit.number * unit_rows
        assert 0 < unit.n_rows <= unit_rows
        assert unit.n_nodes <= limit or len(unit.examples) == 1
    for unit, following in pairwise(plan.units):
        n_rows, n_nodes = _distinct_prefixes([*_members(unit), _members(following)[0]], positions)
        assert n_rows > unit_rows or n_nodes > limit


@pytest.mark.parametrize(("positions", "n_examples"), [("decision", [3, 3, 2]), ("last:2", [2, 2, 2, 2])])
def test_rows_along_one_path_are_counted_exactly(positions: str, n_examples: list[int]) -> None:
    """Each example goes one token further than the last: one more row, and in a new unit those of its own."""
    chain = [_example(n, list(range(1, n + 3))) for n in range(8)]
    plan = _plan(chain, positions=parse_positions(positions), unit_rows=3)
    assert [len(unit.examples) for unit in plan.units] == n_examples


@settings(max_examples=60)
@given(PARTS, POSITIONS, st.randoms(use_true_random=False))
def test_sparse_plan_does_not_depend_on_the_order_of_its_input(
    parts: list, positions: Positions, random: object
) -> None:
    examples = _marked_examples(parts)
    first = _plan(examples, positions=positions)
    random.shuffle(examples)  # type: ignore[attr-defined]
    second = _plan(examples, positions=positions)
    assert second.digest == first.digest
    assert second.skipped == first.skipped
    assert _content(second) == _content(first)


def test_shared_node_has_a_row_only_for_examples_that_store_it() -> None:
    short = replace(_example(0, [1, 2]), decision=1)
    long = replace(_example(1, [1, 2, 3, 4, 5]), decision=3)
    (unit,) = _plan([long, short], positions=parse_positions("decision")).units
    assert [one.rows.tolist() for one in unit.examples] == [[-1, 0], [-1, -1, -1, 1, -1]]
    assert (unit.n_rows, unit.n_nodes, unit.n_tokens) == (2, 4, 7)


def test_response_behind_the_last_stored_position_does_not_spread_equal_prompts() -> None:
    """Rollouts of one prompt: with `decision` they are one row, whatever they answer."""
    rollouts = [replace(_example(n, [1, 2, 3, 50 - n, n]), decision=2) for n in range(20)]
    (unit,) = _plan(rollouts, positions=parse_positions("decision")).units
    assert (unit.n_rows, unit.n_nodes, unit.n_tokens) == (1, 3, 100)
    assert [one.example.id for one in unit.examples] == [f"id-{n:03d}" for n in reversed(range(20))]


def test_example_without_a_position_to_store_is_skipped() -> None:
    thinking = replace(_example(0, [1, 2, 3]), segments=np.array([USER, THINK, USER], dtype=np.uint8))
    plan = _plan([thinking, _example(1, [4, 5])], positions=parse_positions("think"))
    (skipped,) = plan.skipped
    assert (skipped.id, skipped.location, skipped.reason) == ("id-001", "corpus.jsonl:1", NO_POSITION)
    assert "think" in skipped.detail
    assert plan.n_examples == 1
    assert plan.digest != _plan([thinking], positions=parse_positions("think")).digest


def test_corpus_without_a_position_to_store_has_no_units() -> None:
    plan = _plan(_examples([[1, 2], [3]]), positions=parse_positions("think"), unit_rows=None)
    assert plan.units == ()
    assert len(plan.skipped) == 2
    assert plan.n_rows == plan.n_nodes == 0


def test_positions_are_a_setting_of_the_plan() -> None:
    assert _plan(_examples([[1]])).settings["positions"] == "all"
    assert _plan(_examples([[1]]), positions=parse_positions("last:2,decision")).settings["positions"] == (
        "decision,last:2"
    )


def test_long_example_with_few_stored_positions_fits() -> None:
    plan = _plan([_example(0, list(range(100)))], positions=parse_positions("last:16"))
    assert (plan.n_rows, plan.n_nodes) == (16, 100)
    with pytest.raises(ValueError, match="17 tokens"):
        _plan([_example(0, list(range(100)))], positions=parse_positions("last:17"))


@pytest.mark.parametrize(("positions", "longest"), [("all", 50), ("last:5", 5), ("last:7", 7)])
def test_longest_example_is_that_with_most_stored_positions(positions: str, longest: int) -> None:
    examples = [replace(_example(0, [1] * 50), decision=2), replace(_example(1, [1] * 9), decision=8)]
    survey = Survey(parse_positions(positions))
    for unit in _plan(examples, positions=parse_positions(positions), unit_rows=64).units:
        for one in unit.examples:
            survey.add(one.example)
    assert survey.longest == longest


def test_tokens_that_are_not_stored_stay_in_the_table_without_a_row() -> None:
    examples = [replace(_example(0, [1, 2, 3]), decision=1), replace(_example(1, [4, 5]), decision=1)]
    (unit,) = _plan(examples, positions=parse_positions("decision")).units
    table = tokens_table(unit, lambda ids: [str(token) for token in ids])
    assert table["token_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["to_decision"].to_pylist() == [-1, 0, 1, -1, 0]
    assert table["row"].to_pylist() == [None, 0, None, None, 1]


@pytest.mark.parametrize(("rows", "whole"), [(0, 0), (1, 256), (256, 256), (257, 512)])
def test_rows_are_rounded_up_to_whole_chunks(rows: int, whole: int) -> None:
    assert whole_chunks(rows) == whole


@given(st.integers(1, 10**8), st.integers(1, 5_000), st.integers(1, 1 << 20), st.integers(1, 4_000))
def test_unit_of_few_stored_positions_is_bounded_in_nodes(
    n_rows: int, longest: int, bytes_per_row: int, nodes_per_row: int
) -> None:
    dense = choose_unit_rows(n_rows, longest, bytes_per_row, n_nodes=n_rows)
    rows = choose_unit_rows(n_rows, longest, bytes_per_row, n_nodes=n_rows * nodes_per_row)
    assert rows % 256 == 0
    assert rows >= max(longest, 1_024)
    assert rows <= dense
    assert rows == dense or (rows - 255) * nodes_per_row <= MAX_UNIT_NODES or rows <= max(1_024, longest + 255)


def test_unit_of_decision_positions_is_about_a_million_nodes() -> None:
    assert choose_unit_rows(10**6, 1, 100, n_nodes=10**6) == 62_720
    assert choose_unit_rows(10**6, 1, 100, n_nodes=10**8) == 10_496
    assert choose_unit_rows(10**6, 1, 100, n_nodes=10**10) == 1_024


def test_unit_never_exceeds_its_nodes_however_few_its_rows() -> None:
    generator = np.random.default_rng(0)
    examples = [_example(n, generator.integers(0, 50_000, 100).tolist()) for n in range(50)]
    with patch.object(units_module, "MAX_UNIT_NODES", 1_000):
        plan = _plan(examples, positions=parse_positions("decision"), unit_rows=None)
    assert [len(unit.examples) for unit in plan.units] == [10] * 5
    assert plan.unit_rows == 1_024


def test_small_corpus_of_few_stored_positions_is_shared_out_by_its_rows() -> None:
    generator = np.random.default_rng(0)
    examples = [_example(n, generator.integers(0, 50_000, 60).tolist()) for n in range(600)]
    plan = _plan(examples, positions=parse_positions("last:30"), unit_rows=None)
    assert plan.unit_rows == 1_280  # 18,000 rows / 16, in whole chunks
    assert 14 <= len(plan.units) <= 18


def test_units_of_a_new_store_are_chosen_by_the_rows_there_will_be() -> None:
    """Rows that an earlier example has already are not counted again when the size of units is chosen."""
    chain = [_example(n, list(range(1, 31 + n))) for n in range(40)]
    with patch.object(units_module, "choose_unit_rows", wraps=choose_unit_rows) as chosen:
        plan = _plan(chain, positions=parse_positions("last:5,stride:7"), unit_rows=None)
    assert chosen.call_args.args == (plan.n_rows, 15, 1_000)
    assert chosen.call_args.kwargs == {"n_nodes": plan.n_nodes}
    assert len(plan.units) == 1
