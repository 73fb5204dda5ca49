"""The three kinds of probe over a store whose vectors are read in pieces: what `fits.fit` finds in memory.

`logistic` takes some five passes (`second_order`), `lda` one, for its moments, `mean_difference` two: class means of
each fold, and the scores of each sample along the direction that was found without its fold, on which it is scaled.
"""

from __future__ import annotations

import numpy as np

from cliffstore.analyze.fits import LDA, MEAN_DIFFERENCE, FitRule, Folds, platt
from cliffstore.analyze.labels import Notice
from cliffstore.analyze.mapping import Mapper
from cliffstore.analyze.moments import difference_from_moments, lda_from_moments, merge, stream_moments
from cliffstore.analyze.second_order import fit_logistic
from cliffstore.analyze.split import Labels, both_classes
from cliffstore.analyze.streams import Rows, StoredArray, scores
from cliffstore.store.probes import ProbeWeights


def fit_out_of_core(
    source: StoredArray, rows_N: Rows, y_N: Labels, fold_N: Folds, rule: FitRule, mapper: Mapper, notice: Notice
) -> ProbeWeights:
    """Fit a probe on rows that are read piece by piece.

    Parameters
    ----------
    rule : with C or the shrinkage chosen

    Raises
    ------
    ProbeError
        One class only; a vector holds NaN or Inf; a covariance is singular.
    """
    if rule.kind == MEAN_DIFFERENCE:
        return _fit_difference(source, rows_N, y_N, fold_N, rule, mapper)
    if rule.kind == LDA:
        assert rule.shrinkage is not None
        classes = stream_moments(source, rows_N, y_N, 2, mapper, scatter=True)
        return lda_from_moments(classes, rule.shrinkage, rule.class_weight)
    assert rule.c is not None
    weights, report = fit_logistic(source, rows_N, y_N, rule.c, rule.class_weight, mapper)
    notice(
        f"layer {source.spec.layer} was fitted out of core: {report.passes:.1f} passes over {report.n_rows:,} samples, "
        f"{report.error:.0e} of the weights from the optimum"
    )
    return weights


def _fit_difference(
    source: StoredArray, rows_N: Rows, y_N: Labels, fold_N: Folds, rule: FitRule, mapper: Mapper
) -> ProbeWeights:
    folds, index_N = np.unique(fold_N, return_inverse=True)
    parts = stream_moments(source, rows_N, 2 * index_N + y_N, 2 * len(folds), mapper, scatter=False)
    by_class = [parts[0::2], parts[1::2]]
    whole = difference_from_moments([merge(of_class) for of_class in by_class])
    known_N = np.ones(len(y_N), dtype=bool)
    without = []
    for number in range(len(folds)):
        rest = [[one for other, one in enumerate(of_class) if other != number] for of_class in by_class]
        known_N[index_N == number] = is_known = len(folds) > 1 and both_classes(y_N[index_N != number])
        without.append(difference_from_moments([merge(of_class) for of_class in rest]) if is_known else whole)
    if not both_classes(y_N[known_N]):  # too few for folds
        known_N[:] = True
        without = [whole] * len(folds)
    scores_N = scores(source, rows_N, without, mapper, index_N).astype(np.float64)
    a, b = platt(scores_N[known_N], y_N[known_N], rule.class_weight)
    return ProbeWeights((a * whole.w_D.astype(np.float64)).astype(np.float32), float(b + a * whole.b))
