"""How good scores are, on samples that a probe was not fitted on.

Scores are logits. AUROC comes with a 95 % interval: percentiles over resamples of whole groups (bootstrap), all
computed at once. Where AUROC is 1 the interval is the point 1: it then says nothing of what larger sets would show.
Log loss and calibration error weight the classes as the fit did, so both judge the same probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import rankdata

from cliffstore.analyze.split import Groups, Labels, both_classes

Floats = npt.NDArray[np.float64]

RESAMPLES = 1_000
_RESAMPLED = 10_000_000
"""Samples times resamples, above which there are fewer resamples, and never fewer than 200."""
_BINS = 10
_HIGHEST_FPR = 0.01
_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What scores are worth.

    Attributes
    ----------
    auroc_low, auroc_high : 95 % interval
    accuracy : of score > 0
    recall_at_1_fpr : the largest recall of a threshold with a false positive rate of at most 1 %; with fewer than
        100 negatives, of one without any false positive
    calibration_error : mean distance of probability and frequency over 10 bins of equal mass (ECE)
    """

    n: int
    auroc: float
    auroc_low: float
    auroc_high: float
    accuracy: float
    recall_at_1_fpr: float
    calibration_error: float
    log_loss: float


def judge(scores_N: Floats, y_N: Labels, groups_N: Groups, class_weight: str, seed: int) -> Figures:
    """Return the figures of scores [N]; both classes must be there."""
    weight_N = class_weights(y_N, class_weight)
    low, high = auroc_interval(scores_N, y_N, groups_N, seed)
    return Figures(
        n=len(y_N),
        auroc=auroc(scores_N, y_N),
        auroc_low=low,
        auroc_high=high,
        accuracy=float(np.mean((scores_N > 0) == y_N)),
        recall_at_1_fpr=recall_at_fpr(scores_N, y_N, _HIGHEST_FPR),
        calibration_error=calibration_error(scores_N, y_N, weight_N),
        log_loss=log_loss(scores_N, y_N, weight_N),
    )


def class_weights(y_N: Labels, class_weight: str) -> Floats:
    """Return the weight of each sample: N / (2 N_class) where `balanced`, else 1."""
    if class_weight != "balanced":
        return np.ones(len(y_N))
    counts = np.bincount(y_N, minlength=2)
    return (len(y_N) / (2 * np.maximum(counts, 1)))[y_N]


def auroc(scores_N: Floats, y_N: Labels) -> float:
    """Return the chance that a positive scores above a negative, ties counting half. Infinite scores are in order."""
    n_positive = int(y_N.sum())
    ranks = rankdata(scores_N)[y_N == 1].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (len(y_N) - n_positive)))


def auroc_interval(
    scores_N: Floats, y_N: Labels, groups_N: Groups, seed: int, resamples: int | None = None
) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of AUROC over resamples of the groups; resamples of one class do not count.

    Parameters
    ----------
    resamples : default 1,000; fewer above 10,000 samples
    """
    n = len(y_N)
    resamples = resamples or int(np.clip(_RESAMPLED // n, 200, RESAMPLES))
    order = np.argsort(scores_N, kind="stable")
    _, code_N = np.unique(groups_N, return_inverse=True)
    n_groups = int(code_N.max()) + 1
    code_N, y_sorted = code_N[order], y_N[order].astype(np.float32)
    ties = np.flatnonzero(np.diff(scores_N[order], prepend=np.nan) != 0)
    generator = np.random.default_rng([seed, 0xB007])
    found = []
    block = max(_BLOCK // max(n, n_groups), 1)
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        drawn = generator.integers(n_groups, size=(size, n_groups)) + np.arange(size)[:, None] * n_groups
        counts_BG = np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups).astype(np.float32)
        weight_BN = counts_BG[:, code_N]
        positive_BT = np.add.reduceat(weight_BN * y_sorted, ties, axis=1, dtype=np.float64)
        negative_BT = np.add.reduceat(weight_BN * (1 - y_sorted), ties, axis=1, dtype=np.float64)
        below_BT = np.cumsum(negative_BT, axis=1) - negative_BT / 2
        pairs_B = positive_BT.sum(axis=1) * negative_BT.sum(axis=1)
        wins_B = (positive_BT * below_BT).sum(axis=1)
        found.append(wins_B[pairs_B > 0] / pairs_B[pairs_B > 0])
    values = np.concatenate(found)
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def recall_at_fpr(scores_N: Floats, y_N: Labels, highest: float) -> float:
    """Return the largest recall of a threshold whose false positive rate is at most `highest`."""
    negatives = np.sort(scores_N[y_N == 0])[::-1]
    allowed = int(np.floor(highest * len(negatives) + 1e-9))
    return float(np.mean(scores_N[y_N == 1] > negatives[allowed]))


def calibration_error(scores_N: Floats, y_N: Labels, weight_N: Floats) -> float:
    """Return the mean, over bins of equal numbers of samples in order of score, of |probability - frequency|."""
    order = np.argsort(scores_N, kind="stable")
    bins = np.array_split(order, min(_BINS, len(order)))
    gaps = [abs(float(np.sum(weight_N[one] * (expit(scores_N[one]) - y_N[one])))) for one in bins]
    return float(sum(gaps) / weight_N.sum())


def log_loss(scores_N: Floats, y_N: Labels, weight_N: Floats) -> float:
    """Return the weighted mean of -log(probability of the label)."""
    losses_N = np.logaddexp(0, np.where(y_N == 1, -scores_N, scores_N))
    return float(np.average(losses_N, weights=weight_N))


def fold_aurocs(scores_N: Floats, y_N: Labels, fold_N: npt.NDArray[np.int8]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation of AUROC over folds with both classes; None where there are none."""
    found = [
        auroc(scores_N[fold_N == fold], y_N[fold_N == fold])
        for fold in np.unique(fold_N)
        if both_classes(y_N[fold_N == fold])
    ]
    return (float(np.mean(found)), float(np.std(found))) if found else (None, None)
