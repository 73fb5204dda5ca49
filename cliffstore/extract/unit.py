"""One unit: read its tokens from the plan, run its passes, write what they give, commit it.

A worker is a plain object; the Ray actor only wraps it. It is made with a model, prepared once for a job, and then
extracts units. `extract` may be called from two threads at once: computing takes turns, writing does not, so one unit
is compressed and written while the next one is computed, and at most two units are in memory.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from cliffstore.access import without_secrets
from cliffstore.errors import CliffstoreError, ExtractionError, InterruptedRunError, StorageError, StoreError
from cliffstore.extract.blocks import BlockPool
from cliffstore.extract.calibration import CorpusShape, PassWish
from cliffstore.extract.job import Job, Prepared, WorkerSpec
from cliffstore.extract.marks import find_disagreement, marks_of
from cliffstore.extract.runner import PassRunner
from cliffstore.extract.sinks import ActivationBlocks, ProbeScores, UnitSink
from cliffstore.extract.tree import UnitExample
from cliffstore.records import UnitReport
from cliffstore.schema import CaptureDocument, UnitError
from cliffstore.store import layout, receipts
from cliffstore.store.plans import PlanTables
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import is_scored, write_unit_scores
from cliffstore.store.writer import UnitFacts, capture_specs, commit_unit


class NonFiniteExampleError(ExtractionError):
    """An example gives NaN or Inf; another worker of the same kind would find the same."""

    final = True


class UnitWorker:
    """Extracts units. Loads its model when it is made."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._threads = spec.threads
        self._choices = spec.interventions.choices if spec.interventions is not None else ()
        self._compute = threading.Lock()
        self._set_threads()
        self._runner = PassRunner(spec, self.name)

    def stop(self) -> None:
        """Make running and later calls of `extract` end at the next pass."""
        self._runner.stop()

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        """Choose how to make passes for a job of this shape; what is held by a capture already is not chosen again."""
        self._set_threads()
        return self._runner.prepare(wish, shape)

    def begin(self, job: Job) -> None:
        """Open the job's store, and make passes as it says."""
        self._set_threads()
        self._job = job
        self._reader = StoreReader(job.store, job.storage_options)
        self._unit_rows = self._reader.manifest.chunking.unit_rows
        self._tables = PlanTables(self._reader.objects, job.plans)
        if job.capture is not None:
            self._pool = BlockPool(capture_specs(job.capture), self._unit_rows)
        self._runner.adopt(job.passes)

    def run(self, unit: int, attempt: int) -> UnitReport:
        """Do what an executor asks of a worker: see `extract`."""
        return self.extract(unit, attempt)

    def extract(self, unit: int, attempt: int = 1) -> UnitReport:
        """Compute and commit one unit; one that is committed already is left alone.

        Raises
        ------
        ExtractionError
            The unit cannot be computed; why is recorded in the store.
        StorageError, StoreError
            The store cannot be reached, or is full: no unit's fault, and no other unit would fare better.
        """
        try:
            return self._extract(unit, attempt)
        except (InterruptedRunError, StorageError, StoreError):
            raise
        except Exception as error:  # whatever a unit dies of, the others go on
            message = str(error) if isinstance(error, CliffstoreError) else f"{type(error).__name__}: {error}"
            message = without_secrets(message, self._job.storage_options)
            receipts.record_error(
                self._reader.objects,
                UnitError(capture=self._job.receipts_name, unit=unit, attempt=attempt, worker=self.name, error=message),
            )
            failure = ExtractionError(f"unit {unit}: {message}")
            failure.final = getattr(error, "final", False)
            raise failure from error

    def _extract(self, unit: int, attempt: int) -> UnitReport:
        objects, capture = self._reader.objects, self._job.capture
        if capture is not None and objects.exists(layout.receipt(capture.capture, unit)):
            held = receipts.read_one(objects, capture.capture, unit)
            objects.delete(layout.unit_error(capture.capture, unit))
            return UnitReport(unit, held.n_tokens, held.n_rows, held.bytes, held.seconds, held.worker)
        if capture is None and all(is_scored(objects, probe.key, unit) for probe in self._job.probes):
            return UnitReport(unit, 0, 0, 0, 0.0, self.name)
        tokens = self._tables.tokens(unit)
        examples = split_examples(tokens, self._choices)
        place = _Place(unit, unit * self._unit_rows, examples, tokens, attempt)
        return self._store_scores(place) if capture is None else self._store_activations(place, capture)

    def _store_activations(self, place: _Place, capture: CaptureDocument) -> UnitReport:
        sink = ActivationBlocks(capture_specs(capture), place.row_start, self._pool)
        seconds = self._run(place, sink)
        blocks = sink.finish()
        facts = UnitFacts(
            plan=self._tables.units[place.unit].plan,
            unit=place.unit,
            row_start=place.row_start,
            n_rows=place.n_rows,
            n_examples=len(place.examples),
            n_tokens=place.tokens.num_rows,
            attempt=place.attempt,
            worker=self.name,
        )
        receipt = commit_unit(self._reader.objects, self._reader.arrays, capture, facts, blocks, seconds)
        del blocks
        sink.give_back()
        return place.report(receipt.bytes, receipt.seconds, receipt.worker, self._runner.drain_notices())

    def _store_scores(self, place: _Place) -> UnitReport:
        probes = {probe.key.name: (probe.array, probe.weights) for probe in self._job.probes}
        sink = ProbeScores(probes, place.row_start, place.n_rows)
        seconds = self._run(place, sink)
        scores = sink.finish()
        for probe in self._job.probes:
            write_unit_scores(
                self._reader.objects,
                self._tables.units[place.unit].plan,
                probe.key,
                place.unit,
                place.tokens,
                place.row_start,
                scores[probe.key.name],
                attempt=place.attempt,
                worker=self.name,
                seconds=seconds,
            )
        self._reader.objects.delete(layout.unit_error(self._job.receipts_name, place.unit))
        n_bytes = sum(scores_R.nbytes for scores_R in scores.values())
        return place.report(n_bytes, seconds, self.name, self._runner.drain_notices())

    def _run(self, place: _Place, sink: UnitSink) -> float:
        """Run the passes of a unit; return the seconds that they took."""
        with self._compute:
            self._set_threads()
            begun = time.monotonic()
            found = self._runner.run(place.examples, self._job.passes, sink)
            if found is not None and not self._job.allow_nonfinite:
                raise NonFiniteExampleError(
                    f"NaN or Inf at site {found.name.replace('/', ', layer ')} in example "
                    f"{self._id_of(place, found.row)}; pass --allow-nonfinite to store it as it is"
                )
            return time.monotonic() - begun

    def _set_threads(self) -> None:
        import torch

        if self._threads is not None:
            torch.set_num_threads(self._threads)  # per thread of the process, hence set where it computes

    def _id_of(self, place: _Place, row: int) -> str:
        owner = next(one.example for one in place.examples if row in one.rows)
        table = self._tables.examples(place.unit, ["example", "id"])
        return str(table["id"][table["example"].to_pylist().index(owner)].as_py())


