"""Direct attribution over a store: what every head adds to a probe's score, from stored z or from one pass a unit.

Units are worked through one after the other, in this process; of each, shares of the wanted positions are kept while
its examples are added to the means, so memory does not grow with the corpus. From stored z nothing is computed but one
einsum a layer; the model is loaded for its output projections alone. From the model, passes are those of extraction
over the prefix tree, they keep the wanted positions only, and end where the probe reads.

An interrupted trace is begun again: nothing of it is kept.

Legend: E examples of a unit, P distances from the decision, R tokens that are wanted, L layers, H heads, F figures of
one position: L·H shares, the score, what the biases of attention add.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from cliffstore import __version__
from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.attribution import ProbeReading, layers_read, read_heads
from cliffstore.analyze.example_means import ExampleMeans, Means
from cliffstore.errors import ConfigError, ExtractionError, StoreError
from cliffstore.extract.job import WorkerSpec
from cliffstore.extract.passes import Pass
from cliffstore.extract.runner import PassRunner
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.model.heads import head_outputs, read_norm
from cliffstore.model.loader import load_model
from cliffstore.model.sites import arrays_of, locate
from cliffstore.records import FINAL_NORM, RESID_POST, Z
from cliffstore.run import executor, heads_results
from cliffstore.run.heads_prompts import Chosen, ExampleTokens, choose_examples, read_units
from cliffstore.run.origins import Origins, source_of_probe
from cliffstore.run.progress import Piece, Reporter
from cliffstore.schema import ArrayIdentity, PassSettings, ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import ProbeWeights, read_probe
from cliffstore.store.reader import StoreReader

if TYPE_CHECKING:
    import torch

    from cliffstore.model.identity import ModelSource

Source = Literal["z", "model"]
Floats = npt.NDArray[np.float64]
MOST_RESAMPLED = 250_000_000
"""Resamples times figures that are held at once: 2 GB twice."""


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
    heads_results.check_free(reader.objects, settings.name, replace=settings.replace)
    probe, weights = read_probe(reader.objects, settings.probe)
    layers = list(layers_read(probe.site, probe.layer))
    distances = settings.distances
    chosen = choose_examples(catalog, settings.where, settings.group_by)
    n_figures = len(layers) * probe.model.n_heads + 2
    _check_size(settings, n_figures * len(distances) * len(chosen.groups))
    source = settings.source or ("z" if _has_z(reader, probe, layers) else "model")
    found = source_of_probe(probe, origins, reporter)
    reporter.stage(f"heads: {settings.probe} reads {probe.site}/{probe.layer}, from {_SAID[source]}")
    begun = time.monotonic()
    tracer: _FromZ | _FromModel
    if source == "z":
        tracer = _FromZ(reader, probe, weights, found, layers, distances)
    else:
        tracer = _FromModel(probe, weights, found, layers, distances, origins, reader, reporter)
    means = [
        ExampleMeans(len(distances) * n_figures, resamples=settings.resamples, level=settings.level, seed=settings.seed)
        for _ in chosen.groups
    ]
    counted = _add_units(reader, chosen, tracer, means, reporter)
    reading = tracer.reading
    for name in reading.frozen:
        reporter.notice(f"{name} is frozen at each token's own scale: shares say nothing of how heads change it")
    results = [one.finish() for one in means]
    rows = [
        row
        for group, one in zip(chosen.groups, results, strict=True)
        for row in _rows(one, settings, group, layers, probe.model.n_heads, distances)
    ]
    if not rows:
        raise StoreError(f"no example has a position at distances {settings.positions} to trace: choose others")
    score, shares, biases = _summary(results, distances, n_figures)
    heads_results.write_heads(
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


def _check_size(settings: TraceSettings, n_figures: int) -> None:
    if not 0 < settings.level < 1:
        raise ConfigError(f"level {settings.level}: say a share between 0 and 1, such as 0.95")
    if max(settings.resamples, 1) * n_figures > MOST_RESAMPLED:
        raise ConfigError(
            f"{n_figures:,} figures with {settings.resamples:,} resamples are more than {MOST_RESAMPLED:,} numbers to "
            "hold: choose fewer --positions or --resamples"
        )


def _add_units(
    reader: StoreReader, chosen: Chosen, tracer: _FromZ | _FromModel, means: Sequence[ExampleMeans], reporter: Reporter
) -> int:
    """Add the examples of every unit to the means of their groups; return how many had something to add."""
    counted = without = 0
    reporter.begin("heads", len(chosen.examples_E))
    for examples in read_units(reader, chosen):
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


def _summary(results: Sequence[Means], distances: Distances, n_figures: int) -> tuple[float, float, float]:
    """Return means over all examples at the last distance that any has: score, all heads' shares, biases."""
    for at in reversed(range(len(distances))):
        place = slice(at * n_figures, (at + 1) * n_figures)
        held = [(one.n_X[place][0], one.mean_X[place]) for one in results if one.n_X[place][0]]
        if held:
            mean_F = np.average([mean for _, mean in held], axis=0, weights=[n for n, _ in held])
            return float(mean_F[-2]), float(mean_F[:-2].sum()), float(mean_F[-1])
    return float("nan"), float("nan"), float("nan")


