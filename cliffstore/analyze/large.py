"""Cells whose vectors do not fit into the memory budget: chosen on a sample, fitted over all, measured in pieces.

C or the shrinkage is chosen, and the cross-validation and shuffled figures are found, on samples of the prompts with
the lowest digests, as many as fit; whole prompts, so they have the folds that they have in memory. The fit itself is
over all training samples, to the same optimum (`out_of_core`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.analyze.cells import Cell, Sweep, cell_metrics, judged, reader_of
from cliffstore.analyze.fits import LDA, LOGISTIC, FitRule, fit
from cliffstore.analyze.inputs import VectorSource
from cliffstore.analyze.labels import Notice
from cliffstore.analyze.mapping import Mapper
from cliffstore.analyze.out_of_core import fit_out_of_core
from cliffstore.analyze.samples import LabelledRows, Rows
from cliffstore.analyze.split import VALIDATION, both_classes
from cliffstore.analyze.streams import StoredArray, scores, stored_array, vectors
from cliffstore.errors import ProbeError

_BYTES_A_NUMBER = 28
"""Of memory for each number of the vectors in a fit: as read, in float64, standardised, and on their way."""
_SHARE_OF_FREE = 0.5


def default_budget() -> int:
    """Return half of the memory that is free, in bytes."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(free * _SHARE_OF_FREE)


def bytes_needed(sweep: Sweep, width: int) -> int:
    """Return the memory that a layer of a sweep takes, about."""
    n_rows = sum(len(one.rows_N) for one in (*sweep.samples, *sweep.test) if one is not None)
    return n_rows * width * _BYTES_A_NUMBER


def fit_layer_over_units(
    sweep: Sweep, layer: int, mapper: Mapper, width: int, budget: int, notice: Notice
) -> list[Cell]:
    """Fit and measure the probes of one layer, one for each place, within a memory budget in bytes."""
    return [_fit_cell(sweep, place, layer, mapper, width, budget, notice) for place in range(len(sweep.samples))]


def sample_of(samples: LabelledRows, width: int, budget: int) -> npt.NDArray[np.int64]:
    """Return indices of the samples that fit into the budget: those of the prompts with the lowest digests."""
    most = max(budget // (width * _BYTES_A_NUMBER), 1)
    order = np.argsort(samples.groups_N, kind="stable")
    if len(order) <= most:
        return np.arange(len(order))
    first_left_out = samples.groups_N[order[most]]
    return np.sort(order[: np.searchsorted(samples.groups_N[order], first_left_out)])


def _fit_cell(sweep: Sweep, place: int, layer: int, mapper: Mapper, width: int, budget: int, notice: Notice) -> Cell:
    samples, test = sweep.samples[place], sweep.test[place]
    fold_N = sweep.deal.of(samples.groups_N)
    train = fold_N != VALIDATION
    some = sample_of(samples, width, budget)
    some = some[train[some]]
    if not both_classes(samples.y_N[some]):
        raise ProbeError(
            f"{len(some)} samples at {samples.place.name} are the prompts that a memory budget of {budget:,} bytes has "
            "room for, and they lack a class: raise --memory-budget"
        )
    with returned_memory():
        h_MD = read_sample(sweep.source, layer, samples.rows_N[some])
        found = fit(h_MD, samples.y_N[some], fold_N[some], sweep.rule)
        del h_MD
    if len(some) < train.sum():
        notice(f"{_found(sweep.rule)} of layer {layer} is found on {len(some):,} of {int(train.sum()):,} samples")
    rule = replace(sweep.rule, c=found.c, shrinkage=found.shrinkage)
    rows_N = samples.rows_N[train]
    source = _array(sweep.source, layer, rows_N)
    weights = fit_out_of_core(source, rows_N, samples.y_N[train], fold_N[train], rule, mapper, notice)
    held_out = samples.chosen(~train)
    scores_N = scores(_array(sweep.source, layer, held_out.rows_N), held_out.rows_N, weights, mapper)
    figures = judged(sweep, held_out.y_N, held_out.groups_N, scores_N)
    tested = None
    if test is not None and sweep.test_source is not None:
        test_N = scores(_array(sweep.test_source, layer, test.rows_N), test.rows_N, weights, mapper)
        tested = judged(sweep, test.y_N, test.groups_N, test_N)
    fitted = replace(found, weights=weights)
    return Cell(cell_metrics(samples.place.name, layer, fitted, int(train.sum()), figures, tested), weights)


@contextmanager
def returned_memory() -> Iterator[None]:
    """Have what Arrow reads meanwhile, and all that was freed, returned to the system, not kept for later use.

    Reading the labels of millions of examples takes more memory than a fit out of core does.
    """
    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.system_memory_pool().release_unused()
        pa.set_memory_pool(pool)


def read_sample(source: VectorSource, layer: int, rows_N: Rows) -> npt.NDArray[np.float32]:
    """Return vectors [N, D] of rows, with no more memory than they take."""
    return vectors(_array(source, layer, rows_N), rows_N)


def _array(source: VectorSource, layer: int, rows_N: Rows) -> StoredArray:
    return stored_array(reader_of(source), source.site, layer, source.alias, rows_N)


def _found(rule: FitRule) -> str:
    """Return what a sample is good for, where the fit itself is over all."""
    if rule.kind == LOGISTIC and rule.c is None:
        return "C"
    return "the shrinkage" if rule.kind == LDA and rule.shrinkage is None else "the cross-validation figure"
