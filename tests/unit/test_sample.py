"""Which units a quick look takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import ConfigError
from cliffstore.store.checks.sample import parse_sample

UNITS = st.sets(st.integers(0, 10_000), max_size=60)


@given(UNITS, st.integers(1, 80), st.integers(0, 99))
def test_number_of_units(units: set[int], count: int, seed: int) -> None:
    chosen = parse_sample(str(count), seed).choose(units)
    assert chosen <= units
    assert len(chosen) == min(count, len(units))


@given(UNITS, st.floats(0.01, 100), st.integers(0, 99))
def test_share_of_units_is_at_least_one(units: set[int], share: float, seed: int) -> None:
    chosen = parse_sample(f"{share:.2f}%", seed).choose(units)
    assert chosen <= units
    assert len(chosen) >= min(1, len(units))
    assert abs(len(chosen) - len(units) * share / 100) <= 1


@given(UNITS, st.integers(0, 99))
def test_same_seed_same_units_in_whatever_order(units: set[int], seed: int) -> None:
    ordered = sorted(units)
    assert parse_sample("5", seed).choose(ordered) == parse_sample("5", seed).choose(reversed(ordered))


def test_seeds_differ_and_one_is_drawn() -> None:
    assert len({frozenset(parse_sample("5", seed).choose(range(1_000))) for seed in range(20)}) == 20
    assert len({parse_sample("5").seed for _ in range(5)}) > 1
    assert parse_sample("100%", 0).choose(range(7)) == set(range(7))


@pytest.mark.parametrize("text", ["", "0", "0%", "100.1%", "2.5", "-3", "5 %", "many", "1e3"])
def test_what_is_no_sample(text: str) -> None:
    with pytest.raises(ConfigError, match="--sample"):
        parse_sample(text)
