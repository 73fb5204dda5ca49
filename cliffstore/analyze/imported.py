"""Directions that were found elsewhere, kept as probes: as they are, or scaled so that their score is a logit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod

import numpy as np

from cliffstore import __version__
from cliffstore.analyze.cells import Cell, Sweep, Vectors, cell_metrics, judged, score_rows
from cliffstore.analyze.controls import bag_of_tokens
from cliffstore.analyze.fits import IMPORTED, Fitted, platt
from cliffstore.analyze.inputs import FitInputs
from cliffstore.analyze.labels import Notice
from cliffstore.analyze.places import parse_places
from cliffstore.analyze.probe import describe
from cliffstore.analyze.split import VALIDATION
from cliffstore.errors import ProbeError
from cliffstore.schema import ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader


@dataclass(frozen=True, slots=True)
class Direction:
    """w float32 [D] and the offset b, None where it has none; for one site and layer of one model."""

    name: str
    w_D: Vectors
    b: float | None
    site: str
    layer: int
    alias: str | None
    positions: str


def check_direction(reader: StoreReader, direction: Direction) -> None:
    """Find what is wrong with a direction.

    Raises
    ------
    ProbeError
        It has another width than the site, is zero, or has NaN or Inf.
    StoreError
        The site or layer is not captured.
    """
    _, spec = reader.find_array(direction.site, direction.layer, direction.alias)
    width = prod(spec.row_shape)
    if direction.w_D.shape != (width,):
        raise ProbeError(
            f"the direction has shape {list(direction.w_D.shape)}, vectors of {direction.site} layer "
            f"{direction.layer} have {width} numbers"
        )
    if not np.isfinite(direction.w_D).all() or not np.isfinite(direction.b or 0.0):
        raise ProbeError("the direction has NaN or Inf in it: a probe needs finite numbers")
    if not direction.w_D.any():
        raise ProbeError("the direction is zero: it would give every vector the same score")


def as_given(reader: StoreReader, direction: Direction, notice: Notice) -> tuple[ProbeDocument, ProbeWeights]:
    """Return the probe that a direction is as it stands; nothing is measured. Errors as for `check_direction`."""
    check_direction(reader, direction)
    places = parse_places(direction.positions)
    if len(places) > 1:
        raise ProbeError(f"a direction is of one position, not of {direction.positions}: choose one with --positions")
    if direction.b is None:
        notice("the direction has no offset: its score is w·h with b = 0, no logit; calibrate it on a label, or say b")
    weights = ProbeWeights(direction.w_D, direction.b or 0.0)
    capture, _ = reader.find_array(direction.site, direction.layer, direction.alias)
    inputs = f"{IMPORTED} {capture.capture} {direction.site}/{direction.layer} {places[0].name} {weights.digest}"
    document = ProbeDocument(
        name=direction.name,
        kind="imported",
        alias=capture.alias,
        capture=capture.capture,
        model=capture.model,
        dtype=capture.dtype,
        site=direction.site,
        layer=direction.layer,
        positions=places[0].name,
        label=None,
        positive=None,
        where=None,
        test_where=None,
        seed=0,
        c=None,
        n_train=0,
        n_validation=0,
        n_test=0,
        shuffled_auroc=None,
        cells=[],
        interventions=capture.interventions,
        digest=weights.digest,
        inputs=hashlib.sha256(inputs.encode()).hexdigest(),
        file_digest=weights.file_digest,
        cliffstore_version=__version__,
    )
    return document, weights


def calibrated(
    catalog: Catalog, direction: Direction, inputs: FitInputs, notice: Notice, test_catalog: Catalog | None = None
) -> tuple[ProbeDocument, ProbeWeights]:
    """Return the probe whose logit along a direction fits the labels of the training part best, and its figures.

    `test_catalog` as for `fit_probe`. Errors as for `check_direction`.
    """
    check_direction(catalog.reader, direction)
    if len(inputs.samples) > 1:
        raise ProbeError("a direction is calibrated at one position: choose one with --positions")
    sweep, samples, test = Sweep.of(inputs), inputs.samples[0], inputs.test[0]
    folds = inputs.deal.of(samples.groups_N)
    train, validation = folds != VALIDATION, folds == VALIDATION
    raw = ProbeWeights(direction.w_D, 0.0)
    scores_N = score_rows(sweep.source, direction.layer, samples.rows_N, raw).astype(np.float64)
    a, b = platt(scores_N[train], samples.y_N[train], sweep.rule.class_weight)
    if a < 0:
        notice("the direction points away from the positive class: its sign is turned")
    weights = ProbeWeights((a * direction.w_D).astype(np.float32), b)
    held_out = samples.chosen(validation)
    found = judged(sweep, held_out.y_N, held_out.groups_N, a * scores_N[validation] + b)
    tested = None
    if test is not None and inputs.test_source is not None:
        unseen_N = score_rows(inputs.test_source, direction.layer, test.rows_N, weights)
        tested = judged(sweep, test.y_N, test.groups_N, unseen_N)
    metrics = cell_metrics(samples.place.name, direction.layer, Fitted(weights), int(train.sum()), found, tested)
    bag = bag_of_tokens(catalog, samples, folds, test, test_catalog or catalog, sweep.rule.class_weight, notice)
    cell = Cell(metrics, weights)
    return describe(catalog, inputs, cell, [cell], None, bag).model_copy(update={"kind": IMPORTED}), weights
