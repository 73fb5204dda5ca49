"""Scores of probes at every stored token of a unit, from stored vectors: no model, no torch.

A unit's rows are read once for all probes of an array, block by block, arrays one after the other; a block is turned
into float32 and multiplied in slices that stay in the processor's cache, so a probe more costs next to nothing. What is
in memory is one block, and a few numbers a token. A score does not depend on the block that its row was in, nor on the
probes beside it (see `ProbeWeights.scores`), hence a unit has the same bytes whenever and with whatever it is scored.

`ScoreWorker` is what an executor of `run` takes units to; `run.scoring` says which.

Legend: R rows from a unit's first stored one to its last, B rows of a block, D width.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.access import without_secrets
from cliffstore.errors import CliffstoreError, ExtractionError, InterruptedRunError, StorageError, StoreError
from cliffstore.records import UnitReport
from cliffstore.store import layout
from cliffstore.store.arrays import ArrayIO, ArraySpec, to_float32
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanTables
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import COLUMNS, ProbeKey, is_scored, record_error, write_unit_scores

P = ParamSpec("P")
R = TypeVar("R")

BLOCK_BYTES, SLICE_BYTES = 16 << 20, 1 << 20
"""Stored bytes that are read at once, and bytes as float32 that are multiplied at once."""
_MOST_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class ScoredProbe:
    """A probe to score with: name and digest, the array it reads, its weights, and the units that lack its scores.

    Other units are not touched: the vectors of some may not be committed.
    """

    key: ProbeKey
    array: ArraySpec
    weights: ProbeWeights
    units: frozenset[int]

    def is_lacking(self, objects: ObjectStore, unit: int) -> bool:
        """Return whether a unit is to be scored; another run may have done so meanwhile."""
        return unit in self.units and not is_scored(objects, self.key, unit)


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What units are scored with."""

    store: str
    probes: tuple[ScoredProbe, ...]
    storage_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def receipts_name(self) -> str:
        """What scoring is called in metrics."""
        return layout.SCORES

    def record_failure(self, unit: int, attempt: int, worker: str, error: str) -> None:
        """Write down why a unit has no scores of the probes that it lacks."""
        objects = ObjectStore(self.store, self.storage_options)
        for probe in self.probes:
            if probe.is_lacking(objects, unit):
                record_error(objects, probe.key, unit, attempt, worker, error)


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """Makes workers that score."""

    def make(self, threads: int) -> ScoreWorker:
        """Return a worker; it needs nothing but the store."""
        return ScoreWorker()

    def in_flight(self, threads: int) -> int:
        """Return how many units a worker has at once: one is read while others are multiplied and written."""
        return min(max(threads, 2), _MOST_IN_FLIGHT)


