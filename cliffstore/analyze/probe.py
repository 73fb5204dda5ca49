"""Linear probes: logistic regression on stored vectors, layer by layer, the layer chosen on validation alone.

Standardisation is folded into w and b, so that score = w·h + b works on a stored vector as it is. Every fit comes
with two controls: AUROC on shuffled labels, and, where asked for, on a second set of examples that took no part in
fitting or in choosing the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from cliffstore import __version__
from cliffstore.analyze.labels import FitInputs
from cliffstore.analyze.split import Split, grouped_split
from cliffstore.schema import LayerMetrics, ProbeDocument
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

SHUFFLES = 10
_MAX_ITERATIONS = 2_000

Begin = Callable[[int], None]
Advance = Callable[[], None]


def fit_probe(
    reader: StoreReader, inputs: FitInputs, begin: Begin, advance: Advance
) -> tuple[ProbeDocument, ProbeWeights]:
    """Fit a probe for each layer and keep the layer with the best validation AUROC (equal AUROC: the lower log loss).

    Raises
    ------
    ProbeError
        Too few examples.
    """
    settings, alias, labels, test = inputs.settings, inputs.alias, inputs.labels, inputs.test
    split = grouped_split(labels.y_N, labels.prompts, settings.seed)
    fits: list[tuple[LayerMetrics, ProbeWeights]] = []
    begin(len(inputs.layers))
    for layer in inputs.layers:
        vectors_ND = reader.vectors(settings.site, layer, labels.rows_N, alias)
        weights = fit_logistic(vectors_ND[split.train], labels.y_N[split.train], settings.c)
        held_out = (vectors_ND[split.validation], labels.y_N[split.validation])
        unseen = (reader.vectors(settings.site, layer, test.rows_N, alias), test.y_N) if test else None
        fits.append((_metrics(layer, weights, held_out, unseen), weights))
        advance()
    best, weights = max(fits, key=lambda fit: (fit[0].auroc, -fit[0].log_loss, -fit[0].layer))
    capture, _ = reader.find_array(settings.site, best.layer, alias)
    vectors_ND = reader.vectors(settings.site, best.layer, labels.rows_N, alias)
    document = ProbeDocument(
        name=settings.name,
        kind="logistic",
        alias=alias,
        capture=capture.capture,
        model=capture.model,
        dtype=capture.dtype,
        site=settings.site,
        layer=best.layer,
        positions="decision",
        label=settings.label,
        positive=inputs.positive,
        where=settings.where,
        test_where=settings.test_where,
        seed=settings.seed,
        c=settings.c,
        n_train=len(split.train),
        n_validation=len(split.validation),
        n_test=len(test.rows_N) if test else 0,
        shuffled_auroc=shuffled_auroc(vectors_ND, labels.y_N, split, settings.c, settings.seed),
        layers=[metrics for metrics, _ in fits],
        digest=weights.digest,
        inputs=inputs.digest,
        file_digest=weights.file_digest,
        cliffstore_version=__version__,
    )
    return document, weights


def fit_logistic(h_ND: npt.NDArray[np.float32], y_N: npt.NDArray[np.int64], c: float) -> ProbeWeights:
    """Fit L2 logistic regression on standardised vectors, both classes weighted equally.

    With z = (h - mean) / std and logit v·z + a, the returned w = v / std and b = a - w·mean give the same logit on h.
    """
    scaler = StandardScaler().fit(h_ND.astype(np.float64))
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    model.fit(scaler.transform(h_ND.astype(np.float64)), y_N)
    w_D = model.coef_[0] / scaler.scale_
    b = float(model.intercept_[0] - w_D @ scaler.mean_)
    return ProbeWeights(w_D.astype(np.float32), b)


def shuffled_auroc(
    h_ND: npt.NDArray[np.float32], y_N: npt.NDArray[np.int64], split: Split, c: float, seed: int
) -> float:
    """Return the mean validation AUROC of probes fitted on shuffled labels: .5 unless the split leaks."""
    found = []
    for shuffle in range(SHUFFLES):
        shuffled_N = np.random.default_rng([seed, shuffle]).permutation(y_N)
        train, validation = shuffled_N[split.train], shuffled_N[split.validation]
        if len(set(train.tolist())) == 2 and len(set(validation.tolist())) == 2:
            scores = fit_logistic(h_ND[split.train], train, c).scores(h_ND[split.validation])
            found.append(float(roc_auc_score(validation, scores)))
    return float(np.mean(found)) if found else 0.5


def _metrics(
    layer: int,
    weights: ProbeWeights,
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    test: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None,
) -> LayerMetrics:
    """Measure a probe on vectors [N, D] and labels [N] that it was not fitted on."""
    scores_N, y_N = weights.scores(validation[0]).astype(np.float64), validation[1]
    tested = (weights.scores(test[0]), test[1]) if test else None
    return LayerMetrics(
        layer=layer,
        auroc=float(roc_auc_score(y_N, scores_N)),
        accuracy=float(np.mean((scores_N > 0) == y_N)),
        log_loss=float(np.mean(np.logaddexp(0, np.where(y_N == 1, -scores_N, scores_N)))),
        test_auroc=float(roc_auc_score(tested[1], tested[0])) if tested else None,
        test_accuracy=float(np.mean((tested[0] > 0) == tested[1])) if tested else None,
    )
