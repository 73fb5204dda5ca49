"""Figures of two conditions on the same examples, and of their difference, with bootstrap intervals. Pure arithmetic.

A figure is a ratio of sums over examples, through a link: a mean has counts of 1; perplexity is exp(sum of -log p over
sum of tokens). Examples are drawn with replacement, the same ones for both conditions (Efron & Tibshirani 1993, chapter
8), so that what examples differ in cancels out of the change. Quantiles of the resampled figures are the interval.

Cost: resamples x examples a figure; the weights are drawn once for all figures.

Legend: E examples, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Link = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of one condition; `value` and its interval are None where no example has it, as without resamples."""

    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Sums:
    """What a figure is made from, float64 [E] each; NaN sums where an example has no such figure."""

    sum_E: Floats
    count_E: Floats

    @classmethod
    def of_values(cls, value_E: Floats) -> Sums:
        """Return what the mean of values is made from."""
        return cls(value_E, np.ones(len(value_E)))

    @property
    def there_E(self) -> npt.NDArray[np.bool_]:
        """Which examples have the figure."""
        return ~np.isnan(self.sum_E) & (self.count_E > 0)


class PairedBootstrap:
    """Resamples of E examples.

    Parameters
    ----------
    resamples : B; 0 for no intervals
    level : share of the resampled figures that an interval holds
    """

    def __init__(self, n_examples: int, *, resamples: int, level: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._tails = (1 - level) / 2, (1 + level) / 2
        shares = np.full(n_examples, 1 / max(n_examples, 1))
        self._weight_BE = (
            generator.multinomial(n_examples, shares, size=resamples).astype(np.float64)
            if n_examples
            else np.zeros((resamples, 0))
        )

    def figure(self, own: Sums, link: Link | None = None) -> Figure:
        """Return a figure over the examples that have it."""
        there_E = own.there_E
        n = int(there_E.sum())
        if not n:
            return Figure(0, None, None, None)
        value, resampled_B = self._both(own, there_E, link)
        return Figure(n, value, *self._interval(resampled_B))

    def change(self, own: Sums, before: Sums, link: Link | None = None) -> Figure:
        """Return a figure less that of another condition, over the examples that have both."""
        there_E = own.there_E & before.there_E
        n = int(there_E.sum())
        if not n:
            return Figure(0, None, None, None)
        value, resampled_B = self._both(own, there_E, link)
        old, old_B = self._both(before, there_E, link)
        return Figure(n, value - old, *self._interval(resampled_B - old_B))

    def _both(self, own: Sums, there_E: npt.NDArray[np.bool_], link: Link | None) -> tuple[float, Floats]:
        """Return the figure, and that of each resample, [B]; NaN where a resample has no example of it."""
        sum_X, count_X = own.sum_E[there_E], own.count_E[there_E]
        weight_BX = self._weight_BE[:, there_E]
        total_B = weight_BX @ count_X
        mean_B = np.divide(weight_BX @ sum_X, total_B, out=np.full(len(total_B), np.nan), where=total_B > 0)
        mean = np.array(sum_X.sum() / count_X.sum())
        if link is not None:
            mean, mean_B = link(mean), link(mean_B)
        return float(mean), mean_B

    def _interval(self, resampled_B: Floats) -> tuple[float | None, float | None]:
        known_B = resampled_B[~np.isnan(resampled_B)]
        if not len(known_B):
            return None, None
        low, high = np.quantile(known_B, self._tails)
        return float(low), float(high)
