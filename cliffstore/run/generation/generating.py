"""`cliffstore generate`: thinking and responses for a corpus, resumable at every batch.

Corpus to work, work to pieces by workers, pieces to one file (see `generation_job` for where they lie). Everything that
can be wrong with the input is found before anything is written. A run that was cut off is run again as it was: pieces
that are there stay, and the output has the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cliffstore.access import check_url, scheme_of
from cliffstore.corpus.scratch import new_folder
from cliffstore.corpus.sources import Corpus, read_corpus
from cliffstore.errors import GenerationError, InterruptedRunError
from cliffstore.run.executor import UnitOutcome
from cliffstore.run.generation.backend import Backend
from cliffstore.run.generation.config import GenerateConfig
from cliffstore.run.generation.job import GenerationJob
from cliffstore.run.generation.leftovers import Leftovers
from cliffstore.run.generation.output import write_output, written_anew
from cliffstore.run.generation.plan import GenerationPlan, plan_generation
from cliffstore.run.progress import LineReporter, Piece, Reporter
from cliffstore.schema import GenerationReceipt, Interventions
from cliffstore.settings import read_config
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore

FOLDER = ".generation"
"""Behind the output's name: where a run keeps what it needs to go on."""


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What a generation found and did.

    Attributes
    ----------
    rows : of the output: samples of examples
    skipped : reason -> rows of the corpus that are left out
    finish : rows by how they ended: stop, length (cut off), thinking
    tokens : generated tokens in the output, whenever they were generated
    generated_now, tokens_now : rows and tokens of this run
    seconds : wall time of generating
    """

    output: str
    model: str
    rows: int
    examples: int
    skipped: dict[str, int]
    with_thinking: int
    finish: dict[str, int]
    tokens: int
    done_before: int
    generated_now: int
    tokens_now: int
    seconds: float
    seconds_loading: float
    tokens_per_second: float
    rows_per_second: float
    executor: str

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values."""
        return asdict(self)


def generate(
    corpus: str | Sequence[str],
    *,
    model: str,
    output: str,
    reporter: Reporter | None = None,
    interventions: Interventions | None = None,
    **options: object,
) -> GenerateReport:
    """Fill thinking and response of a corpus; the Python form of `cliffstore generate`.

    Parameters
    ----------
    corpus : path or URL, or several
    model : local folder, hub name or `.gguf` file; with `endpoint`, the name that it knows the model by
    output : path or URL that ends in `.jsonl` or `.parquet`
    interventions : what is changed in the model, in the place of a file that `intervene` names
    options : any other field of `GenerateConfig`

    Raises
    ------
    UserError
        The input is wrong, or the output is of other settings; nothing was written.
    GenerationError
        Some examples failed; all others are kept beside the output.
    EndpointError
        The endpoint does not answer any longer.
    InterruptedRunError
        Ctrl-C; what is finished is kept, the same call goes on from there.
    """
    inputs = (corpus,) if isinstance(corpus, str) else tuple(corpus)
    given = {"corpus": inputs, "model": model, "output": output, **options}
    return run_generation(read_config(GenerateConfig, None, given), reporter or LineReporter(), interventions)


def run_generation(
    config: GenerateConfig, reporter: Reporter, interventions: Interventions | None = None
) -> GenerateReport:
    """Run `cliffstore generate`. See `generate` for parameters and errors."""
    for url in (*config.corpus, config.output):
        check_url(url)
    backend = Backend.of(config, reporter, interventions)
    folder = ObjectStore(_absolute(config.output) + FOLDER, config.storage_options)
    with new_folder() as scratch:
        corpus = read_corpus(
            config.corpus,
            scratch,
            mapping=config.map,
            where=config.where,
            limit=config.limit,
            storage_options=config.storage_options,
        )
        try:
            for notice in corpus.notices:
                reporter.notice(notice)
            for name in written_anew(corpus.extra_schema, config.samples):
                reporter.notice(f"the corpus column {name!r} is written anew: it says how a text was generated")
            plan = plan_generation(config, corpus, backend.renderer, backend.context, Path(scratch) / "work.parquet")
            for notice in plan.notices:
                reporter.notice(notice)
            return _Run(config, reporter, backend, corpus, plan, folder).run()
        finally:
            corpus.close()


