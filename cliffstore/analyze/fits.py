"""The three kinds of probe, each fitted in memory; and how their one free parameter is chosen.

`logistic`: L2 logistic regression on standardised vectors, scikit-learn's objective, 1/2 |v|^2 + C sum_i s_i loss_i.
`mean_difference`: w along mean1 - mean0; scale and offset by a logistic fit (Platt, with his smoothed targets) on the
scores that samples get from directions found without their fold. `lda`: means and pooled within-class covariance,
shrunk towards its diagonal by a share gamma; w, b are the exact logit.

C and gamma are chosen by grouped cross-validation: the lowest mean log loss over held-out samples. AUROC is no judge
here: it is 1 for most C where classes are separable, and says nothing of the scale of the logit. Every kind folds into
score = w·h + b, on a vector as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from cliffstore.analyze.metrics import Floats, class_weights, fold_aurocs, log_loss
from cliffstore.analyze.split import Labels, both_classes
from cliffstore.errors import ProbeError
from cliffstore.store.probes import ProbeWeights

LOGISTIC, MEAN_DIFFERENCE, LDA, IMPORTED = "logistic", "mean_difference", "lda", "imported"
KINDS = (LOGISTIC, MEAN_DIFFERENCE, LDA)

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
SHRINKAGE_GRID = (0.01, 0.03, 0.1, 0.3, 1.0)
_MAX_ITERATIONS = 5_000
_TOLERANCE, _LOOSE = 1e-7, 1e-4
"""Of the gradient: for the fit that is kept, and for those that choose C."""

Folds = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class FitRule:
    """What to fit. `c` and `shrinkage` are None where cross-validation chooses them."""

    kind: str = LOGISTIC
    c: float | None = None
    shrinkage: float | None = None
    class_weight: str = "balanced"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A probe, and how it fared in cross-validation (None where there was none)."""

    weights: ProbeWeights
    c: float | None = None
    shrinkage: float | None = None
    cv_auroc: float | None = None
    cv_auroc_sd: float | None = None


def fit(h_ND: npt.NDArray[np.float32], y_N: Labels, fold_N: Folds | None, rule: FitRule) -> Fitted:
    """Fit a probe on vectors [N, D] and labels 0 or 1.

    Parameters
    ----------
    fold_N : folds of cross-validation, groups whole. With None nothing is chosen or measured: what `rule` leaves open
        is then 1 for C and .1 for the shrinkage, and a mean difference is scaled on its own scores

    Raises
    ------
    ProbeError
        The covariance of an LDA is singular.
    """
    x_ND = h_ND.astype(np.float64)
    if rule.kind == MEAN_DIFFERENCE:
        return _fit_difference(x_ND, y_N, fold_N, rule)
    logistic = rule.kind == LOGISTIC
    path = _logistic_path if logistic else _lda_path
    given = rule.c if logistic else rule.shrinkage
    grid: Sequence[float] = (C_GRID if logistic else SHRINKAGE_GRID) if given is None else (given,)
    mean, sd = None, None
    if fold_N is None:
        chosen = given if given is not None else (1.0 if logistic else 0.1)
    else:
        chosen, scores_N, known_N = _choose(x_ND, y_N, fold_N, grid, path, rule)
        mean, sd = fold_aurocs(scores_N[known_N], y_N[known_N], fold_N[known_N])
    if logistic:
        return Fitted(fit_logistic(x_ND, y_N, chosen, rule.class_weight), chosen, None, mean, sd)
    return Fitted(fit_lda(x_ND, y_N, chosen, rule.class_weight), None, chosen, mean, sd)


def fit_logistic(h_ND: npt.NDArray, y_N: Labels, c: float, class_weight: str = "balanced") -> ProbeWeights:
    """Fit L2 logistic regression on standardised vectors.

    With z = (h - mean) / std and logit v·z + a, the returned w = v / std and b = a - w·mean give the same logit on h.
    """
    x_ND = np.asarray(h_ND, dtype=np.float64)
    mean_D, scale_D = _standard(x_ND)
    ((v_D, a),) = _logistic((x_ND - mean_D) / scale_D, y_N, (c,), class_weight, _TOLERANCE)
    w_D = v_D / scale_D
    return ProbeWeights(w_D.astype(np.float32), float(a - w_D @ mean_D))


