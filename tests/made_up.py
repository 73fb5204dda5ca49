"""Probes that nobody fitted, for stores whose examples have no labels."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from cliffstore.schema import CaptureDocument, CellMetrics, ProbeDocument
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights, write_probe
from cliffstore.store.reader import StoreReader


def made_up_metrics(layer: int) -> CellMetrics:
    """Return the figures of a probe that makes no mistake."""
    return CellMetrics(
        positions="decision", layer=layer, n_train=1, n_validation=1, auroc=1.0, auroc_low=1.0, auroc_high=1.0,
        accuracy=1.0, recall_at_1_fpr=1.0, calibration_error=0.0, log_loss=0.0,
    )  # fmt: skip


def make_probe(
    capture: CaptureDocument, name: str, site: str = "resid_post", layer: int = 0, seed: int = 0, **changes: object
) -> tuple[ProbeDocument, ProbeWeights]:
    """Return a probe with random weights, as if it had been fitted on an array of the capture."""
    width = prod(next(one.shape for one in capture.arrays if (one.site, one.layer) == (site, layer)))
    weights = ProbeWeights(np.random.default_rng(seed).normal(size=width).astype(np.float32), 0.25)
    metrics = made_up_metrics(layer)
    document = ProbeDocument(
        name=name, kind="logistic", alias=capture.alias, capture=capture.capture, model=capture.model,
        dtype=capture.dtype, site=site, layer=layer, positions="decision", label="label", positive="1", where=None,
        test_where=None, seed=seed, c=1.0, n_train=1, n_validation=1, n_test=0, shuffled_auroc=0.5, cells=[metrics],
        digest=weights.digest, inputs="", file_digest=weights.file_digest, cliffstore_version="0",
    )  # fmt: skip
    return document.model_copy(update=changes), weights


def add_probe(store: Path, name: str, site: str = "resid_post", layer: int = 0, seed: int = 0) -> str:
    """Write such a probe into the store of its capture; return what `--probe` calls it from another store."""
    (capture,) = StoreReader(str(store)).captures()
    write_probe(ObjectStore(str(store)), *make_probe(capture, name, site, layer, seed), replace=False)
    return f"{store}/probes/{name}"