@dataclass(slots=True)
class _Run:
    """One run: what is there, what is missing, and what became of it."""

    config: GenerateConfig
    reporter: Reporter
    backend: Backend
    corpus: Corpus
    plan: GenerationPlan
    folder: ObjectStore
    errors: list[str] = field(default_factory=list)
    rows_failed: int = 0
    rows_now: int = 0
    tokens_now: int = 0
    seconds: float = 0.0
    seconds_loading: float = 0.0

    def run(self) -> GenerateReport:
        left = Leftovers(self.config, self.reporter, self.backend, self.plan, self.folder)
        held = left.held()
        if held is not None and (receipt := left.complete()) is not None:
            self.reporter.stage(f"generate: all {self.plan.items} rows are in {self.config.output} already")
            left.tidy()
            return self._report(receipt, "none")
        if held is None:
            left.begin()
        units = set(range(self.plan.units))
        keys = self.folder.list(layout.GENERATION_PIECES)
        done = units & {unit for unit in map(layout.unit_of, keys) if unit is not None}
        executor = "none"
        try:
            if pending := sorted(units - done):
                left.send_work_if_gone()
                executor = self._generate(pending, sum(self.plan.items_of(unit) for unit in done))
            receipt, unended = write_output(self.config, self.plan, self.corpus, self.folder)
            documents.put(self.folder, receipt)
            if unended:
                self.reporter.notice(
                    f"{unended} of {receipt.rows} texts were cut off within their thinking and have no response: raise "
                    "--max-new-tokens, or leave them out of what follows (--where \"finish <> 'length'\")"
                )
        except GenerationError:
            found = left.complete()  # of another run of the same command, which has cleared away what this one needs
            if found is None:
                raise
            receipt = found
            self.reporter.notice(f"another run has written {self.config.output} meanwhile")
        left.tidy()
        return self._report(receipt, executor)

    def _generate(self, pending: list[int], rows_done: int) -> str:
        """Run the pending batches; return where. Raises `GenerationError` where some failed."""
        plan, begun = self.plan, time.monotonic()
        executor = self.backend.executor(self.config)
        try:
            executor.start(self.backend.spec(self.config))
            loaded = time.monotonic()
            self.seconds_loading = loaded - begun
            before = f", {rows_done} rows are there already" if rows_done else ""
            self.reporter.stage(f"generate: {plan.items - rows_done} rows{before}, {executor.description}")
            self.reporter.begin("generate", plan.items, rows_done)
            executor.run(self._job(), pending, self._take, self.reporter.notice)
        except InterruptedRunError:
            kept = rows_done + self.rows_now
            raise InterruptedRunError(
                f"interrupted: {kept} of {plan.items} rows are kept; run the same command again to go on"
            ) from None
        finally:
            self.reporter.end()
            executor.close()
        self.seconds = time.monotonic() - loaded
        if self.errors:
            raise GenerationError(
                f"{self.rows_failed} of {plan.items} rows failed, the others are kept: run the same command again to "
                f"try those alone; the first: {self.errors[0]}"
            )
        return executor.description

    def _job(self) -> GenerationJob:
        config, renderer = self.config, self.backend.renderer
        markers = config.markers
        if renderer is not None:
            markers = renderer.markers if renderer.thinks else None
        return GenerationJob(
            store=self.folder.url,
            windows=self.plan.windows,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
            stop_at_thinking=config.stop_at_thinking,
            markers=markers,
            end_of_turn=renderer.end_of_turn if renderer is not None else "",
            storage_options=dict(config.storage_options),
        )

    def _take(self, outcome: UnitOutcome) -> None:
        rows, done = self.plan.items_of(outcome.unit), outcome.report
        if done is not None:
            self.rows_now += rows
            self.tokens_now += done.n_tokens
            for notice in done.notices:
                self.reporter.notice(notice)
        else:
            self.rows_failed += rows
            self.errors.append(outcome.error or f"batch {outcome.unit} failed")
            self.reporter.notice(self.errors[-1])
        tokens = done.n_tokens if done is not None else 0
        self.reporter.advance(Piece(tokens, failed=done is None, noun="examples", count=rows))

    def _report(self, receipt: GenerationReceipt, executor: str) -> GenerateReport:
        seconds = self.seconds
        return GenerateReport(
            output=self.config.output,
            model=self.config.model,
            rows=receipt.rows,
            examples=self.plan.rows,
            skipped=self.plan.skipped,
            with_thinking=receipt.with_thinking,
            finish=receipt.finish,
            tokens=receipt.tokens,
            done_before=receipt.rows - self.rows_now,
            generated_now=self.rows_now,
            tokens_now=self.tokens_now,
            seconds=round(seconds, 3),
            seconds_loading=round(self.seconds_loading, 3),
            tokens_per_second=round(self.tokens_now / seconds, 1) if seconds else 0.0,
            rows_per_second=round(self.rows_now / seconds, 2) if seconds else 0.0,
            executor=executor,
        )


def _absolute(url: str) -> str:
    """Return a URL, or a path that workers elsewhere on this machine understand."""
    return os.path.abspath(url.removeprefix("file://")) if scheme_of(url) == "file" else url