def fit_lda(h_ND: npt.NDArray, y_N: Labels, shrinkage: float, class_weight: str = "balanced") -> ProbeWeights:
    """Fit linear discriminant analysis; `balanced` weights classes equally, in their priors and in the covariance."""
    ((w_D, b),) = _lda(np.asarray(h_ND, dtype=np.float64), y_N, (shrinkage,), class_weight)
    return ProbeWeights(w_D.astype(np.float32), b)


def platt(scores_N: Floats, y_N: Labels, class_weight: str) -> tuple[float, float]:
    """Return a, b of the logit a * score + b that fits the labels best.

    Targets are (N1 + 1) / (N1 + 2) and 1 / (N0 + 2), so that the best is finite where scores separate the classes
    (Platt 1999).
    """
    middle, spread = float(scores_N.mean()), float(scores_N.std()) or 1.0
    z_N, weight_N = (scores_N - middle) / spread, class_weights(y_N, class_weight)
    n1, n0 = int(y_N.sum()), int((1 - y_N).sum())
    target_N = np.where(y_N == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

    def loss(ab: Floats) -> tuple[float, Floats]:
        logit_N = ab[0] * z_N + ab[1]
        residual_N = weight_N * (expit(logit_N) - target_N) / len(y_N)
        value = float(np.mean(weight_N * (np.logaddexp(0, logit_N) - target_N * logit_N)))
        return value, np.array([residual_N @ z_N, residual_N.sum()])

    a, b = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return float(a / spread), float(b - a * middle / spread)


Path = Callable[[Floats, Labels, Floats, Sequence[float], str], Iterator[Floats]]
"""From a training part and held-out vectors to the scores of these, for each value of a grid."""


def _choose(
    x_ND: Floats, y_N: Labels, fold_N: Folds, grid: Sequence[float], path: Path, rule: FitRule
) -> tuple[float, Floats, npt.NDArray[np.bool_]]:
    """Return the value of the grid with the lowest mean log loss, the held-out scores that it gave, and for whom."""
    scores_KN = np.zeros((len(grid), len(y_N)))
    known_N = np.zeros(len(y_N), dtype=bool)
    losses = []
    for fold in np.unique(fold_N):
        held_out = fold_N == fold
        if not both_classes(y_N[~held_out]):
            continue
        found = path(x_ND[~held_out], y_N[~held_out], x_ND[held_out], grid, rule.class_weight)
        weight_N = class_weights(y_N[held_out], rule.class_weight)
        fold_losses = []
        for number, scores in enumerate(found):
            scores_KN[number, held_out] = scores
            fold_losses.append(log_loss(scores, y_N[held_out], weight_N))
        known_N |= held_out
        losses.append(fold_losses)
    best = int(np.argmin(np.mean(losses, axis=0))) if losses else len(grid) // 2
    return grid[best], scores_KN[best], known_N


def _logistic_path(
    x_ND: Floats, y_N: Labels, held_out_MD: Floats, grid: Sequence[float], class_weight: str
) -> Iterator[Floats]:
    mean_D, scale_D = _standard(x_ND)
    held_out_MD = (held_out_MD - mean_D) / scale_D
    for v_D, a in _logistic((x_ND - mean_D) / scale_D, y_N, grid, class_weight, _LOOSE):
        yield held_out_MD @ v_D + a


def _logistic(
    z_ND: Floats, y_N: Labels, grid: Sequence[float], class_weight: str, tolerance: float
) -> Iterator[tuple[Floats, float]]:
    """Yield weights and intercept for each C; each fit begins where the one before ended."""
    weight_N = class_weights(y_N, class_weight)
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=tolerance, warm_start=True)
    for c in grid:
        # Checking again what is known takes scikit-learn as long as a small fit.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            model.set_params(C=c).fit(z_ND, y_N, sample_weight=weight_N)
        yield model.coef_[0].copy(), float(model.intercept_[0])


