"""Direct attribution over a store: what every head adds to a probe's score, from stored z or from one pass a unit.

Units are worked through one after the other, in this process; of each, shares of the wanted positions are kept while
its examples are added to the means, so memory does not grow with the corpus.

An interrupted trace is begun again: nothing of it is kept.

Legend: E examples of a unit, P distances from the decision, R tokens that are wanted, L layers, H heads, F figures of
one position: L·H shares, the score, what the biases of attention add.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cliffstore import __version__
from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.attribution import layers_read
from cliffstore.analyze.example_means import ExampleMeans, Means
from cliffstore.config.values import check_level
from cliffstore.errors import ConfigError, StoreError
from cliffstore.run.heads import results
from cliffstore.run.heads.prompts import (
    Chosen,
    check_lengths,
    check_size,
    check_unchanged,
    choose_examples,
    read_units,
)
from cliffstore.run.heads.shares import ModelShares, ShareSource, StoredShares, has_z
from cliffstore.run.origins import Origins, source_of_probe
from cliffstore.run.progress import Piece, Reporter
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe
from cliffstore.store.reader import StoreReader

Source = Literal["z", "model"]


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What to trace. See `Store.trace_heads`."""

    probe: str
    name: str
    where: str | None = None
    group_by: str | None = None
    positions: str = "decision"
    source: Source | None = None
    resamples: int = 1_000
    level: float = 0.95
    seed: int = 0
    replace: bool = False

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.resamples < 0:
            raise ConfigError("resamples must not be negative; 0 gives no intervals")

    @property
    def distances(self) -> Distances:
        return Distances(0, 0) if self.positions == "decision" else Distances.parse(self.positions)


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What was traced.

    Attributes
    ----------
    source : stored z, or the model
    heads : how many were traced; those of layers above the probe add nothing and are not among them
    frozen : norms that are frozen at each token's own scale
    score, shares, biases : means at the last distance: of the score, the sum of all heads, and what the biases of
        attention add. The rest is that of embedding, MLPs and the probe's own b
    """

    name: str
    probe: str
    source: Source
    examples: int
    layers: tuple[int, ...]
    heads: int
    frozen: tuple[str, ...]
    score: float
    shares: float
    biases: float
    seconds: float


def trace_heads(catalog: Catalog, settings: TraceSettings, origins: Origins, reporter: Reporter) -> TraceReport:
    """Trace every head that can add to a probe's score. See `Store.trace_heads`."""
    reader = catalog.reader
    results.check_free(reader.objects, settings.name, replace=settings.replace)
    probe, weights = read_probe(reader.objects, settings.probe)
    check_unchanged(probe)
    layers = list(layers_read(probe.site, probe.layer))
    distances = settings.distances
    chosen = choose_examples(catalog, settings.where, settings.group_by)
    n_figures = len(layers) * probe.model.n_heads + 2
    check_size(n_figures * len(distances) * len(chosen.groups), settings.resamples)
    source = settings.source or ("z" if has_z(reader, probe, layers) else "model")
    found = source_of_probe(probe, origins, reporter)
    reporter.stage(f"heads: {settings.probe} reads {probe.site}/{probe.layer}, from {_SAID[source]}")
    begun = time.monotonic()
    tracer: ShareSource
    if source == "z":
        tracer = StoredShares(reader, probe, weights, found, layers, distances)
    else:
        tracer = ModelShares(probe, weights, found, layers, distances, origins, reader, reporter)
    check_lengths(catalog, chosen.examples_E.tolist(), tracer.whole_below)
    means = [
        ExampleMeans(len(distances) * n_figures, resamples=settings.resamples, level=settings.level, seed=settings.seed)
        for _ in chosen.groups
    ]
    counted = _add_units(reader, chosen, tracer, means, reporter)
    reading = tracer.reading
    for name in reading.frozen:
        reporter.notice(f"{name} is frozen at each token's own scale: shares say nothing of how heads change it")
    finished = [one.finish() for one in means]
    rows = [
        row
        for group, one in zip(chosen.groups, finished, strict=True)
        for row in _rows(one, settings, group, layers, probe.model.n_heads, distances)
    ]
    if not rows:
        raise StoreError(f"no example has a position at distances {settings.positions} to trace: choose others")
    score, shares, biases = _summary(finished, distances, n_figures)
    results.write_heads(
        reader.objects,
        rows,
        {
            "name": settings.name,
            "kind": "direct",
            "probe": probe.name,
            "probe_digest": probe.digest,
            "capture": probe.capture,
            "site": probe.site,
            "layer": probe.layer,
            "source": source,
            "where": settings.where,
            "group_by": settings.group_by,
            "positions": settings.positions,
            "frozen": list(reading.frozen),
            "resamples": settings.resamples,
            "level": settings.level,
            "seed": settings.seed,
            "examples": counted,
            "score": score,
            "cliffstore_version": __version__,
        },
    )
    return TraceReport(
        name=settings.name,
        probe=probe.name,
        source=source,
        examples=counted,
        layers=tuple(layers),
        heads=len(layers) * probe.model.n_heads,
        frozen=reading.frozen,
        score=score,
        shares=shares,
        biases=biases,
        seconds=round(time.monotonic() - begun, 3),
    )


