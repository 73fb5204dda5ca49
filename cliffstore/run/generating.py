"""`cliffstore generate`: thinking and responses for a corpus, resumable at every batch.

Corpus to work, work to pieces by workers, pieces to one file (see `generation_job` for where they lie). Everything that
can be wrong with the input is found before anything is written. A run that was cut off is run again as it was: pieces
that are there stay, and the output has the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from cliffstore import __version__
from cliffstore.access import check_url, filesystem, scheme_of
from cliffstore.config import StorageOptions
from cliffstore.corpus.markers import ThinkMarkers
from cliffstore.corpus.scratch import new_folder
from cliffstore.corpus.sources import Corpus, read_corpus
from cliffstore.corpus.template import Renderer, tokenizer_digest
from cliffstore.errors import (
    ConfigError,
    DamagedStoreError,
    GenerationError,
    InterruptedRunError,
    StorageError,
    StoreError,
)
from cliffstore.model.identity import ModelSource, find_model
from cliffstore.model.loader import load_tokenizer
from cliffstore.model.steps import ModelShape, check_fit
from cliffstore.publish.completions import Endpoint
from cliffstore.run.captures import choose_dtype
from cliffstore.run.executor import Executor, LocalExecutor, UnitOutcome
from cliffstore.run.generation_config import GenerateConfig
from cliffstore.run.generation_job import EndpointSpec, GenerationJob, ModelSpec
from cliffstore.run.generation_output import write_output
from cliffstore.run.generation_plan import GenerationPlan, plan_generation
from cliffstore.run.intervention_files import read_interventions
from cliffstore.run.interventions import resolve
from cliffstore.run.placement import check_placement, choose_executor
from cliffstore.run.progress import LineReporter, Piece, Reporter
from cliffstore.run.saving import saving
from cliffstore.schema import Document, GenerationDocument, GenerationReceipt, Interventions
from cliffstore.settings import read_config
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore

D = TypeVar("D", bound=Document)

FOLDER = ".generation"
"""Behind the output's name: where a run keeps what it needs to go on."""
_SHAPES_TEXT = (
    "max_new_tokens", "temperature", "top_p", "top_k", "seed", "samples", "stop_at_thinking", "regenerate_thinking",
    "endpoint", "batch_size", "think_open", "think_close",
)  # fmt: skip


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
    backend = _Backend.of(config, reporter, interventions)
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
            plan = plan_generation(config, corpus, backend.renderer, backend.context, Path(scratch) / "work.parquet")
            for notice in plan.notices:
                reporter.notice(notice)
            return _Run(config, reporter, backend, corpus, plan, folder).run()
        finally:
            corpus.close()


@dataclass(frozen=True, slots=True)
class _Backend:
    """What generates: a model here, with its renderer, or an endpoint."""

    source: ModelSource | None
    renderer: Renderer | None
    endpoint: Endpoint | None
    context: int | None
    interventions: Interventions | None = None

    @classmethod
    def of(cls, config: GenerateConfig, reporter: Reporter, interventions: Interventions | None) -> _Backend:
        """Find the model. Raises `UserError` where something of it, or of the interventions, is wrong."""
        if config.endpoint is not None:
            if interventions is not None:
                raise ConfigError("interventions need a model that runs here, not an endpoint")
            return cls(None, None, Endpoint.check(config.endpoint, config.model, timeout=config.timeout), None)
        check_placement(config)
        source = find_model(config.model, config.revision, reporter.notice, config.adapter)
        longest = None if source.context is None else source.context - 1  # room for one token
        given = [most for most in (config.max_tokens, longest) if most is not None]
        markers = None
        if config.think_open is not None and config.think_close is not None:
            markers = ThinkMarkers(config.think_open, config.think_close)
        renderer = Renderer(
            load_tokenizer(source),
            markers=markers,
            template_date=config.template_date,
            max_tokens=min(given, default=None),
            to_answer=True,
        )
        if config.intervene is not None:
            if interventions is not None:
                raise ConfigError("intervene and interventions both say what to change: leave one out")
            interventions = _read_interventions(config.intervene, config, source, reporter)
        elif interventions is not None:
            check_fit(interventions, _shape(source))
        return cls(source, renderer, None, source.context, interventions)

    def settings(self, config: GenerateConfig) -> dict[str, str | int | float | bool | None]:
        """Return what bears on the texts beside the prompts."""
        found = {name: getattr(config, name) for name in _SHAPES_TEXT}
        if self.endpoint is not None:
            return {**found, "endpoint": self.endpoint.url, "model": self.endpoint.model}
        assert self.source is not None
        assert self.renderer is not None
        identity = self.source.identity
        return {
            **found,
            "model": identity.name,
            "weights": identity.weights_digest or identity.revision,
            "configuration": identity.config_digest,
            "adapter": identity.adapter.digest if identity.adapter is not None else None,
            "dtype": choose_dtype(config, self.source),
            "tokenizer": tokenizer_digest(self.renderer.tokenizer),
            "template": self.renderer.digest,
            "interventions": self.interventions.digest if self.interventions is not None else None,
        }

    def executor(self, config: GenerateConfig) -> Executor[GenerationJob]:
        return LocalExecutor() if self.endpoint is not None else choose_executor(config)

    def spec(self, config: GenerateConfig) -> ModelSpec | EndpointSpec:
        if self.endpoint is not None:
            return EndpointSpec(self.endpoint, config.concurrency)
        assert self.source is not None
        dtype = choose_dtype(config, self.source)
        return ModelSpec(self.source, dtype, config.device, config.gpus_per_actor, interventions=self.interventions)


