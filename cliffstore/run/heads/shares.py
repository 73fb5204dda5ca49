"""Where shares of heads come from: stored z, with no forward pass, or passes of the model.

Both give [E, P, F] for the examples of a unit, NaN where an example has no such position. From stored z nothing is
computed but one einsum a layer; the model is loaded for its output projections alone. From the model, passes are those
of extraction over the prefix tree, they keep the wanted positions only, and end where the probe reads.

Legend: E examples of a unit, P distances from the decision, R tokens that are wanted, L layers, H heads, F figures of
one position: L·H shares, the score, what the biases of attention add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.attribution import ProbeReading, read_heads
from cliffstore.errors import ExtractionError, StoreError
from cliffstore.extract.job import WorkerSpec
from cliffstore.extract.passes import Pass
from cliffstore.extract.runner import PassRunner
from cliffstore.extract.sinks import NonFiniteError
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.model.heads import head_outputs, read_norm
from cliffstore.model.loader import load_model
from cliffstore.model.sites import arrays_of, locate
from cliffstore.model.traits import length_dependent_above
from cliffstore.records import FINAL_NORM, RESID_POST, Z
from cliffstore.run import executor
from cliffstore.run.heads.prompts import ExampleTokens, id_of
from cliffstore.run.origins import Origins
from cliffstore.run.progress import Reporter
from cliffstore.schema import ArrayIdentity, PassSettings, ProbeDocument
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

if TYPE_CHECKING:
    import torch

    from cliffstore.model.identity import ModelSource

Floats = npt.NDArray[np.float64]


class ShareSource(Protocol):
    """Gives figures of examples.

    Attributes
    ----------
    reading : what is read of heads
    lacking : what an example without figures does not have
    whole_below : the longest example that can be run in part; None for any
    """

    reading: ProbeReading
    lacking: str
    whole_below: int | None

    def figures(self, examples: Sequence[ExampleTokens]) -> Floats:
        """Return [E, P, F], NaN where an example has no such position."""
        ...


def has_z(reader: StoreReader, probe: ProbeDocument, layers: Sequence[int]) -> bool:
    """Return whether the store has z of all layers, and what a final norm's scale is made from."""
    try:
        for layer in layers:
            reader.find_array(Z, layer, probe.alias)
        reader.find_array(*read_site(probe), probe.alias)
    except StoreError:
        return False
    return True


def read_site(probe: ProbeDocument) -> tuple[str, int]:
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


class StoredShares:
    """Reads shares from stored z; the model gives its output projections and is let go."""

    lacking = "extracted z at these positions"
    whole_below: int | None = None

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
        self._captures.add(reader.find_array(*read_site(probe), probe.alias)[0].capture)
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
            site, layer = read_site(self._probe)
            figures.take_stream(every_R, self._reader.vectors(site, layer, rows_R, self._probe.alias))
        return _spread(figures.values_RF, rows_R, rows_EP)


def _spread(values_RF: Floats, rows_R: npt.NDArray[np.int64], rows_EP: npt.NDArray[np.int64]) -> Floats:
    """Return the figures of each example's positions, NaN where there are none."""
    padded_RF = np.vstack([values_RF, np.full((1, values_RF.shape[1]), np.nan)])
    at_EP = np.minimum(np.searchsorted(rows_R, rows_EP), max(len(rows_R) - 1, 0))
    is_there_EP = (rows_EP >= 0) & (rows_R[at_EP] == rows_EP) if len(rows_R) else np.zeros(rows_EP.shape, dtype=bool)
    return padded_RF[np.where(is_there_EP, at_EP, len(rows_R))]


class ModelShares:
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

        self._probe, self._weights, self._distances = probe, weights, distances
        self._reader, self._reporter = reader, reporter
        site, layer = read_site(probe)
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
        self.whole_below = length_dependent_above(capture.model.config)
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
                node = int(rows_R[failed.row])
                owner = next(one for one, path_T in zip(examples, paths, strict=True) if node in path_T)
                raise ExtractionError(
                    f"heads cannot be traced: NaN or Inf at site {failed.name.replace('/', ', layer ')} in example "
                    f"{id_of(self._reader, owner.example)!r}: leave it out with --where"
                )
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
        self._nonfinite: NonFiniteError | None = None

    def begin(self, one: Pass) -> None:
        self._rows_N = one.rows_N
        self._figures.values_RF[self._rows_N] = 0.0

    def take(self, name: str, vectors_ND: torch.Tensor) -> None:
        site, _, layer = name.partition("/")
        vectors = vectors_ND.float().cpu().numpy()
        if self._nonfinite is None and not np.isfinite(vectors).all():
            bad_N = ~np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
            self._nonfinite = NonFiniteError(name, int(self._rows_N[bad_N][0]))
        if site == Z:
            self._figures.take_z(int(layer), self._rows_N, vectors)
        else:
            self._figures.take_stream(self._rows_N, vectors)

    def check(self) -> None:
        found, self._nonfinite = self._nonfinite, None
        if found is not None:
            raise found
