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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from cliffstore.errors import CliffstoreError, ExtractionError, InterruptedRunError
from cliffstore.extract.calibration import CorpusShape, PassWish, calibrate
from cliffstore.extract.memory import free_memory, is_out_of_memory
from cliffstore.extract.passes import Pass, Passes, plan_passes
from cliffstore.extract.sinks import ActivationBlocks, NonFiniteError, ProbeScores, UnitSink
from cliffstore.extract.tree import UnitExample
from cliffstore.extract.trial import as_tensors, disagreement
from cliffstore.model.capture import SiteCapture
from cliffstore.model.identity import ModelSource
from cliffstore.model.loader import load_model
from cliffstore.model.products import Products, choose_products, use_float32_products
from cliffstore.model.traits import length_dependent_above
from cliffstore.schema import ArrayIdentity, CaptureDocument, Dtype, PassSettings, UnitError
from cliffstore.store import layout, receipts, tables
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import ProbeKey, is_scored, write_unit_scores
from cliffstore.store.writer import UnitFacts, capture_specs, commit_unit


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to load its model, small enough to send anywhere.

    Attributes
    ----------
    arrays : what is captured, or what the probes of a job read
    threads : CPU threads of a pass; None leaves torch's own choice
    gpus : GPUs that the model is spread over
    """

    source: ModelSource
    arrays: tuple[ArrayIdentity, ...]
    dtype: Dtype
    device: str
    threads: int | None = None
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class LiveProbe:
    """A probe that is scored while the model runs: its name and digest, the array it reads, its weights."""

    key: ProbeKey
    array: str
    weights: ProbeWeights


@dataclass(frozen=True, slots=True)
class Job:
    """What the units of a run are extracted for: a capture, or scores of probes.

    Attributes
    ----------
    capture : document in the store; None where only scores are wanted
    """

    store: str
    plan: str
    passes: PassSettings
    capture: CaptureDocument | None
    probes: tuple[LiveProbe, ...] = ()
    allow_nonfinite: bool = False
    storage_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def receipts_name(self) -> str:
        """Where errors of units are recorded, beside the receipts."""
        return self.capture.capture if self.capture else layout.SCORES


@dataclass(frozen=True, slots=True)
class Prepared:
    """How a worker will make its passes.

    Attributes
    ----------
    seconds : expected compute time of the whole job on one such worker
    summary : what calibration found, for the user
    notices : what the user did not ask for and must know
    """

    passes: PassSettings
    seconds: float
    summary: str
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What became of one unit. `bytes` are those of its vectors before compression."""

    unit: int
    n_tokens: int
    n_rows: int
    bytes: int
    seconds: float
    worker: str
    notices: tuple[str, ...] = ()


