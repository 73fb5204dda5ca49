"""The choice is a function of candidates alone: not of the order they are read in, nor of how they are cut up."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.publish.candidates import draw
from cliffstore.publish.choice import QuotaGate, choose, rank
from cliffstore.publish.criteria import parse_quota

VALUES = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 3.0])
CANDIDATES = st.lists(st.tuples(VALUES, st.sampled_from(["a", "b", "ä", "Z", "z1", "z10", "z2"])), max_size=30)


def table_of(rows: list[tuple[int, str, float]]) -> pa.Table:
    example, name, value = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "example": pa.array(example, pa.int64()),
            "id": pa.array(name, pa.string()),
            "value": pa.array(value, pa.float64()),
        }
    )


@given(CANDIDATES, st.booleans(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_of_reading_does_not_matter(
    found: list[tuple[float, str]], ascending: bool, pieces: int, chance: random.Random
) -> None:
    rows = [(example, name, value) for example, (value, name) in enumerate(found)]
    expected = sorted(rows, key=lambda row: (row[2] if ascending else -row[2], row[1], row[0]))
    shuffled = chance.sample(rows, len(rows))
    parts = [table_of(shuffled[at::pieces]) for at in range(pieces)]
    ranked = rank(pa.concat_tables(parts), ascending=ascending)
    assert ranked["example"].to_pylist() == [row[0] for row in expected]


@given(
    st.lists(st.sampled_from(["x", "y", "z", None]), max_size=40),
    st.integers(1, 40),
    st.lists(st.sampled_from(["s=50%", "s=3", "s:x=2", "s:y=25%", "s:z=0"]), max_size=3),
)
def test_quotas_hold_and_nothing_is_passed_over_without_one(
    values: list[str | None], wanted: int, texts: list[str]
) -> None:
    quotas = [parse_quota(text) for text in texts]
    choice = choose(len(values), wanted, [QuotaGate(one, values, one.most(wanted)) for one in quotas])
    chosen = choice.index_N.tolist()
    taken = Counter(values[index] for index in chosen)
    for quota in quotas:
        counts = [taken[quota.value]] if quota.value is not None else list(taken.values())
        assert max(counts, default=0) <= quota.most(wanted)
    assert chosen == sorted(chosen)
    end = chosen[-1] + 1 if len(chosen) == wanted else len(values)
    passed = [index for index in range(end) if index not in chosen]
    assert sum(choice.left_out.values()) == len(passed)
    for index in passed:  # each was kept out by a quota that was full with better ones
        better = Counter(values[other] for other in chosen if other < index)
        assert any(
            quota.value in (None, values[index]) and better[values[index]] >= quota.most(wanted) for quota in quotas
        )


def test_without_gates_the_best_are_chosen() -> None:
    choice = choose(10, 4, [])
    assert (choice.index_N.tolist(), choice.left_out) == ([0, 1, 2, 3], {})
    assert choose(2, 4, []).index_N.tolist() == [0, 1]


def test_random_order_is_of_seed_and_id_alone() -> None:
    assert draw(0, "a") == draw(0, "a") != draw(1, "a")
    assert draw(0, "a") == 0.08533998760926986
    drawn = np.array([draw(7, f"e{number}") for number in range(4_000)])
    assert abs(drawn.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05
    assert 0 <= drawn.min() < drawn.max() < 1