@dataclass(frozen=True, slots=True)
class _Place:
    """A unit as it is read from the plan."""

    unit: int
    row_start: int
    examples: list[UnitExample]
    tokens: pa.Table
    attempt: int

    @property
    def n_rows(self) -> int:
        return max(int(example.rows.max()) for example in self.examples) - self.row_start + 1

    def report(self, n_bytes: int, seconds: float, worker: str, notices: tuple[str, ...]) -> UnitReport:
        return UnitReport(self.unit, self.tokens.num_rows, self.n_rows, n_bytes, seconds, worker, notices)


def split_examples(tokens: pa.Table, choices: Sequence[str] = ()) -> list[UnitExample]:
    """Split a unit's tokens table (sorted by example and position) into its examples, up to their last stored row.

    Parameters
    ----------
    choices : positions that interventions act at, which the examples are marked with

    Raises
    ------
    ConfigError
        Examples that share a row do not agree on them.
    """
    ordinals = tokens["example"].to_numpy()
    token_ids = tokens["token_id"].to_numpy().astype(np.int32)
    rows = tokens["row"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordinals)) + 1, [len(ordinals)]])
    marks = marks_of(tokens, choices) if choices else None
    examples: list[UnitExample] = []
    for first, last in pairwise(starts):
        length = int(np.flatnonzero(rows[first:last] >= 0)[-1]) + 1
        own = slice(first, first + length)
        examples.append(
            UnitExample(int(ordinals[first]), token_ids[own], rows[own], marks[own] if marks is not None else None)
        )
    if choices and (found := find_disagreement(examples, choices)) is not None:
        raise found.error()
    return examples
