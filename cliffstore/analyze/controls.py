"""What a probe is held against: labels that were shuffled, and the words alone.

Shuffled labels find a split that leaks. The bag of tokens finds a label that can be told from the prompt's words: a
logistic regression on how often each token occurs up to the place, on the same training and validation examples. A
probe that is no better than it may have found the topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from cliffstore.analyze.fits import FitRule, Fitted, Folds, fit
from cliffstore.analyze.labels import Notice, Ordinals
from cliffstore.analyze.metrics import auroc, class_weights, log_loss
from cliffstore.analyze.places import Place
from cliffstore.analyze.samples import LabelledRows
from cliffstore.analyze.split import VALIDATION, Groups, Labels, both_classes
from cliffstore.store.catalog import Catalog

SHUFFLES = 10
MOST_IN_BAG = 50_000
"""Examples whose tokens are counted; of more, those with the lowest digests of their prompts."""
_BAG_GRID = (0.01, 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Bag:
    """AUROC of the bag of tokens; None where one class only is left to judge it."""

    auroc: float | None
    test_auroc: float | None


def shuffled_auroc(
    h_ND: npt.NDArray[np.float32], y_N: Labels, groups_N: Groups, fold_N: Folds, rule: FitRule, fitted: Fitted,
    seed: int,
) -> float | None:  # fmt: skip
    """Return the mean validation AUROC of probes fitted on shuffled labels: .5 unless the split leaks.

    None where no shuffle has both classes on both sides.

    Labels are shuffled among prompts, so samples of one example still have one label. C or the shrinkage is that of
    the probe itself.
    """
    rule = replace(rule, c=fitted.c, shrinkage=fitted.shrinkage)
    groups_G, code_N = np.unique(groups_N, return_inverse=True)
    positive_G = np.bincount(code_N, weights=y_N) * 2 > np.bincount(code_N)
    train, validation = fold_N != VALIDATION, fold_N == VALIDATION
    found = []
    for shuffle in range(SHUFFLES):
        drawn_G = np.random.default_rng([seed, shuffle]).permutation(len(groups_G))
        shuffled_N = positive_G[drawn_G][code_N].astype(np.int64)
        if both_classes(shuffled_N[train]) and both_classes(shuffled_N[validation]):
            weights = fit(h_ND[train], shuffled_N[train], None, rule).weights
            found.append(auroc(weights.scores(h_ND[validation]).astype(np.float64), shuffled_N[validation]))
    return float(np.mean(found)) if found else None


def bag_of_tokens(
    catalog: Catalog, samples: LabelledRows, fold_N: Folds, test: LabelledRows | None, test_catalog: Catalog,
    class_weight: str, notice: Notice,
) -> Bag:  # fmt: skip
    """Return how well the counts of an example's tokens, up to the place, tell its label."""
    examples, fold_E = _examples(samples, fold_N, "fitted on", notice)
    counts_EV = _counts(catalog, samples.place, examples.examples_N)
    train, validation = fold_E != VALIDATION, fold_E == VALIDATION
    if not (both_classes(examples.y_N[train]) and both_classes(examples.y_N[validation])):
        return Bag(None, None)
    known_V = np.unique(counts_EV[train].indices)
    with threadpool_limits(1):  # see cells.fit_layer
        model = _fit_bag(counts_EV[train][:, known_V], examples.y_N[train], fold_E[train], class_weight)
    found = auroc(model.decision_function(counts_EV[validation][:, known_V]), examples.y_N[validation])
    if test is None:
        return Bag(found, None)
    unseen, _ = _examples(test, np.zeros(len(test.rows_N), dtype=np.int8), "tested on", notice)
    unseen_EV = _counts(test_catalog, samples.place, unseen.examples_N, counts_EV.shape[1])
    tested = auroc(model.decision_function(unseen_EV[:, known_V]), unseen.y_N) if both_classes(unseen.y_N) else None
    return Bag(found, tested)