@dataclass(slots=True)
class _Run:
    """One run: what is there, what is missing, and what became of it."""

    config: GenerateConfig
    reporter: Reporter
    backend: _Backend
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
        held = self._held()
        if held is not None and (receipt := self._complete()) is not None:
            self.reporter.stage(f"generate: all {self.plan.items} rows are in {self.config.output} already")
            self._tidy()
            return self._report(receipt, "none")
        if held is None:
            self._begin()
        units = set(range(self.plan.units))
        keys = self.folder.list(layout.GENERATION_PIECES)
        done = units & {unit for unit in map(layout.unit_of, keys) if unit is not None}
        executor = "none"
        if pending := sorted(units - done):
            executor = self._generate(pending, sum(self.plan.items_of(unit) for unit in done))
        receipt = write_output(self.config, self.plan, self.corpus, self.folder)
        documents.put(self.folder, receipt)
        self._tidy()
        return self._report(receipt, executor)

    def _tidy(self) -> None:
        """Remove what a complete output needs no longer; settings and receipt stay."""
        self.folder.delete(layout.GENERATION_PIECES)
        self.folder.delete(layout.GENERATION_WORK)

    def _read(self, kind: type[D], key: str) -> D | None:
        """Return a document, None where there is none. Raises `StoreError` where it is damaged."""
        try:
            return documents.read(self.folder, kind, key)
        except FileNotFoundError:
            return None
        except DamagedStoreError as error:
            raise StoreError(
                f"{self.folder.path(key)} {error.problem}: remove {self.folder.url} and run again"
            ) from None

    def _document(self) -> GenerationDocument:
        return GenerationDocument(
            output=self._name,
            settings=self.backend.settings(self.config),
            work=self.plan.digest,
            inputs=list(self.config.corpus),
            model=self.backend.source.identity if self.backend.source is not None else None,
            examples=self.plan.rows,
            units=self.plan.units,
            cliffstore_version=__version__,
        )

    def _held(self) -> GenerationDocument | None:
        """Return what an earlier run began, None where there is none.

        Raises
        ------
        StoreError
            It was another run, or the output is none of a generation.
        """
        held = self._read(GenerationDocument, layout.GENERATION)
        if held is None:
            if _exists(self.config.output, self.config.storage_options):
                raise StoreError(
                    f"{self.config.output} is there, and no generation has written it: give another -o, or remove it"
                )
            return None
        asked = self._document()
        names = [*dict.fromkeys([*asked.settings, *held.settings])]
        other = [name for name in names if asked.settings.get(name) != held.settings.get(name)]
        if other:
            changed = ", ".join(
                f"{name.replace('_', '-')} {_short(held.settings.get(name))}, not {_short(asked.settings.get(name))}"
                for name in other
            )
            raise StoreError(
                f"{self.config.output} was begun with other settings ({changed}): give the same, or another -o, or "
                f"remove {self.folder.url}"
            )
        if asked.work != held.work:
            raise StoreError(
                f"{self.config.output} was begun with another corpus ({held.examples} examples, not {asked.examples}, "
                f"or other prompts): give the same, or another -o, or remove {self.folder.url}"
            )
        return held

    def _complete(self) -> GenerationReceipt | None:
        """Return the receipt of an output that is there, None where it is to be written."""
        receipt = self._read(GenerationReceipt, layout.GENERATION_RECEIPT)
        if receipt is None:
            return None
        if not _exists(self.config.output, self.config.storage_options):
            self.reporter.notice(f"{self.config.output} is no longer there: it is generated again")
        elif _digest_of(self.config.output, self.config.storage_options) == receipt.digest:
            return receipt
        else:
            raise StoreError(
                f"{self.config.output} is not what was generated: give another -o, or remove it and {self.folder.url}"
            )
        self.folder.delete(layout.GENERATION_RECEIPT)
        self._send_work()
        return None

    def _begin(self) -> None:
        self._send_work()
        documents.create(self.folder, self._document())

    def _send_work(self) -> None:
        if self.folder.is_local:
            Path(self.folder.root).mkdir(parents=True, exist_ok=True)
        with (
            self.plan.path.open("rb") as work,
            saving(f"{self.folder.url}/{layout.GENERATION_WORK}", self.config.storage_options) as sink,
        ):
            while block := work.read(1 << 20):
                sink.write(block)

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
        return GenerationJob(
            store=self.folder.url,
            windows=self.plan.windows,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
            stop_at_thinking=config.stop_at_thinking,
            markers=renderer.markers if renderer is not None and renderer.thinks else None,
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

    @property
    def _name(self) -> str:
        return self.config.output.rstrip("/").rsplit("/", 1)[-1]

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


def _read_interventions(path: str, config: GenerateConfig, source: ModelSource, reporter: Reporter) -> Interventions:
    """Return what a file of interventions asks for. Directions are files, or probes named STORE/probes/NAME."""
    wish = read_interventions(path)
    dtype = choose_dtype(config, source)
    return resolve(wish, source.identity, dtype, "", config.storage_options, reporter.notice)


def _shape(source: ModelSource) -> ModelShape:
    identity = source.identity
    return ModelShape(identity.n_layers, identity.d_model, identity.n_heads, identity.d_head)


def _absolute(url: str) -> str:
    """Return a URL, or a path that workers elsewhere on this machine understand."""
    return os.path.abspath(url.removeprefix("file://")) if scheme_of(url) == "file" else url


def _exists(url: str, options: StorageOptions) -> bool:
    fs, path = filesystem(url, options)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def _digest_of(url: str, options: Mapping[str, object]) -> str:
    """Return the sha256 of a file. Raises `StorageError` where it cannot be read."""
    fs, path = filesystem(url, options)
    digest = hashlib.sha256()
    try:
        with fs.open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"cannot read {url}: {error}") from None
    return digest.hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
