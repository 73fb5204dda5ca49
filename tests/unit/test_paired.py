"""Figures of two conditions on the same examples: means, perplexities, changes, and what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from cliffstore.analyze.paired import PairedBootstrap, Sums


def _bootstrap(n: int, resamples: int = 2_000) -> PairedBootstrap:
    return PairedBootstrap(n, resamples=resamples, level=0.95, seed=3)


def test_what_examples_differ_in_cancels_out_of_the_change() -> None:
    generator = np.random.default_rng(0)
    before_E = generator.normal(scale=10, size=60)
    after_E = before_E + 1 + generator.normal(scale=0.1, size=60)
    bootstrap = _bootstrap(60)
    own, change = bootstrap.figure(Sums.of_values(after_E)), bootstrap.change(*map(Sums.of_values, (after_E, before_E)))
    assert own.value == pytest.approx(after_E.mean())
    assert change.value == pytest.approx((after_E - before_E).mean())
    assert own.high - own.low > 3
    assert 0.9 < change.low < change.value < change.high < 1.1
    # against the formula for the standard error of a mean
    assert (change.high - change.low) / 2 == pytest.approx(1.96 * (after_E - before_E).std() / np.sqrt(60), rel=0.15)


def test_perplexity_weighs_tokens_and_not_examples() -> None:
    sums = Sums(np.array([10.0, 2.0, np.nan]), np.array([10.0, 1.0, 0.0]))
    figure = _bootstrap(3).figure(sums, np.exp)
    assert figure.value == pytest.approx(np.exp(12 / 11))
    assert figure.n == 2


def test_changes_are_over_examples_that_have_both() -> None:
    own, before = Sums.of_values(np.array([1.0, 2.0, np.nan, 9.0])), Sums.of_values(np.array([0.0, 0.0, 5.0, np.nan]))
    change = _bootstrap(4).change(own, before)
    assert (change.n, change.value) == (2, 1.5)
    nothing = _bootstrap(2).change(Sums.of_values(np.array([np.nan, 1.0])), Sums.of_values(np.array([1.0, np.nan])))
    assert (nothing.n, nothing.value, nothing.low) == (0, None, None)


def test_without_resamples_there_is_no_interval_and_equal_seeds_give_equal_ones() -> None:
    values = Sums.of_values(np.arange(9.0))
    assert _bootstrap(9, 0).figure(values).low is None
    assert _bootstrap(9).figure(values) == _bootstrap(9).figure(values)
    other = PairedBootstrap(9, resamples=2_000, level=0.95, seed=4).figure(values)
    assert (other.low, other.high) != (_bootstrap(9).figure(values).low, _bootstrap(9).figure(values).high)


def test_a_lower_level_is_a_narrower_interval() -> None:
    values = Sums.of_values(np.random.default_rng(1).normal(size=400))
    half = PairedBootstrap(400, resamples=2_000, level=0.5, seed=3).figure(values)
    assert (half.high - half.low) / 2 == pytest.approx(0.6745 / 20, rel=0.15)