def _examples(samples: LabelledRows, fold_N: Folds, used: str, notice: Notice) -> tuple[LabelledRows, Folds]:
    """Return one sample of each example, of not too many examples; prompts stay whole."""
    _, first_N = np.unique(samples.examples_N, return_index=True)
    if len(first_N) > MOST_IN_BAG:
        notice(f"the bag of tokens is {used} {MOST_IN_BAG:,} of {len(first_N):,} examples")
        lowest = np.argsort(samples.groups_N[first_N], kind="stable")[:MOST_IN_BAG]
        first_N = np.sort(first_N[lowest])
    return samples.chosen(first_N), fold_N[first_N]


def _counts(catalog: Catalog, place: Place, examples_E: Ordinals, width: int = 0) -> csr_matrix:
    """Return log(1 + how often each token occurs in each example up to the place), [E, vocabulary].

    Parameters
    ----------
    width : of the vocabulary; tokens beyond are not counted. 0 for as many as occur
    """
    bounds = [int(examples_E[0]), int(examples_E[-1])]
    last_E = None if place.segment is None else _last_positions(catalog, place.segment, examples_E)
    upto = f" AND to_decision <= {place.offset}" if last_E is None else ""
    rows, columns = [], []
    for batch in catalog.batches(
        f"SELECT example, position, token_id FROM tokens WHERE example BETWEEN $1 AND $2{upto}",
        parameters=bounds,
    ):
        example_B, position_B, token_B = (batch.column(name).to_numpy() for name in batch.schema.names)
        index_B = _index(examples_E, example_B)
        known = (index_B >= 0) & ((width == 0) | (token_B < width))
        if last_E is not None:
            known &= position_B <= last_E[index_B]
        rows.append(index_B[known].astype(np.int32))
        columns.append(token_B[known].astype(np.int32))
    row_K, column_K = (np.concatenate(one) if one else np.zeros(0, dtype=np.int32) for one in (rows, columns))
    width = width or int(column_K.max(initial=0)) + 1
    counts_EV = csr_matrix((np.ones(len(row_K)), (row_K, column_K)), (len(examples_E), width))
    counts_EV.sum_duplicates()
    counts_EV.data = np.log1p(counts_EV.data)
    return counts_EV


def _last_positions(catalog: Catalog, segment: str, examples_E: Ordinals) -> npt.NDArray[np.int64]:
    """Return the position of the last token of a segment in each example."""
    last_E = np.full(len(examples_E), -1, dtype=np.int64)
    for batch in catalog.batches("SELECT example, position FROM tokens WHERE segment = $1", parameters=[segment]):
        example_B, position_B = (batch.column(name).to_numpy() for name in batch.schema.names)
        index_B = _index(examples_E, example_B)
        np.maximum.at(last_E, index_B[index_B >= 0], position_B[index_B >= 0])
    return last_E


def _index(examples_E: Ordinals, example_B: Ordinals) -> npt.NDArray[np.int64]:
    """Return the index of each example, -1 where it is not among those."""
    index_B = np.minimum(np.searchsorted(examples_E, example_B), len(examples_E) - 1)
    return np.where(examples_E[index_B] == example_B, index_B, -1)


def _fit_bag(
    counts_EV: csr_matrix, y_E: Labels, fold_E: Folds, class_weight: str, grid: Sequence[float] = _BAG_GRID
) -> LogisticRegression:
    """Fit logistic regression, C chosen as for a probe."""
    losses: dict[float, list[float]] = {c: [] for c in grid}
    for fold in np.unique(fold_E):
        out = fold_E == fold
        if both_classes(y_E[~out]):
            weight_E = class_weights(y_E[out], class_weight)
            for c in grid:
                scores = _model(c, class_weight).fit(counts_EV[~out], y_E[~out]).decision_function(counts_EV[out])
                losses[c].append(log_loss(scores, y_E[out], weight_E))
    best = min(grid, key=lambda c: float(np.mean(losses[c])) if losses[c] else 0.0)
    return _model(best, class_weight).fit(counts_EV, y_E)


def _model(c: float, class_weight: str) -> LogisticRegression:
    return LogisticRegression(
        C=c, class_weight="balanced" if class_weight == "balanced" else None, max_iter=1_000, tol=1e-3
    )