def _has_z(reader: StoreReader, probe: ProbeDocument, layers: Sequence[int]) -> bool:
    """Return whether the store has z of all layers, and what a final norm's scale is made from."""
    try:
        for layer in layers:
            reader.find_array(Z, layer, probe.alias)
        reader.find_array(*_read_site(probe), probe.alias)
    except StoreError:
        return False
    return True


def _read_site(probe: ProbeDocument) -> tuple[str, int]:
    """Return where a score's vector is read, before the final norm where there is one: it gives the norm's scale."""
    return (RESID_POST if probe.site == FINAL_NORM else probe.site), probe.layer


def _place(examples: Sequence[ExampleTokens], distances: Distances) -> list[npt.NDArray[np.int64]]:
    """Return for each example the position at each distance, [P], -1 where it has none."""
    found = []
    for one in examples:
        at_P = one.decision + np.arange(distances.first, distances.last + 1)
        found.append(np.where((at_P >= 0) & (at_P < len(one.token_ids_T)), at_P, -1))
    return found


@dataclass(slots=True)
class _Figures:
    """Figures of R tokens, filled layer by layer."""

    reading: ProbeReading
    weights: ProbeWeights
    n_heads: int
    values_RF: Floats

    def take_z(self, layer: int, rows_N: npt.NDArray[np.int64], z_NHW: npt.NDArray[np.float32]) -> None:
        share_NH, bias_N = self.reading.layers[layer].shares(z_NHW)
        at = list(self.reading.layers).index(layer) * self.n_heads
        self.values_RF[rows_N, at : at + self.n_heads] = share_NH
        self.values_RF[rows_N, -1] += bias_N

    def take_stream(self, rows_N: npt.NDArray[np.int64], h_ND: npt.NDArray[np.float32]) -> None:
        """Score what the probe reads; behind a final norm, multiply all shares, which are there, by its scale."""
        norm = self.reading.final_norm
        if norm is not None:
            scale_N = self.reading.scale(h_ND)
            centred_ND = h_ND - h_ND.mean(axis=1, keepdims=True) if norm.centred else h_ND
            h_ND = (centred_ND * scale_N[:, None] * norm.gain_D + norm.shift_D).astype(np.float32)
            self.values_RF[rows_N, :-2] *= scale_N[:, None]
            self.values_RF[rows_N, -1] *= scale_N
        self.values_RF[rows_N, -2] = self.weights.scores(h_ND)


class _FromZ:
    """Reads shares from stored z; the model gives its output projections and is let go."""

    lacking = "extracted z at these positions"

    def __init__(
        self,
        reader: StoreReader,
        probe: ProbeDocument,
        weights: ProbeWeights,
        source: ModelSource,
        layers: Sequence[int],
        distances: Distances,
    ) -> None:
        self._reader, self._probe, self._weights, self._distances = reader, probe, weights, distances
        self._captures = {reader.find_array(Z, layer, probe.alias)[0].capture for layer in layers}
        self._captures.add(reader.find_array(*_read_site(probe), probe.alias)[0].capture)
        model = load_model(source, probe.dtype, "cpu")
        sites = locate(model, source.identity.n_layers)
        outputs = head_outputs(model, sites, layers, source.identity.n_heads)
        norm = None
        if probe.site == FINAL_NORM and sites.final_norm is not None:
            norm = read_norm(sites.final_norm, source.identity.d_model)
        self.reading = read_heads(outputs, weights.w_D, probe.site, norm)

    def figures(self, examples: Sequence[ExampleTokens]) -> Floats:
        """Return [E, P, F], NaN where an example has no stored position."""
        rows_EP = np.array(
            [
                np.where(at_P >= 0, one.rows_T[at_P], -1)
                for one, at_P in zip(examples, _place(examples, self._distances), strict=True)
            ]
        )
        rows_R = np.unique(rows_EP[rows_EP >= 0])
        held_R = np.ones(len(rows_R), dtype=bool)
        for capture in self._captures:
            held_R &= self._reader.extracted(capture, rows_R)
        rows_R = rows_R[held_R]
        n_heads = self._probe.model.n_heads
        figures = _Figures(
            self.reading, self._weights, n_heads, np.zeros((len(rows_R), len(self.reading.layers) * n_heads + 2))
        )
        every_R = np.arange(len(rows_R))
        if len(rows_R):
            for layer in self.reading.layers:
                figures.take_z(layer, every_R, self._reader.vectors(Z, layer, rows_R, self._probe.alias))
            site, layer = _read_site(self._probe)
            figures.take_stream(every_R, self._reader.vectors(site, layer, rows_R, self._probe.alias))
        return _spread(figures.values_RF, rows_R, rows_EP)