class UnitWorker:
    """Extracts units. Loads its model when it is made."""

    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        self._spec = spec
        self._compute = threading.Lock()
        self._stop = threading.Event()
        self._notices: list[str] = []
        self._set_threads()
        self._model = load_model(spec.source, spec.dtype, spec.device, gpus=spec.gpus)
        identity = spec.source.identity
        flex = all(parameter.is_cuda for parameter in self._model.parameters())
        with torch.inference_mode():
            self._capture = SiteCapture(self._model, spec.arrays, identity.n_layers, identity.n_heads, flex=flex)
        self._products: Products = "native"
        self._disagreement: str | None = None
        self._checked = False
        self._most_tokens: int | None = None
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def stop(self) -> None:
        """Make running and later calls of `extract` end at the next pass."""
        self._stop.set()

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        """Choose how to make passes for a job of this shape; what is held by a capture already is not chosen again."""
        self._set_threads()
        held = wish.held
        if held is not None:
            if wish.kind not in (None, held.kind) or wish.tokens not in (None, held.tokens):
                self._notices.append(
                    f"the capture was begun with --passes {held.kind} --pass-tokens {held.tokens} and goes on with them"
                )
            self._adopt(held)
            kind = held.kind if self._capture.over_trees else "padded"
            wish = replace(wish, kind=kind, tokens=held.tokens)
        else:
            self._use_products(choose_products(self._model))
            self._check()
            if wish.kind == "tree" and self._disagreement is not None:
                wish = replace(wish, kind="padded")
        found = calibrate(self._capture, wish, shape)
        passes = held or PassSettings(kind=found.kind, tokens=found.tokens, products=self._products)
        return Prepared(passes, found.seconds, found.describe(shape), self._drain_notices())

    def begin(self, job: Job) -> None:
        """Open the job's store, and make passes as it says."""
        self._set_threads()
        self._job = job
        self._reader = StoreReader(job.store, job.storage_options)
        self._unit_rows = self._reader.manifest.chunking.unit_rows
        self._adopt(job.passes)

    def extract(self, unit: int, attempt: int = 1) -> UnitReport:
        """Compute and commit one unit; one that is committed already is left alone.

        Raises
        ------
        ExtractionError
            The unit cannot be computed; why is recorded in the store.
        """
        try:
            return self._extract(unit, attempt)
        except InterruptedRunError:
            raise
        except Exception as error:  # whatever a unit dies of, the others go on
            message = str(error) if isinstance(error, CliffstoreError) else f"{type(error).__name__}: {error}"
            receipts.record_error(
                self._reader.objects,
                UnitError(capture=self._job.receipts_name, unit=unit, attempt=attempt, worker=self.name, error=message),
            )
            raise ExtractionError(f"unit {unit}: {message}") from error

    def _extract(self, unit: int, attempt: int) -> UnitReport:
        objects, capture = self._reader.objects, self._job.capture
        if capture is not None and objects.exists(layout.receipt(capture.capture, unit)):
            held = receipts.read_one(objects, capture.capture, unit)
            return UnitReport(unit, held.n_tokens, held.n_rows, held.bytes, held.seconds, held.worker)
        if capture is None and all(is_scored(objects, probe.key, unit) for probe in self._job.probes):
            return UnitReport(unit, 0, 0, 0, 0.0, self.name)
        tokens = tables.read(objects, layout.tokens_table(self._job.plan, unit))
        examples = split_examples(tokens)
        place = _Place(unit, unit * self._unit_rows, examples, tokens, attempt)
        return self._store_scores(place) if capture is None else self._store_activations(place, capture)

    def _store_activations(self, place: _Place, capture: CaptureDocument) -> UnitReport:
        sink = ActivationBlocks(capture_specs(capture), place.row_start, self._unit_rows)
        seconds = self._run(place, sink)
        blocks = sink.finish()
        facts = UnitFacts(
            plan=self._job.plan,
            unit=place.unit,
            row_start=place.row_start,
            n_rows=place.n_rows,
            n_examples=len(place.examples),
            n_tokens=place.tokens.num_rows,
            attempt=place.attempt,
            worker=self.name,
        )
        receipt = commit_unit(self._reader.objects, self._reader.arrays, capture, facts, blocks, seconds)
        return place.report(receipt.bytes, receipt.seconds, receipt.worker, self._drain_notices())

    def _store_scores(self, place: _Place) -> UnitReport:
        probes = {probe.key.name: (probe.array, probe.weights) for probe in self._job.probes}
        sink = ProbeScores(probes, place.row_start, place.n_rows)
        seconds = self._run(place, sink)
        scores = sink.finish()
        for probe in self._job.probes:
            write_unit_scores(
                self._reader.objects,
                self._job.plan,
                probe.key,
                place.unit,
                place.tokens,
                place.row_start,
                scores[probe.key.name],
            )
        self._reader.objects.delete(layout.unit_error(self._job.receipts_name, place.unit))
        n_bytes = sum(scores_R.nbytes for scores_R in scores.values())
        return place.report(n_bytes, seconds, self.name, self._drain_notices())

    def _run(self, place: _Place, sink: UnitSink) -> float:
        """Run the passes of a unit; return the seconds that they took."""
        with self._compute:
            self._set_threads()
            begun = time.monotonic()
            found = self._run_passes(place, sink, isolate=False)
            if found is not None and self._capture.over_trees:
                found = self._run_passes(place, sink, isolate=True)  # which of the tokens have it is known only now
            if found is not None and not self._job.allow_nonfinite:
                raise ExtractionError(
                    f"NaN or Inf at site {found.name.replace('/', ', layer ')} in example "
                    f"{self._id_of(place, found.row)}; pass --allow-nonfinite to store it as it is"
                )
            return time.monotonic() - begun

    def _run_passes(self, place: _Place, sink: UnitSink, *, isolate: bool) -> NonFiniteError | None:
        for passes in self._plan(place.examples):
            for one in passes:
                self._run_pass(passes, one, sink, isolate)
        try:
            sink.check()
        except NonFiniteError as error:
            return error
        return None

    def _plan(self, examples: list[UnitExample]) -> list[Passes]:
        held = self._job.passes
        return plan_passes(
            examples,
            held.kind if self._capture.over_trees else "padded",
            min(held.tokens, self._most_tokens or held.tokens),
            chunk=self._capture.over_trees,
            whole_above=length_dependent_above(self._model.config),
        )

    def _run_pass(self, passes: Passes, one: Pass, sink: UnitSink, isolate: bool) -> None:
        """Run one pass; where the device has too little memory, in parts, and smaller ones from then on."""
        if self._stop.is_set():
            raise InterruptedRunError("stopped")
        tokens = one.input_ids_BT.size
        parts = divide(passes, one) if self._most_tokens is not None and tokens > self._most_tokens else None
        if parts is None:  # else it was planned before memory ran out
            sink.begin(one)
            try:
                self._capture.run(as_tensors(one), sink.take, isolate=isolate)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            parts = divide(passes, one)
            free_memory(self._capture.device.type)
            if parts is None:
                raise ExtractionError("a forward pass of one example or token does not fit into the device's memory")
            self._remember(tokens // 2)
        finer, ones = parts
        for part in ones:
            self._run_pass(finer, part, sink, isolate)

    def _remember(self, tokens: int) -> None:
        self._most_tokens = max(tokens, 1)
        self._notices.append(
            f"{self.name}: out of memory on {self._capture.device}: passes of at most {self._most_tokens:,} tokens "
            "from here on (--pass-tokens sets them)"
        )

    def _adopt(self, passes: PassSettings) -> None:
        """Make passes as a capture says; where this machine cannot, say so and use padded ones."""
        self._use_products(passes.products)
        self._check()  # padded passes are made with the same attention, where a model can be given it

    def _check(self) -> None:
        if self._checked:
            return
        self._checked = True
        self._disagreement = disagreement(self._capture, self._spec.dtype)
        if self._disagreement is not None:
            self._capture.leave_trees()
            self._notices.append(
                f"passes over prefix trees are off, padded ones are used, which are slower: {self._disagreement}"
            )

    def _use_products(self, products: Products) -> None:
        if products == self._products:
            return
        if products == "native":
            raise ExtractionError("a worker's matrix products cannot go back to native ones; start a new run")
        use_float32_products(self._model)
        self._products = products

    def _set_threads(self) -> None:
        import torch

        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)  # per thread of the process, hence set where it computes

    def _drain_notices(self) -> tuple[str, ...]:
        found, self._notices = tuple(self._notices), []
        return found

    def _id_of(self, place: _Place, row: int) -> str:
        owner = next(one.example for one in place.examples if row in one.rows)
        table = tables.read(self._reader.objects, layout.examples_table(self._job.plan, place.unit), ["example", "id"])
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


def divide(passes: Passes, one: Pass) -> tuple[Passes, Sequence[Pass]] | None:
    """Return smaller passes that do what `one` does, with what divides them further; None where there are none."""
    halves = passes.halve(one)
    if halves is not None:
        return passes, halves
    pieces = passes.in_pieces(one)
    return (pieces, list(pieces)) if pieces is not None else None


def split_examples(tokens: pa.Table) -> list[UnitExample]:
    """Split a unit's tokens table (sorted by example and position) into its examples, up to their last stored row."""
    ordinals = tokens["example"].to_numpy()
    token_ids = tokens["token_id"].to_numpy().astype(np.int32)
    rows = tokens["row"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordinals)) + 1, [len(ordinals)]])
    examples: list[UnitExample] = []
    for first, last in pairwise(starts):
        length = int(np.flatnonzero(rows[first:last] >= 0)[-1]) + 1
        examples.append(
            UnitExample(int(ordinals[first]), token_ids[first : first + length], rows[first : first + length])
        )
    return examples
