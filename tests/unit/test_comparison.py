"""Rank correlation as Spearman defined it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cliffstore.ranks import mean_ranks, spearman

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=40)


@given(PAIRS)
def test_as_scipy_says(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    found = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_ties_share_their_mean_rank() -> None:
    assert mean_ranks(np.array([5.0, 1.0, 5.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_too_few() -> None:
    assert spearman(np.array([1.0]), np.array([1.0])) is None
    assert spearman(np.zeros(0), np.zeros(0)) is None