def _spread(values_RF: Floats, rows_R: npt.NDArray[np.int64], rows_EP: npt.NDArray[np.int64]) -> Floats:
    """Return the figures of each example's positions, NaN where there are none."""
    padded_RF = np.vstack([values_RF, np.full((1, values_RF.shape[1]), np.nan)])
    at_EP = np.minimum(np.searchsorted(rows_R, rows_EP), max(len(rows_R) - 1, 0))
    is_there_EP = (rows_EP >= 0) & (rows_R[at_EP] == rows_EP) if len(rows_R) else np.zeros(rows_EP.shape, dtype=bool)
    return padded_RF[np.where(is_there_EP, at_EP, len(rows_R))]


class _FromModel:
    """Runs the passes of a unit, and reads shares as z is computed."""

    lacking = "such positions"

    def __init__(
        self,
        probe: ProbeDocument,
        weights: ProbeWeights,
        source: ModelSource,
        layers: Sequence[int],
        distances: Distances,
        origins: Origins,
        reader: StoreReader,
        reporter: Reporter,
    ) -> None:
        import torch

        self._probe, self._weights, self._distances, self._reporter = probe, weights, distances, reporter
        site, layer = _read_site(probe)
        arrays = [*arrays_of(source.identity, [Z], layers), *arrays_of(source.identity, [site], [layer])]
        torch.set_num_threads(executor.available_cpus())
        self._runner = PassRunner(WorkerSpec(source, tuple(_ordered(arrays)), probe.dtype, origins.device), "heads")
        capture = self._runner.capture
        sites = locate(capture.model, capture.n_blocks)
        with capture.as_loaded():
            outputs = head_outputs(capture.model, sites, layers, source.identity.n_heads)
        norm = None
        if probe.site == FINAL_NORM and sites.final_norm is not None:
            norm = read_norm(sites.final_norm, source.identity.d_model)
        self.reading = read_heads(outputs, weights.w_D, probe.site, norm)
        self._passes = passes_of(reader, probe)
        self._runner.adopt(self._passes)
        for notice in self._runner.drain_notices():
            reporter.notice(notice)

    def figures(self, examples: Sequence[ExampleTokens]) -> Floats:
        """Return [E, P, F], NaN where an example has no such position."""
        whole = [
            UnitExample(one.example, one.token_ids_T, np.arange(len(one.token_ids_T), dtype=np.int64))
            for one in examples
        ]
        paths = build_tree(whole).paths  # one node for positions with equal prefixes
        places = _place(examples, self._distances)
        rows_EP = np.array([np.where(at_P >= 0, path_T[at_P], -1) for path_T, at_P in zip(paths, places, strict=True)])
        rows_R = np.unique(rows_EP[rows_EP >= 0])
        wanted = []
        for one, path_T, at_P in zip(examples, paths, places, strict=True):
            there = at_P[at_P >= 0]
            if len(there):
                length = int(there.max()) + 1
                rows_T = np.full(length, -1, dtype=np.int64)
                rows_T[there] = np.searchsorted(rows_R, path_T[there])
                wanted.append(UnitExample(one.example, one.token_ids_T[:length], rows_T))
        n_figures = len(self.reading.layers) * self._probe.model.n_heads + 2
        figures = _Figures(self.reading, self._weights, self._probe.model.n_heads, np.zeros((len(rows_R), n_figures)))
        if wanted:
            failed = self._runner.run(wanted, self._passes, _Sink(figures))
            for notice in self._runner.drain_notices():
                self._reporter.notice(notice)
            if failed is not None:
                raise ExtractionError(f"heads cannot be traced: {failed}")
        return _spread(figures.values_RF, rows_R, rows_EP)


def passes_of(reader: StoreReader, probe: ProbeDocument) -> PassSettings:
    """Return how passes were made for the vectors that a probe was fitted on; a usual way where they are elsewhere."""
    held = next((one.passes for one in reader.captures() if one.capture == probe.capture), None)
    return held or PassSettings(kind="tree", tokens=512, products="native")


def _ordered(arrays: Sequence[ArrayIdentity]) -> list[ArrayIdentity]:
    return list({(one.site, one.layer): one for one in arrays}.values())


class _Sink:
    """Takes z and what the probe reads, pass by pass: z of all layers comes before what a probe reads of the last."""

    def __init__(self, figures: _Figures) -> None:
        self._figures = figures
        self._rows_N = np.empty(0, dtype=np.int64)
        self._nonfinite: str | None = None

    def begin(self, one: Pass) -> None:
        self._rows_N = one.rows_N
        self._figures.values_RF[self._rows_N] = 0.0

    def take(self, name: str, vectors_ND: torch.Tensor) -> None:
        site, _, layer = name.partition("/")
        vectors = vectors_ND.float().cpu().numpy()
        if not np.isfinite(vectors).all():
            self._nonfinite = name
        if site == Z:
            self._figures.take_z(int(layer), self._rows_N, vectors)
        else:
            self._figures.take_stream(self._rows_N, vectors)

    def check(self) -> None:
        if self._nonfinite is not None:
            raise ExtractionError(f"NaN or Inf in {self._nonfinite}: heads cannot be traced")
