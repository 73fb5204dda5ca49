"""A cell is one probe: one place at one layer. Layers are shared out, each with all its places, so it is read once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from cliffstore.analyze.fits import FitRule, Fitted, fit
from cliffstore.analyze.inputs import FitInputs, VectorSource
from cliffstore.analyze.metrics import Figures, judge
from cliffstore.analyze.samples import LabelledRows, Rows
from cliffstore.analyze.split import VALIDATION, Deal, Groups, Labels
from cliffstore.errors import ProbeError
from cliffstore.schema import CellMetrics
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

Vectors = npt.NDArray[np.float32]
SCORED_ROWS = 1 << 16
"""Rows that are read at once to be scored."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is the same for all layers; pickles."""

    source: VectorSource
    rule: FitRule
    seed: int
    samples: tuple[LabelledRows, ...]
    deal: Deal
    test: tuple[LabelledRows | None, ...]
    test_source: VectorSource | None

    @classmethod
    def of(cls, inputs: FitInputs) -> Sweep:
        """Return what the cells of a fit share."""
        settings = inputs.settings
        return cls(
            inputs.source,
            FitRule(settings.kind, settings.c, settings.shrinkage, settings.class_weight),
            settings.seed,
            inputs.samples,
            inputs.deal,
            inputs.test,
            inputs.test_source,
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """A probe and its figures."""

    metrics: CellMetrics
    weights: ProbeWeights


def fit_layer(task: tuple[Sweep, int]) -> list[Cell]:
    """Fit the probes of one layer, one for each place, in memory. A function for a `Mapper`.

    One thread: the products are too small for several, which wait for each other longer than they compute.
    """
    sweep, layer = task
    with threadpool_limits(1):
        h_ND = read_layer(sweep.source, layer, sweep.samples)
        test_ND = read_layer(sweep.test_source, layer, sweep.test) if sweep.test_source else [None] * len(h_ND)
        return [
            fit_cell(sweep, place, layer, vectors_ND, unseen_ND)
            for place, (vectors_ND, unseen_ND) in enumerate(zip(h_ND, test_ND, strict=True))
        ]


def fit_cell(sweep: Sweep, place: int, layer: int, h_ND: Vectors, test_ND: Vectors | None) -> Cell:
    """Fit and measure the probe of one place and layer on vectors of its samples [N, D].

    Raises
    ------
    ProbeError
        A vector has NaN or Inf.
    """
    samples, test = sweep.samples[place], sweep.test[place]
    for vectors_ND in (h_ND, test_ND):
        if vectors_ND is not None and not np.isfinite(vectors_ND).all():
            n = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
            raise ProbeError(
                f"{n} of {len(vectors_ND)} vectors of {sweep.source.site} layer {layer}, position "
                f"{samples.place.name}, have NaN or Inf: leave their examples out with --where"
            )
    fold_N = sweep.deal.of(samples.groups_N)
    train, validation = fold_N != VALIDATION, fold_N == VALIDATION
    fitted = fit(h_ND[train], samples.y_N[train], fold_N[train], sweep.rule)
    held_out = samples.chosen(validation)
    scores_N = fitted.weights.scores(h_ND[validation])
    found = judged(sweep, held_out.y_N, held_out.groups_N, scores_N)
    tested = None
    if test is not None and test_ND is not None:
        tested = judged(sweep, test.y_N, test.groups_N, fitted.weights.scores(test_ND))
    return Cell(cell_metrics(samples.place.name, layer, fitted, int(train.sum()), found, tested), fitted.weights)


def judged(sweep: Sweep, y_N: Labels, groups_N: Groups, scores_N: Vectors) -> Figures:
    """Return the figures of scores of samples that were not fitted on."""
    return judge(scores_N.astype(np.float64), y_N, groups_N, sweep.rule.class_weight, sweep.seed)


def cell_metrics(
    positions: str, layer: int, fitted: Fitted, n_train: int, found: Figures, tested: Figures | None
) -> CellMetrics:
    """Return what a document says of a cell."""
    return CellMetrics(
        positions=positions,
        layer=layer,
        c=fitted.c,
        shrinkage=fitted.shrinkage,
        cv_auroc=fitted.cv_auroc,
        cv_auroc_sd=fitted.cv_auroc_sd,
        n_train=n_train,
        n_validation=found.n,
        **_named(found, ""),
        n_test=tested.n if tested else 0,
        **(_named(tested, "test_") if tested else {}),
    )


def _named(figures: Figures, prefix: str) -> dict[str, float]:
    names = ("auroc", "auroc_low", "auroc_high", "accuracy", "recall_at_1_fpr", "calibration_error", "log_loss")
    return {f"{prefix}{name}": getattr(figures, name) for name in names}


def read_layer(source: VectorSource, layer: int, samples: tuple[LabelledRows | None, ...]) -> list[Vectors]:
    """Return the vectors of the samples of each place, [N, D] each; every row is read once."""
    rows = [one.rows_N if one is not None else np.zeros(0, dtype=np.int64) for one in samples]
    distinct = np.unique(np.concatenate(rows))
    vectors_RD = read_vectors(source, layer, distinct)
    return [vectors_RD[np.searchsorted(distinct, one)] for one in rows]


def read_vectors(source: VectorSource, layer: int, rows_N: Rows) -> Vectors:
    """Return vectors [N, D] of rows; per-head vectors are flattened."""
    return reader_of(source).vectors(source.site, layer, rows_N, source.alias).reshape(len(rows_N), -1)


def score_rows(source: VectorSource, layer: int, rows_N: Rows, weights: ProbeWeights) -> Vectors:
    """Return the scores of rows, float32 [N], some rows at a time."""
    parts = [
        weights.scores(read_vectors(source, layer, rows_N[first : first + SCORED_ROWS]))
        for first in range(0, len(rows_N), SCORED_ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


_OPENED: dict[tuple[str, str], StoreReader] = {}
_MOST_OPENED = 4


def reader_of(source: VectorSource) -> StoreReader:
    """Open a store once in each process and fit. What is extracted is listed then: a fit has all its rows before."""
    key = (source.url, source.session)
    if key not in _OPENED:
        while len(_OPENED) >= _MOST_OPENED:
            _OPENED.pop(next(iter(_OPENED)))
        _OPENED[key] = StoreReader(source.url, source.storage_options)
    return _OPENED[key]
