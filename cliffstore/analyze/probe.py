"""The sweep: a probe at every place and layer, one of them chosen on validation alone, and what it is held against.

Layers are shared out through a `Mapper`. Of the chosen probe, and of it alone, the controls are computed: shuffled
labels and the bag of tokens. The test set has no part in fitting or in choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np
from threadpoolctl import threadpool_limits

from cliffstore import __version__
from cliffstore.analyze.cells import Cell, Sweep, fit_layer
from cliffstore.analyze.controls import Bag, bag_of_tokens, shuffled_auroc
from cliffstore.analyze.fits import Fitted
from cliffstore.analyze.inputs import FitInputs
from cliffstore.analyze.labels import Notice
from cliffstore.analyze.large import (
    bytes_needed,
    default_budget,
    fit_layer_over_units,
    read_sample,
    returned_memory,
    sample_of,
)
from cliffstore.analyze.mapping import InTurn, Mapper
from cliffstore.schema import ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import ProbeWeights

SMALL = 20_000_000
"""Numbers in all cells together, below which processes take longer to start than to work."""

Begin = Callable[[int], None]
Advance = Callable[[], None]


def fit_probe(
    catalog: Catalog, inputs: FitInputs, mapper: Mapper, begin: Begin, advance: Advance, notice: Notice,
    test_catalog: Catalog | None = None,
) -> tuple[ProbeDocument, ProbeWeights]:  # fmt: skip
    """Fit a probe for each place and layer and keep the best: AUROC on validation, then log loss, then lower layer.

    Parameters
    ----------
    test_catalog : of the store that has the test set, where it is another one
    """
    sweep = Sweep.of(inputs)
    width = _width(catalog, inputs)
    budget = inputs.settings.memory_budget or default_budget()
    cells: list[Cell] = []
    begin(len(inputs.layers))
    for of_layer in _layers(sweep, inputs, mapper, width, budget, notice):
        cells += of_layer
        advance()
    best = max(cells, key=lambda one: (one.metrics.auroc, -one.metrics.log_loss, -one.metrics.layer))
    place = next(n for n, one in enumerate(inputs.samples) if one.place.name == best.metrics.positions)
    shuffled = _shuffled(sweep, best, place, sample_of(inputs.samples[place], width, budget))
    samples, test = inputs.samples[place], inputs.test[place]
    folds = inputs.deal.of(samples.groups_N)
    with returned_memory():
        bag = bag_of_tokens(
            catalog, samples, folds, test, test_catalog or catalog, inputs.settings.class_weight, notice
        )
    return describe(catalog, inputs, best, cells, shuffled, bag), best.weights


def size_of(catalog: Catalog, inputs: FitInputs) -> int:
    """Return how many numbers all cells together are fitted on."""
    return sum(len(one.rows_N) for one in inputs.samples) * len(inputs.layers) * _width(catalog, inputs)


def _width(catalog: Catalog, inputs: FitInputs) -> int:
    _, spec = catalog.reader.find_array(inputs.source.site, inputs.layers[0], inputs.source.alias)
    return prod(spec.row_shape)


def _layers(
    sweep: Sweep, inputs: FitInputs, mapper: Mapper, width: int, budget: int, notice: Notice
) -> Iterator[list[Cell]]:
    """Yield the cells of each layer: in memory, several at once or one after the other, or over units."""
    needed, at_once = bytes_needed(sweep, width), min(mapper.n_workers, len(inputs.layers))
    if inputs.settings.out_of_core or needed > budget:
        for layer in inputs.layers:
            yield fit_layer_over_units(sweep, layer, mapper, width, budget, notice)
        return
    if needed * at_once > budget:
        notice(f"layers are fitted one after the other: {at_once} at once need more than the memory budget")
        mapper = InTurn()
    yield from mapper.map(fit_layer, [(sweep, layer) for layer in inputs.layers])


def _shuffled(sweep: Sweep, cell: Cell, place: int, some: np.ndarray) -> float | None:
    samples = sweep.samples[place].chosen(some)
    h_ND = read_sample(sweep.source, cell.metrics.layer, samples.rows_N)
    fitted = Fitted(cell.weights, cell.metrics.c, cell.metrics.shrinkage)
    folds = sweep.deal.of(samples.groups_N)
    with threadpool_limits(1):
        return shuffled_auroc(h_ND, samples.y_N, samples.groups_N, folds, sweep.rule, fitted, sweep.seed)


def describe(
    catalog: Catalog, inputs: FitInputs, best: Cell, cells: list[Cell], shuffled: float | None, bag: Bag
) -> ProbeDocument:
    """Return the document of a probe that was fitted."""
    settings, metrics, weights = inputs.settings, best.metrics, best.weights
    capture, _ = catalog.reader.find_array(settings.site, metrics.layer, inputs.source.alias)
    return ProbeDocument(
        name=settings.name,
        kind=settings.kind,
        alias=inputs.source.alias,
        capture=capture.capture,
        model=capture.model,
        dtype=capture.dtype,
        site=settings.site,
        layer=metrics.layer,
        positions=metrics.positions,
        label=settings.label,
        positive=inputs.positive,
        where=settings.where,
        test_where=settings.test_where,
        test_store=settings.test_store,
        class_weight=settings.class_weight,
        seed=settings.seed,
        c=metrics.c,
        shrinkage=metrics.shrinkage,
        n_train=metrics.n_train,
        n_validation=metrics.n_validation,
        n_test=metrics.n_test,
        shuffled_auroc=shuffled,
        bag_auroc=bag.auroc,
        bag_test_auroc=bag.test_auroc,
        cells=[cell.metrics for cell in cells],
        interventions=capture.interventions,
        digest=weights.digest,
        inputs=inputs.digest,
        file_digest=weights.file_digest,
        cliffstore_version=__version__,
    )
