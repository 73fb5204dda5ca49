"""Means over examples with bootstrap intervals, of many figures at once, in memory that does not grow with examples.

Each resample gives each example a weight drawn from a Poisson distribution of mean one (the bootstrap of streams,
Hanley & MacGibbon 2006), which needs no number of examples beforehand. Weights depend on seed and ordinal alone, so
neither the order nor the size of the parts that examples come in matters. Cost: resamples x examples x figures.

Legend: E examples of a part, X figures, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Means:
    """Figures over examples, [X] each; low and high are NaN without resamples, mean where there is no example."""

    n_X: npt.NDArray[np.int64]
    mean_X: Floats
    low_X: Floats
    high_X: Floats


class ExampleMeans:
    """Sums over examples that are added part by part.

    Parameters
    ----------
    n_figures : X
    resamples : B; 0 for no intervals
    level : share of the resampled means that an interval holds
    """

    def __init__(self, n_figures: int, *, resamples: int, level: float, seed: int) -> None:
        self._level, self._seed, self._resamples = level, seed, resamples
        self._n_X, self._sum_X = np.zeros(n_figures, dtype=np.int64), np.zeros(n_figures)
        self._n_BX, self._sum_BX = np.zeros((resamples, n_figures)), np.zeros((resamples, n_figures))

    def add(self, examples_E: npt.NDArray[np.int64], values_EX: Floats) -> None:
        """Add examples by ordinal, each once; NaN where an example has no such figure."""
        there_EX = ~np.isnan(values_EX)
        known_EX = np.where(there_EX, values_EX, 0.0)
        self._n_X += there_EX.sum(axis=0)
        self._sum_X += known_EX.sum(axis=0)
        if self._resamples:
            weights = [
                np.random.default_rng([self._seed, int(one)]).poisson(1.0, self._resamples) for one in examples_E
            ]
            weight_BE = np.array(weights, dtype=np.float64).reshape(-1, self._resamples).T
            self._sum_BX += weight_BE @ known_EX
            self._n_BX += weight_BE @ there_EX

    def finish(self) -> Means:
        """Return the means of what was added."""
        mean_X = np.divide(self._sum_X, self._n_X, out=np.full(len(self._n_X), np.nan), where=self._n_X > 0)
        low_X = high_X = np.full(len(self._n_X), np.nan)
        if self._resamples and (held_X := self._n_X > 0).any():
            means_BX = np.divide(self._sum_BX, self._n_BX, out=np.full_like(self._sum_BX, np.nan), where=self._n_BX > 0)
            tail = (1 - self._level) / 2
            low_X, high_X = low_X.copy(), high_X.copy()
            edges = np.nanquantile(means_BX[:, held_X], [tail, 1 - tail], axis=0)
            low_X[held_X], high_X[held_X] = edges
        return Means(self._n_X, mean_X, low_X, high_X)
