"""The stage that spends the money: corpus to plan to vectors, resumable at every unit.

Everything that can be wrong with the input is found before anything is written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from cliffstore.config import ExtractConfig, load_config
from cliffstore.errors import ExtractionError, InterruptedRunError
from cliffstore.extract.calibration import PassWish
from cliffstore.extract.job import Job, UnitReport, WorkerSpec
from cliffstore.model.identity import ModelSource, find_model
from cliffstore.model.sites import arrays_of, parse_layers
from cliffstore.plan.units import Plan
from cliffstore.records import RESID_POST
from cliffstore.run.captures import CaptureDraft, choose_dtype, draft_capture, find_held
from cliffstore.run.estimate import confirm, corpus_shape, estimate
from cliffstore.run.executor import Executor, UnitOutcome
from cliffstore.run.live_probes import FoundProbe, arrays_to_read, bring_probes, find_probes, units_done
from cliffstore.run.placement import check_placement, choose_executor
from cliffstore.run.planning import Planned, check_plan, plan_corpus, write_plan
from cliffstore.run.progress import LineReporter, Piece, Reporter
from cliffstore.schema import CaptureDocument, PassSettings
from cliffstore.store import receipts
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
    corpus: str | Sequence[str],
    *,
    model: str,
    store: str,
    reporter: Reporter | None = None,
    **options: object,
) -> ExtractReport:
    """Extract the activations of a corpus into a store; the Python form of `cliffstore extract`.

    Parameters
    ----------
    corpus : path or URL, or several
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
    inputs = (corpus,) if isinstance(corpus, str) else tuple(corpus)
    config = load_config(None, {"corpus": inputs, "model": model, "store": store, **options})
    return run_extraction(config, reporter or LineReporter())


def run_extraction(config: ExtractConfig, reporter: Reporter) -> ExtractReport:
    """Run `cliffstore extract`. See `extract` for errors."""
    begun = time.monotonic()
    check_placement(config)
    source = find_model(config.model, config.revision, reporter.notice, config.adapter)
    objects = ObjectStore(config.store, config.storage_options)
    manifest = read_manifest(objects)
    held = StoreReader(config.store, config.storage_options) if manifest is not None else None
    goal = _find_goal(config, source, held)
    planned = plan_corpus(config, source, manifest, goal.bytes_per_row, reporter)
    plan = planned.plan
    held_plans = held.plans() if held is not None else []
    check_plan(config.store, plan, held_plans)
    reporter.stage(_describe(plan))
    done = goal.done(objects) if held is not None else set()
    pending = [unit.number for unit in plan.units if unit.number not in done]
    run = _Run(config, reporter, source, goal, planned, pending, seconds_planning=time.monotonic() - begun)
    if not pending:
        reporter.stage(f"extract: all {len(plan.units)} units are stored already, nothing to do")
        return run.report("none")
    executor = choose_executor(config)
    try:
        job = run.prepare(executor, lambda: write_plan(objects, planned, manifest, held_plans))
        run.extract(executor, job)
    finally:
        executor.close()
    return run.report(executor.description)


@dataclass(frozen=True, slots=True)
class _Goal:
    """What a run is to store: the arrays of a capture, or scores of probes."""

    draft: CaptureDraft
    held: CaptureDocument | None
    probes: tuple[FoundProbe, ...]
    bytes_per_row: int

    @property
    def name(self) -> str:
        return "" if self.probes else self.draft.name

    def done(self, objects: ObjectStore) -> set[int]:
        if self.probes:
            return units_done(objects, self.probes)
        return receipts.committed(objects, self.draft.name)


def _find_goal(config: ExtractConfig, source: ModelSource, held: StoreReader | None) -> _Goal:
    layers = parse_layers(config.layers, source.identity.n_layers)
    if not config.probe:
        draft = draft_capture(config, source, arrays_of(source.identity, config.sites, layers))
        held_capture = find_held(config.store, draft, held.captures() if held is not None else [])
        return _Goal(draft, held_capture, (), draft.bytes_per_row)
    probes = tuple(find_probes(config, source))
    # Units as for a capture of all layers, so that one can be added later without units beyond memory.
    every = arrays_of(source.identity, [RESID_POST], range(source.identity.n_layers))
    bytes_per_row = draft_capture(config, source, every).bytes_per_row
    return _Goal(draft_capture(config, source, arrays_to_read(probes)), None, probes, bytes_per_row)


