"""Figures of scores: against scikit-learn, against counting by hand, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from cliffstore.analyze.metrics import (
    auroc,
    auroc_interval,
    calibration_error,
    class_weights,
    fold_aurocs,
    judge,
    log_loss,
    recall_at_fpr,
)

SCORED = st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 1)), min_size=2, max_size=60).filter(
    lambda drawn: {y for _, y in drawn} == {0, 1}
)


def _arrays(drawn: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score / 2 for score, _ in drawn]), np.array([y for _, y in drawn])


@settings(max_examples=100, deadline=None)
@given(drawn=SCORED)
def test_auroc_and_log_loss_are_those_of_scikit_learn(drawn: list[tuple[int, int]]) -> None:
    scores_N, y_N = _arrays(drawn)
    assert auroc(scores_N, y_N) == pytest.approx(roc_auc_score(y_N, scores_N), abs=1e-12)
    weight_N = class_weights(y_N, "balanced")
    expected = sklearn_log_loss(y_N, 1 / (1 + np.exp(-scores_N)), sample_weight=weight_N)
    assert log_loss(scores_N, y_N, weight_N) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(drawn=SCORED, highest=st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_recall_is_the_largest_of_all_thresholds(drawn: list[tuple[int, int]], highest: float) -> None:
    scores_N, y_N = _arrays(drawn)
    recalls = [0.0]
    for threshold in np.unique(scores_N):
        said = scores_N >= threshold
        if said[y_N == 0].mean() <= highest:
            recalls.append(float(said[y_N == 1].mean()))
    assert recall_at_fpr(scores_N, y_N, highest) == max(recalls)


@settings(max_examples=30, deadline=None)
@given(drawn=SCORED)
def test_interval_is_that_of_resamples_one_by_one(drawn: list[tuple[int, int]]) -> None:
    """The same draws, each resample built and judged by scikit-learn."""
    scores_N, y_N = _arrays(drawn)
    groups_N = np.arange(len(y_N), dtype=np.uint64) // 2
    n_groups = int(groups_N.max()) + 1
    drawn_BG = np.random.default_rng([3, 0xB007]).integers(n_groups, size=(50, n_groups))
    found = []
    for resample in drawn_BG:
        index = np.concatenate([np.flatnonzero(groups_N == group) for group in resample])
        if len(set(y_N[index].tolist())) == 2:
            found.append(roc_auc_score(y_N[index], scores_N[index]))
    expected = np.percentile(found, [2.5, 97.5]) if found else (0.0, 1.0)
    assert auroc_interval(scores_N, y_N, groups_N, 3, resamples=50) == pytest.approx(tuple(expected), abs=1e-9)


def test_interval_covers_what_a_large_sample_says() -> None:
    generator = np.random.default_rng(0)
    truth, covered = 0.760250, 0  # Phi(1 / sqrt(2))
    for _ in range(100):
        y_N = np.arange(120) % 2
        scores_N = generator.normal(size=120) + y_N
        low, high = auroc_interval(scores_N, y_N, np.arange(120, dtype=np.uint64), 0)
        covered += low <= truth <= high
    assert covered >= 88


def test_samples_of_one_prompt_are_drawn_together() -> None:
    """Eight equal samples a prompt say no more than one: the interval is as wide as of the prompts alone."""
    generator = np.random.default_rng(1)
    y_G = np.arange(80) % 2
    scores_G = generator.normal(size=80) + y_G
    groups_G = np.arange(80, dtype=np.uint64)
    low, high = auroc_interval(scores_G, y_G, groups_G, 0)
    eight = auroc_interval(*(np.repeat(one, 8) for one in (scores_G, y_G, groups_G)), 0)
    assert eight == pytest.approx((low, high), abs=1e-9)
    alone = auroc_interval(np.repeat(scores_G, 8), np.repeat(y_G, 8), np.arange(640, dtype=np.uint64), 0)
    assert alone[1] - alone[0] < 0.6 * (high - low)


def test_calibration_error_is_small_for_what_made_the_labels_and_not_for_twice_that() -> None:
    generator = np.random.default_rng(2)
    logit_N = generator.normal(size=20_000) * 1.5
    y_N = (generator.random(20_000) < 1 / (1 + np.exp(-logit_N))).astype(np.int64)
    ones_N = np.ones(20_000)
    assert calibration_error(logit_N, y_N, ones_N) < 0.015
    assert calibration_error(3 * logit_N, y_N, ones_N) > 0.08
    assert calibration_error(np.array([0.0, 0.0]), np.array([0, 1]), np.ones(2)) == pytest.approx(0.5)


def test_balanced_figures_judge_the_probability_that_a_balanced_fit_gives() -> None:
    """One positive in ten: the logit of equal classes is right under equal weights, and wrong without."""
    generator = np.random.default_rng(3)
    y_N = (np.arange(20_000) % 10 == 0).astype(np.int64)
    x_N = generator.normal(size=20_000) + np.where(y_N == 1, 1.0, -1.0)
    groups_N = np.arange(20_000, dtype=np.uint64)
    balanced, none = (judge(2 * x_N, y_N, groups_N, weight, 0) for weight in ("balanced", "none"))
    assert balanced.calibration_error < 0.03
    assert none.calibration_error > 0.05
    assert (balanced.auroc, balanced.accuracy) == (none.auroc, none.accuracy)


def test_accuracy_is_that_of_the_sign_of_the_score() -> None:
    scores_N, y_N = np.array([-2.0, -0.25, 0.25, 0.25, 3.0]), np.array([0, 1, 1, 1, 1])
    assert judge(scores_N, y_N, np.arange(5, dtype=np.uint64), "none", 0).accuracy == 4 / 5


def test_a_fold_of_one_class_has_no_auroc() -> None:
    fold_N = np.array([0, 0, 1, 1], dtype=np.int8)
    assert fold_aurocs(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 1, 1, 1]), fold_N) == (1.0, 0.0)
    assert fold_aurocs(np.array([0.0, 1.0]), np.array([1, 1]), fold_N[:2]) == (None, None)
