"""The stage that spends the money: corpus to plan to vectors, resumable at every unit.

Everything that can be wrong with the input is found before anything is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from cliffstore.config import ExtractConfig, load_config
from cliffstore.errors import InterruptedRunError
from cliffstore.extract.calibration import PassWish
from cliffstore.extract.job import Job, WorkerSpec
from cliffstore.extract.unit import UnitWorker
from cliffstore.model.identity import ModelSource, find_model
from cliffstore.run.captures import choose_dtype
from cliffstore.run.estimate import confirm, corpus_shape, estimate
from cliffstore.run.executor import Executor, from_anywhere
from cliffstore.run.goals import Goal, find_goal
from cliffstore.run.interventions.steps import check_shared_rows, find_interventions, tell_without_effect
from cliffstore.run.live_probes import bring_probes
from cliffstore.run.outcomes import Outcomes
from cliffstore.run.placement import check_placement, choose_executor
from cliffstore.run.places import units_placed
from cliffstore.run.progress import LineReporter, Reporter
from cliffstore.run.work import Work, find_work
from cliffstore.schema import CaptureDocument, Interventions, PassSettings
from cliffstore.store import documents
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader, read_manifest
from cliffstore.store.writer import create_capture


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What an extraction found and did.

    Attributes
    ----------
    capture : empty where only scores were stored
    passes : how forward passes were made, None where there was nothing to do
    seconds_planning : wall time of reading, rendering and planning the corpus
    seconds_loading : wall time of loading the model, and of starting Ray where it is used
    seconds_preparing : wall time of checking and choosing passes, and of writing the plan
    seconds : wall time of forward passes and writes
    """

    store: str
    plan: str
    capture: str
    examples: int
    skipped: int
    tokens: int
    rows: int
    units: int
    units_done_before: int
    units_done_now: int
    units_failed: int
    bytes: int
    seconds: float
    executor: str
    seconds_planning: float
    seconds_loading: float
    seconds_preparing: float
    passes: dict[str, object] | None

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values."""
        return asdict(self)


def extract(
    corpus: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    model: str | os.PathLike[str],
    store: str | os.PathLike[str],
    reporter: Reporter | None = None,
    **options: object,
) -> ExtractReport:
    """Extract the activations of a corpus into a store; the Python form of `cliffstore extract`.

    Parameters
    ----------
    corpus : path or URL, or several; without any, the plans that the store holds
    model : local folder, hub name or `.gguf` file
    store : path or fsspec URL
    options : any other field of `ExtractConfig`

    Raises
    ------
    UserError
        The input is wrong; nothing was written.
    ExtractionError
        Some units failed; all others are committed.
    InterruptedRunError
        Ctrl-C; committed units stay, the same call goes on from there.
    """
    inputs = (corpus,) if isinstance(corpus, str | os.PathLike) else corpus
    given = {"corpus": tuple(os.fspath(one) for one in inputs), "model": os.fspath(model), "store": os.fspath(store)}
    config = load_config(None, {**given, **options})
    return run_extraction(config, reporter or LineReporter())


def run_extraction(
    config: ExtractConfig,
    reporter: Reporter,
    units: Collection[int] | None = None,
    interventions: Interventions | None = None,
) -> ExtractReport:
    """Run `cliffstore extract`. See `extract` for errors.

    Parameters
    ----------
    units : extract no others than these; None means all that are planned
    interventions : as a store holds them, in the place of a file that the configuration names
    """
    begun = time.monotonic()
    check_placement(config)
    source = find_model(config.model, config.revision, reporter.notice, config.adapter)
    objects = ObjectStore(config.store, config.storage_options)
    manifest = read_manifest(objects)
    held = StoreReader(config.store, config.storage_options) if manifest is not None else None
    if held is not None:
        documents.keep_copies(objects)
    if config.intervene is not None:
        interventions = find_interventions(config, source, reporter.notice)
    goal = find_goal(config, source, held, interventions)
    tell_without_effect(goal.draft, reporter.notice)
    with find_work(config, source, held, goal.bytes_per_row, reporter) as work:
        reporter.stage(work.describe())
        done = goal.done(objects) if held is not None else set()
        pending = [unit.unit for unit in work.units if unit.unit not in done and (units is None or unit.unit in units)]
        if interventions is not None:
            wanted = set(pending)
            units_left = [unit for unit in work.units if unit.unit in wanted]
            check_shared_rows(interventions, units_left, work.tokens, reporter.notice)
        outcomes = Outcomes(reporter)
        run = _Run(config, reporter, source, goal, work, pending, outcomes, seconds_planning=time.monotonic() - begun)
        if not pending:
            reporter.stage(f"extract: all {len(work.units)} units are stored already, nothing to do")
            return run.report("none")
        executor = choose_executor(config)
        try:
            job = run.prepare(executor)
            run.extract(executor, job)
        finally:
            executor.close()
        return run.report(executor.description)


@dataclass(slots=True)
class _Run:
    """One run of an extraction: its parts as they become known."""

    config: ExtractConfig
    reporter: Reporter
    source: ModelSource
    goal: Goal
    work: Work
    pending: list[int]
    outcomes: Outcomes
    seconds_planning: float
    seconds_loading: float = 0.0
    seconds_preparing: float = 0.0
    seconds: float = 0.0
    passes: PassSettings | None = None

    def prepare(self, executor: Executor[Job]) -> Job:
        """Load the model, choose passes, say what it will take, and only then begin to write."""
        begun = time.monotonic()
        config, goal = self.config, self.goal
        wanted = set(self.pending)
        units = [unit for unit in self.work.units if unit.unit in wanted]
        executor.start(
            WorkerSpec(
                source=self.source,
                arrays=goal.draft.arrays,
                dtype=choose_dtype(config, self.source),
                device=config.device,
                gpus=config.gpus_per_actor,
                interventions=goal.draft.interventions,
            )
        )
        loaded = time.monotonic()
        self.seconds_loading = loaded - begun
        wish = PassWish(
            kind=None if config.passes == "auto" else config.passes,
            tokens=config.pass_tokens,
            held=goal.held.passes if goal.held else None,
        )
        prepared = executor.ask(UnitWorker.prepare, wish, corpus_shape(units, self.work.tokens))
        self.outcomes.tell(prepared.notices)
        self.reporter.stage(prepared.summary)
        workers = min(executor.n_workers, len(units))
        specs = [] if goal.probes else goal.draft.specs
        expected = estimate(specs, units, prepared.seconds / workers)
        self.reporter.stage(expected.describe())
        confirm(expected, config, self.reporter)
        self.work.write(ObjectStore(config.store, config.storage_options))
        job = self._create(prepared.passes)
        self.passes = job.passes
        self.seconds_preparing = time.monotonic() - loaded
        return job

    def _create(self, passes: PassSettings) -> Job:
        config, goal = self.config, self.goal
        objects = ObjectStore(config.store, config.storage_options)
        capture = None
        if goal.probes:
            bring_probes(objects, goal.probes)
        else:
            capture = self._create_capture(objects, passes)
        return Job(
            store=config.store,
            plans=self.work.plans,
            passes=capture.passes if capture else passes,
            capture=capture,
            probes=tuple(probe.live for probe in goal.probes),
            allow_nonfinite=config.allow_nonfinite,
            storage_options=dict(config.storage_options),
        )

    def _create_capture(self, objects: ObjectStore, passes: PassSettings) -> CaptureDocument:
        """Create the capture's arrays with room for every plan, also for those that other runs begin meanwhile."""
        while True:
            n_units = units_placed(objects)
            capture = create_capture(
                objects, self.goal.draft.document(passes), n_units=n_units, chunking=self.work.manifest.chunking
            )
            if units_placed(objects) == n_units:
                return capture

    def extract(self, executor: Executor[Job], job: Job) -> None:
        """Run the pending units."""
        total, done_before = len(self.work.units), len(self.work.units) - len(self.pending)
        resumed = f", {done_before} stored already" if done_before else ""
        self.reporter.stage(f"extract: {len(self.pending)} units{resumed}, {executor.description}")
        self.reporter.begin("extract", total, done_before)
        begun = time.monotonic()
        try:
            executor.run(job, from_anywhere(self.pending), self.outcomes.take, self.reporter.notice)
        except InterruptedRunError:
            done = self.goal.done(ObjectStore(self.config.store, self.config.storage_options))
            kept = len(done & {unit.unit for unit in self.work.units})
            raise InterruptedRunError(
                f"interrupted: {kept} of {total} units are stored; run the same command again to go on"
            ) from None
        finally:
            self.reporter.end()
        self.seconds = time.monotonic() - begun
        self.outcomes.check(total)

    def report(self, executor: str) -> ExtractReport:
        """Return what the run found and did."""
        work = self.work
        return ExtractReport(
            store=self.config.store,
            plan=", ".join(work.plans),
            capture=self.goal.name,
            examples=work.n_examples,
            skipped=work.n_skipped,
            tokens=work.n_tokens,
            rows=work.n_rows,
            units=len(work.units),
            units_done_before=len(work.units) - len(self.pending),
            units_done_now=len(self.outcomes.found),
            units_failed=len(self.outcomes.errors),
            bytes=sum(report.bytes for report in self.outcomes.found),
            seconds=round(self.seconds, 3),
            executor=executor,
            seconds_planning=round(self.seconds_planning, 3),
            seconds_loading=round(self.seconds_loading, 3),
            seconds_preparing=round(self.seconds_preparing, 3),
            passes=self.passes.model_dump() if self.passes else None,
        )