def _lda_path(
    x_ND: Floats, y_N: Labels, held_out_MD: Floats, grid: Sequence[float], class_weight: str
) -> Iterator[Floats]:
    for w_D, b in _lda(x_ND, y_N, grid, class_weight):
        yield held_out_MD @ w_D + b


def _lda(x_ND: Floats, y_N: Labels, grid: Sequence[float], class_weight: str) -> Iterator[tuple[Floats, float]]:
    weight_N = class_weights(y_N, class_weight)
    share_C = np.bincount(y_N, weights=weight_N, minlength=2) / weight_N.sum()
    mean_CD = np.stack([x_ND[y_N == label].mean(axis=0) for label in (0, 1)])
    centred_ND = (x_ND - mean_CD[y_N]) * np.sqrt(weight_N / weight_N.sum())[:, None]
    covariance_DD = centred_ND.T @ centred_ND
    scale_D = np.sqrt(np.diag(covariance_DD))
    scale_D[scale_D == 0] = 1.0  # a dimension that never varies within a class
    correlation_DD = covariance_DD / np.outer(scale_D, scale_D)
    difference_D = (mean_CD[1] - mean_CD[0]) / scale_D
    for shrinkage in grid:
        shrunk_DD = (1 - shrinkage) * correlation_DD
        np.fill_diagonal(shrunk_DD, 1.0)
        try:
            w_D = cho_solve(cho_factor(shrunk_DD, overwrite_a=True), difference_D) / scale_D
        except LinAlgError:
            raise ProbeError(
                f"the covariance of {len(y_N)} samples in {len(scale_D)} dimensions is singular at shrinkage "
                f"{shrinkage:g}: raise --shrinkage, or leave it to cross-validation"
            ) from None
        yield w_D, float(np.log(share_C[1] / share_C[0]) - (mean_CD[0] + mean_CD[1]) @ w_D / 2)


def _fit_difference(x_ND: Floats, y_N: Labels, fold_N: Folds | None, rule: FitRule) -> Fitted:
    w_D, middle_D = _difference(x_ND, y_N)
    scores_N, known_N = (x_ND - middle_D) @ w_D, np.ones(len(y_N), dtype=bool)
    mean, sd = None, None
    if fold_N is not None:
        for fold in np.unique(fold_N):
            held_out = fold_N == fold
            known_N[held_out] = both_classes(y_N[~held_out])
            if known_N[held_out].all():
                # From the middle between the means: a massive dimension would move each fold's scores as a whole.
                w_fold_D, middle_fold_D = _difference(x_ND[~held_out], y_N[~held_out])
                scores_N[held_out] = (x_ND[held_out] - middle_fold_D) @ w_fold_D
        mean, sd = fold_aurocs(scores_N[known_N], y_N[known_N], fold_N[known_N])
    if not both_classes(y_N[known_N]):  # too few for folds
        scores_N, known_N = (x_ND - middle_D) @ w_D, np.ones(len(y_N), dtype=bool)
    a, b = platt(scores_N[known_N], y_N[known_N], rule.class_weight)
    w_D = a * w_D
    return Fitted(ProbeWeights(w_D.astype(np.float32), float(b - middle_D @ w_D)), None, None, mean, sd)


def _difference(x_ND: Floats, y_N: Labels) -> tuple[Floats, Floats]:
    """Return mean1 - mean0, and the middle between them."""
    mean0_D, mean1_D = (x_ND[y_N == label].mean(axis=0) for label in (0, 1))
    return mean1_D - mean0_D, (mean0_D + mean1_D) / 2


def _standard(x_ND: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each dimension; 1 for one that never varies, as scikit-learn has it."""
    mean_D, scale_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    never = scale_D <= 10 * np.finfo(np.float64).eps * np.maximum(np.abs(mean_D), 1e-300)
    return mean_D, np.where(never, 1.0, scale_D)