@dataclass(slots=True)
class _Run:
    """One run of an extraction: its parts as they become known."""

    config: ExtractConfig
    reporter: Reporter
    source: ModelSource
    goal: _Goal
    planned: Planned
    pending: list[int]
    seconds_planning: float
    seconds_loading: float = 0.0
    seconds_preparing: float = 0.0
    seconds: float = 0.0
    passes: PassSettings | None = None
    found: list[UnitReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        return self.planned.plan

    def prepare(self, executor: Executor, write_the_plan: Callable[[], None]) -> Job:
        """Load the model, choose passes, say what it will take, and only then begin to write."""
        begun = time.monotonic()
        config, goal = self.config, self.goal
        units = [self.plan.units[number] for number in self.pending]
        executor.start(
            WorkerSpec(
                source=self.source,
                arrays=goal.draft.arrays,
                dtype=choose_dtype(config, self.source),
                device=config.device,
                gpus=config.gpus_per_actor,
            )
        )
        loaded = time.monotonic()
        self.seconds_loading = loaded - begun
        wish = PassWish(
            kind=None if config.passes == "auto" else config.passes,
            tokens=config.pass_tokens,
            held=goal.held.passes if goal.held else None,
        )
        prepared = executor.prepare(wish, corpus_shape(self.plan, units))
        self._tell(prepared.notices)
        self.reporter.stage(prepared.summary)
        workers = min(executor.n_workers, len(units))
        specs = [] if goal.probes else goal.draft.specs
        expected = estimate(specs, units, prepared.seconds / workers)
        self.reporter.stage(expected.describe())
        confirm(expected, config, self.reporter)
        write_the_plan()
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
            chunking = StoreReader(config.store, config.storage_options).manifest.chunking
            capture = create_capture(
                objects, goal.draft.document(passes), n_units=len(self.plan.units), chunking=chunking
            )
        return Job(
            store=config.store,
            plan=self.plan.name,
            passes=capture.passes if capture else passes,
            capture=capture,
            probes=tuple(probe.live for probe in goal.probes),
            allow_nonfinite=config.allow_nonfinite,
            storage_options=dict(config.storage_options),
        )

    def extract(self, executor: Executor, job: Job) -> None:
        """Run the pending units."""
        total, done_before = len(self.plan.units), len(self.plan.units) - len(self.pending)
        resumed = f", {done_before} stored already" if done_before else ""
        self.reporter.stage(f"extract: {len(self.pending)} units{resumed}, {executor.description}")
        self.reporter.begin("extract", total, done_before)
        begun = time.monotonic()
        try:
            executor.run(job, _from_anywhere(self.pending), self._on_done, self.reporter.notice)
        except InterruptedRunError:
            kept = len(self.goal.done(ObjectStore(self.config.store, self.config.storage_options)))
            raise InterruptedRunError(
                f"interrupted: {kept} of {total} units are stored; run the same command again to go on"
            ) from None
        finally:
            self.reporter.end()
        self.seconds = time.monotonic() - begun
        if self.errors:
            raise ExtractionError(
                f"{len(self.errors)} of {total} units failed, the others are stored "
                f"(SELECT unit, error FROM units WHERE error IS NOT NULL); the first: {self.errors[0]}"
            )

    def _on_done(self, outcome: UnitOutcome) -> None:
        if outcome.report is not None:
            self.found.append(outcome.report)
            self._tell(outcome.report.notices)
        else:
            self.errors.append(outcome.error or f"unit {outcome.unit} failed")
            self._tell((self.errors[-1],))
        done = outcome.report
        self.reporter.advance(Piece(done.n_tokens, done.bytes) if done else Piece(failed=True))

    def _tell(self, notices: Sequence[str]) -> None:
        for notice in notices:
            self.reporter.notice(notice)

    def report(self, executor: str) -> ExtractReport:
        """Return what the run found and did."""
        plan = self.plan
        return ExtractReport(
            store=self.config.store,
            plan=plan.name,
            capture=self.goal.name,
            examples=plan.n_examples,
            skipped=len(plan.skipped),
            tokens=plan.n_tokens,
            rows=plan.n_rows,
            units=len(plan.units),
            units_done_before=len(plan.units) - len(self.pending),
            units_done_now=len(self.found),
            units_failed=len(self.errors),
            bytes=sum(report.bytes for report in self.found),
            seconds=round(self.seconds, 3),
            executor=executor,
            seconds_planning=round(self.seconds_planning, 3),
            seconds_loading=round(self.seconds_loading, 3),
            seconds_preparing=round(self.seconds_preparing, 3),
            passes=self.passes.model_dump() if self.passes else None,
        )


def _from_anywhere(units: Sequence[int]) -> list[int]:
    """Return units in their order, from a random one on: two runs of one command then share the work between them."""
    first = random.randrange(len(units))
    return [*units[first:], *units[:first]]


def _describe(plan: Plan) -> str:
    """Return one line for the user."""
    counted = f"plan: {plan.n_examples:,} examples, {plan.n_tokens:,} tokens"
    if plan.n_nodes == plan.n_rows:
        stored = f"are {plan.n_rows:,} rows ({plan.n_tokens / plan.n_rows:.2f} tokens a row)"
    else:
        stored = f"of which {plan.n_rows:,} rows are stored and {plan.n_nodes:,} prefixes computed for them"
    return f"{counted} {stored}, {len(plan.units)} units"
