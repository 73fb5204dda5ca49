"""Forward passes of a unit: every row once, from the right prefix, within the limit, however often they are halved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from units_of import unit_of, without

from cliffstore.extract.passes import PaddedPasses, Pass, Passes, TreePasses, first_owners, plan_passes
from cliffstore.extract.tree import UnitExample, build_tree

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=20)
KINDS = st.sampled_from(["tree", "padded"])
TOKENS = st.integers(1, 60)
DROPPED = st.sets(st.integers(48, 100))


def as_prefixes(passes: Iterable[Pass]) -> Iterator[tuple[Pass, list[tuple[int, ...]]]]:
    """Read passes as a model does: yield each with the prefix, token by token, that each of its positions sees.

    The path of a tree pass is what the pass before it carried on. Depths must be positions in the prefix.
    """
    path: list[tuple[int, int]] = []  # token and depth
    for one in passes:
        if one.ends_S is None:
            yield (
                one,
                [tuple(line[: position + 1].tolist()) for line in one.input_ids_BT for position in range(len(line))],
            )
            continue
        new = list(zip(one.input_ids_BT[0].tolist(), one.positions_BT[0].tolist(), strict=True))
        assert len(path) == one.n_past == len(one.ends_S) - len(new)
        keys = path + new
        prefixes = []
        for query in range(len(new)):
            seen = [s for s in range(len(path) + query + 1) if query < one.ends_S[s]]
            assert [keys[s][1] for s in seen] == list(range(len(seen)))
            prefixes.append(tuple(keys[s][0] for s in seen))
        yield one, prefixes
        path = [keys[s] for s in one.carry_C] if one.carry_C is not None else []


def prefix_of_rows(unit: Sequence[UnitExample]) -> dict[int, tuple[int, ...]]:
    return {
        row: tuple(one.token_ids[: position + 1].tolist())
        for one in unit
        for position, row in enumerate(one.rows.tolist())
        if row >= 0
    }


def halved(passes: Passes, one: Pass, depth: int) -> Iterator[Pass]:
    """Give one pass in up to 2**depth parts."""
    halves = passes.halve(one) if depth else None
    if halves is None:
        yield one
        return
    for half in halves:
        yield from halved(passes, half, depth - 1)


def assert_rows_come_from_their_prefixes(unit: Sequence[UnitExample], passes: Iterable[Pass]) -> None:
    expected, seen = prefix_of_rows(unit), Counter[int]()
    for one, prefixes in as_prefixes(passes):
        assert len(one.kept_N) == len(one.rows_N) == len(one.examples_N)
        for place, row in zip(one.kept_N.tolist(), one.rows_N.tolist(), strict=True):
            assert prefixes[place] == expected[row]
        seen.update(one.rows_N.tolist())
    assert seen == Counter(dict.fromkeys(expected, 1))


@given(SEQUENCES, DROPPED, KINDS, TOKENS)
def test_each_row_is_kept_once_from_its_prefix(
    sequences: list[list[int]], dropped: set[int], kind: str, tokens: int
) -> None:
    unit = without(unit_of(sequences), dropped)
    for groups in (plan_passes(unit, kind, tokens), plan_passes(unit, kind, tokens, chunk=False)):
        rows = [row for passes in groups for one in passes for row in one.rows_N.tolist()]
        assert sorted(rows) == sorted(prefix_of_rows(unit))
        for passes in groups:
            for one, prefixes in as_prefixes(passes):
                for place, row in zip(one.kept_N.tolist(), one.rows_N.tolist(), strict=True):
                    assert prefixes[place] == prefix_of_rows(unit)[row]


@given(SEQUENCES, TOKENS, st.integers(1, 6), st.data())
def test_halves_do_what_the_whole_does(
    sequences: list[list[int]], tokens: int, depth: int, data: st.DataObject
) -> None:
    unit = unit_of(sequences)
    for passes in (TreePasses(build_tree(unit), tokens), PaddedPasses(first_owners(unit), tokens)):
        ones = list(passes)
        which = data.draw(st.sets(st.integers(0, len(ones) - 1)))
        parts = [list(halved(passes, one, depth if n in which else 0)) for n, one in enumerate(ones)]
        assert_rows_come_from_their_prefixes(unit, [part for some in parts for part in some])


def test_the_smallest_pass_cannot_be_halved() -> None:
    unit = unit_of([[1, 2, 3], [1, 3]])
    for passes, size in ((TreePasses(build_tree(unit), 100), 1), (PaddedPasses(unit, 100), None)):
        for one in halved(passes, next(iter(passes)), 10):
            assert passes.halve(one) is None
            assert len(one.input_ids_BT) == 1
            assert size is None or one.input_ids_BT.size == size


@given(SEQUENCES, TOKENS)
def test_a_tree_computes_each_prefix_once(sequences: list[list[int]], tokens: int) -> None:
    (passes,) = plan_passes(unit_of(sequences), "tree", tokens)
    computed = [prefix for _, prefixes in as_prefixes(passes) for prefix in prefixes]
    assert len(computed) == len(set(computed)) == len({tuple(s[: n + 1]) for s in sequences for n in range(len(s))})


@given(SEQUENCES, TOKENS)
def test_passes_of_a_tree_are_of_like_size_within_the_limit(sequences: list[list[int]], tokens: int) -> None:
    (passes,) = plan_passes(unit_of(sequences), "tree", tokens)
    sizes = [one.input_ids_BT.size for one in passes]
    assert max(sizes) <= tokens
    assert max(sizes) - min(sizes) <= 1


@given(SEQUENCES, TOKENS)
def test_only_the_path_is_carried(sequences: list[list[int]], tokens: int) -> None:
    (passes,) = plan_passes(unit_of(sequences), "tree", tokens)
    ones = list(passes)
    for one, following in pairwise(ones):
        carried = 0 if one.carry_C is None else len(one.carry_C)
        assert carried == following.n_past == int(following.positions_BT[0, 0])
    assert ones[-1].carry_C is None


@given(SEQUENCES, TOKENS)
def test_padding_is_on_the_right_and_counted(sequences: list[list[int]], tokens: int) -> None:
    unit = first_owners(unit_of(sequences))
    tokens_of = {one.example: one.token_ids.tolist() for one in unit}
    for one in PaddedPasses(unit, tokens):
        assert one.input_ids_BT.dtype == one.positions_BT.dtype == one.lengths_B.dtype == np.int64
        assert one.input_ids_BT.shape == one.positions_BT.shape == (len(one.lengths_B), one.lengths_B.max())
        assert one.input_ids_BT.size <= tokens or len(one.lengths_B) == 1
        assert (one.positions_BT == np.arange(one.input_ids_BT.shape[1])).all()
        lines = [ids[:n].tolist() for ids, n in zip(one.input_ids_BT, one.lengths_B, strict=True)]
        assert all(line in tokens_of.values() for line in lines)
        assert not any(ids[n:].any() for ids, n in zip(one.input_ids_BT, one.lengths_B, strict=True))


@given(SEQUENCES, KINDS, TOKENS)
def test_example_without_rows_of_its_own_is_not_run(sequences: list[list[int]], kind: str, tokens: int) -> None:
    unit = unit_of(sequences)
    seen: set[int] = set()
    adding = []
    for one in unit:
        adding += [one.example] if set(one.rows.tolist()) - seen else []
        seen.update(one.rows.tolist())
    run = {int(name) for passes in plan_passes(unit, kind, tokens) for one in passes for name in one.examples_N}
    assert sorted(run) == adding


@given(SEQUENCES, KINDS, TOKENS)
def test_a_row_names_an_example_that_has_it(sequences: list[list[int]], kind: str, tokens: int) -> None:
    unit = unit_of(sequences)
    rows_of = {one.example: set(one.rows.tolist()) for one in unit}
    for passes in plan_passes(unit, kind, tokens):
        for one in passes:
            assert all(row in rows_of[name] for row, name in zip(one.rows_N, one.examples_N.tolist(), strict=True))


@given(SEQUENCES, KINDS, TOKENS)
def test_same_unit_same_passes(sequences: list[list[int]], kind: str, tokens: int) -> None:
    first, second = (
        [one for passes in plan_passes(unit_of(sequences), kind, tokens) for one in passes] for _ in range(2)
    )
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        for name in (
            "input_ids_BT",
            "positions_BT",
            "lengths_B",
            "kept_N",
            "rows_N",
            "examples_N",
            "ends_S",
            "carry_C",
        ):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_equal_prompts_are_run_once() -> None:
    (passes,) = plan_passes(unit_of([[1, 2, 3]] * 50), "padded", 1_000)
    (only,) = passes
    assert only.input_ids_BT.tolist() == [[1, 2, 3]]
    assert only.rows_N.tolist() == [48, 49, 50]


def test_lengths_are_kept_together() -> None:
    """Short examples do not pay for the padding of a long one."""
    (passes,) = plan_passes(unit_of([[1, 1], [2] * 10, [3, 3], [3, 1]]), "padded", 12)
    assert [one.input_ids_BT.shape for one in passes] == [(3, 2), (1, 10)]


def test_what_comes_after_the_last_row_is_not_run() -> None:
    (one,) = unit_of([[1, 2, 3, 4, 5]])
    cut = UnitExample(one.example, one.token_ids, np.where(np.arange(5) < 2, one.rows, -1))
    for passes in plan_passes([cut], "padded", 100):
        assert [one.input_ids_BT.tolist() for one in passes] == [[[1, 2]]]


@pytest.mark.parametrize("chunk", [True, False])
def test_a_long_example_goes_piece_by_piece(chunk: bool) -> None:
    long, short = [1] * 50, [[2, 2], [3, 3]]
    groups = plan_passes(unit_of([long, *short]), "padded", 10, chunk=chunk)
    shapes = [[one.input_ids_BT.shape for one in passes] for passes in groups]
    assert shapes == ([[(2, 2)], [(1, 10)] * 5] if chunk else [[(2, 2), (1, 50)]])


@given(SEQUENCES, KINDS, TOKENS, st.integers(1, 12))
def test_examples_that_must_be_whole_are_alone(sequences: list[list[int]], kind: str, tokens: int, above: int) -> None:
    unit = unit_of(sequences)
    groups = plan_passes(unit, kind, tokens, whole_above=above)
    assert sorted(row for passes in groups for one in passes for row in one.rows_N.tolist()) == sorted(
        prefix_of_rows(unit)
    )
    for passes in groups:
        for one in passes:
            longest = int(one.lengths_B.max()) if one.ends_S is None else int(one.positions_BT.max()) + 1
            assert longest <= above or (one.ends_S is None and len(one.lengths_B) == 1)
