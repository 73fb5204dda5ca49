"""Ranks of values, and how far two rankings agree."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.float64]


def spearman(x_N: Numbers, y_N: Numbers) -> float | None:
    """Return the correlation of ranks, ties at their mean rank; None for fewer than two values or equal ones."""
    if len(x_N) < 2:
        return None
    x_N, y_N = mean_ranks(x_N), mean_ranks(y_N)
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = float(np.sqrt((x_N * x_N).sum() * (y_N * y_N).sum()))
    return float(np.clip((x_N * y_N).sum() / scale, -1, 1)) if scale else None


def mean_ranks(values_N: Numbers) -> Numbers:
    """Return the rank of each value from 1 on; equal values have the mean of their ranks."""
    _, inverse_N, count_U = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_U = np.cumsum(count_U) - (count_U - 1) / 2
    return np.asarray(mean_U[inverse_N], dtype=np.float64)