class ScoreWorker:
    """Scores units. `run` may be called from several threads at once."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make running and later calls of `run` end at the next block."""
        self._stopped.set()

    def begin(self, job: ScoreJob) -> None:
        """Open the job's store."""
        self._job = job
        self._reader = StoreReader(job.store, job.storage_options)
        self._units = self._reader.plan_tables.units

    def run(self, unit: int, attempt: int) -> UnitReport:
        """Score a unit with the probes that it has no scores of.

        Where one array cannot be read, the probes of the others are scored all the same.

        Raises
        ------
        ExtractionError
            A probe could not be scored; why is recorded in the store.
        StorageError, StoreError
            The store cannot be reached, or is full.
        InterruptedRunError
            `stop` was called.
        """
        lacking = [probe for probe in self._job.probes if probe.is_lacking(self._reader.objects, unit)]
        if not lacking:
            return UnitReport(unit, 0, 0, 0, 0.0, self.name)
        begun = time.monotonic()
        groups, failures = _by_array(lacking), list[ExtractionError]()
        place = self._told(unit, attempt, lacking, _Place.of, unit, attempt, self._reader.plan_tables)
        for array, probes in groups.items():
            try:
                self._told(unit, attempt, probes, self._score, place, array, probes)
            except ExtractionError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        n_bytes = place.n_rows * sum(array.bytes_per_row for array in groups)
        return UnitReport(unit, place.n_scored, place.n_rows, n_bytes, time.monotonic() - begun, self.name)

    def _score(self, place: _Place, array: ArraySpec, probes: Sequence[ScoredProbe]) -> None:
        """Read an array's rows of a unit, and commit the scores of the probes on it."""
        begun = time.monotonic()
        scores_PR = np.empty((len(probes), place.n_rows), dtype=np.float32)
        weights = [probe.weights for probe in probes]
        for first, last in _blocks(place, array, self._reader.manifest.chunking.chunk_rows):
            if self._stopped.is_set():
                raise InterruptedRunError("interrupted")
            at = slice(first - place.first, last - place.first)
            score_block(self._reader.arrays, array, first, last, weights, scores_PR[:, at])
        seconds = time.monotonic() - begun
        for probe, scores_R in zip(probes, scores_PR, strict=True):
            write_unit_scores(
                self._reader.objects,
                self._units[place.unit].plan,
                probe.key,
                place.unit,
                place.tokens,
                place.first,
                scores_R,
                attempt=place.attempt,
                worker=self.name,
                seconds=seconds,
            )

    def _told(
        self,
        unit: int,
        attempt: int,
        probes: Sequence[ScoredProbe],
        act: Callable[P, R],
        *args: P.args,
        **more: P.kwargs,
    ) -> R:
        """Do a part of a unit. What it dies of is written down for the probes that lack their scores by it."""
        try:
            return act(*args, **more)
        except (InterruptedRunError, StorageError, StoreError):
            raise
        except Exception as error:  # whatever a unit dies of, the others go on
            message = str(error) if isinstance(error, CliffstoreError) else f"{type(error).__name__}: {error}"
            message = without_secrets(message, self._job.storage_options)
            for probe in probes:
                record_error(self._reader.objects, probe.key, unit, attempt, self.name, message)
            raise ExtractionError(f"unit {unit}: {message}") from error


@dataclass(frozen=True, slots=True)
class _Place:
    """A unit's tokens, and the range of rows that they have; an empty one where none is stored."""

    unit: int
    attempt: int
    tokens: pa.Table
    first: int
    last: int
    n_scored: int

    @classmethod
    def of(cls, unit: int, attempt: int, tables: PlanTables) -> _Place:
        tokens = tables.tokens(unit, COLUMNS)
        rows_N = tokens["row"].drop_null().to_numpy()
        first, last = (int(rows_N.min()), int(rows_N.max()) + 1) if len(rows_N) else (0, 0)
        return cls(unit, attempt, tokens, first, last, len(rows_N))

    @property
    def n_rows(self) -> int:
        return self.last - self.first


def score_block(
    arrays: ArrayIO,
    array: ArraySpec,
    first: int,
    last: int,
    weights: Sequence[ProbeWeights],
    scores_PB: npt.NDArray[np.float32],
) -> None:
    """Read a range of rows and put their scores in place.

    Parameters
    ----------
    scores_PB : float32, a line for each probe, which is filled
    """
    stored_B = arrays.read_range(array.key, first, last)
    width = prod(array.row_shape)
    step = max(SLICE_BYTES // (4 * width), 1)
    for begin in range(0, last - first, step):
        h_ND = to_float32(stored_B[begin : begin + step], array.dtype).reshape(-1, width)
        for probe, one in enumerate(weights):
            scores_PB[probe, begin : begin + len(h_ND)] = one.scores(h_ND)


def _blocks(place: _Place, array: ArraySpec, chunk_rows: int) -> list[tuple[int, int]]:
    """Return first and last row of each block, which ends where a chunk does."""
    step = max(BLOCK_BYTES // array.bytes_per_row // chunk_rows, 1) * chunk_rows
    edges = [place.first, *range((place.first // step + 1) * step, place.last, step), place.last]
    return [(one, other) for one, other in pairwise(edges) if one < other]


def _by_array(probes: Sequence[ScoredProbe]) -> dict[ArraySpec, list[ScoredProbe]]:
    groups: dict[ArraySpec, list[ScoredProbe]] = {}
    for probe in probes:
        groups.setdefault(probe.array, []).append(probe)
    return groups