_SAID = {"z": "stored z, with no forward pass", "model": "passes of the model"}


def _add_units(
    reader: StoreReader, chosen: Chosen, tracer: ShareSource, means: Sequence[ExampleMeans], reporter: Reporter
) -> int:
    """Add the examples of every unit to the means of their groups; return how many had something to add."""
    counted = without = 0
    reporter.begin("heads", len(chosen.examples_E))
    for _, examples in read_units(reader, chosen):
        values_EPF = tracer.figures(examples)
        ordinals_E = np.array([one.example for one in examples], dtype=np.int64)
        there_E = ~np.isnan(values_EPF).all(axis=(1, 2))
        counted, without = counted + int(there_E.sum()), without + int((~there_E).sum())
        group_E = chosen.of(ordinals_E)
        for group in np.unique(group_E[there_E]):
            mine_E = there_E & (group_E == group)
            means[group].add(ordinals_E[mine_E], values_EPF[mine_E].reshape(int(mine_E.sum()), -1))
        for one in examples:
            reporter.advance(Piece(tokens=len(one.token_ids_T), noun="examples"))
    reporter.end()
    if without:
        reporter.notice(f"{without:,} of {counted + without:,} examples have no {tracer.lacking} and are left out")
    return counted


def _rows(
    means: Means, settings: TraceSettings, group: str | None, layers: Sequence[int], n_heads: int, distances: Distances
) -> list[dict[str, object]]:
    n_figures = len(layers) * n_heads + 2
    rows: list[dict[str, object]] = []
    for at, distance in enumerate(distances.numbers):
        for number in range(n_figures - 2):
            figure = at * n_figures + number
            if not means.n_X[figure]:
                break
            layer, head = layers[number // n_heads], number % n_heads
            rows.append(
                {
                    "probe": settings.probe,
                    "kind": "direct",
                    "layer": layer,
                    "head": head,
                    "heads": f"{layer}:{head}",
                    "to_decision": distance,
                    "group": group,
                    "n": int(means.n_X[figure]),
                    "mean": float(means.mean_X[figure]),
                    "low": _or_none(means.low_X[figure]),
                    "high": _or_none(means.high_X[figure]),
                }
            )
    return rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _summary(finished: Sequence[Means], distances: Distances, n_figures: int) -> tuple[float, float, float]:
    """Return means over all examples at the last distance that any has: score, all heads' shares, biases."""
    for at in reversed(range(len(distances))):
        place = slice(at * n_figures, (at + 1) * n_figures)
        held = [(one.n_X[place][0], one.mean_X[place]) for one in finished if one.n_X[place][0]]
        if held:
            mean_F = np.average([mean for _, mean in held], axis=0, weights=[n for n, _ in held])
            return float(mean_F[-2]), float(mean_F[:-2].sum()), float(mean_F[-1])
    return float("nan"), float("nan"), float("nan")
