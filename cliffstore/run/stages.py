"""The stage that spends the money: corpus to plan to vectors, resumable at every unit.

Everything that can be wrong with the input is found before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from cliffstore import __version__
from cliffstore.config import ExtractConfig, load_config
from cliffstore.errors import ExtractionError, InterruptedRunError, ModelError, StoreError
from cliffstore.extract.unit import WorkerSpec
from cliffstore.model.loader import ModelSource, choose_device, find_model
from cliffstore.model.sites import arrays_of, parse_layers
from cliffstore.run.executor import Executor, LocalExecutor, UnitOutcome
from cliffstore.run.planning import plan_corpus, write_plan
from cliffstore.run.progress import LineReporter, Reporter
from cliffstore.schema import ArrayIdentity, CaptureDocument, Dtype, Receipt
from cliffstore.store import receipts
from cliffstore.store.arrays import STORED_DTYPE
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader, compact_ranges, read_manifest
from cliffstore.store.writer import capture_specs, create_capture

_BATCH_TOKENS = {"cpu": 1_024}
_BATCH_TOKENS_ACCELERATOR = 16_384


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What an extraction found and did. `seconds` is wall time of the forward passes and writes of this run."""

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
    source = find_model(config.model, config.revision, reporter.notice)
    layers = parse_layers(config.layers, source.identity.n_layers)
    arrays = arrays_of(source.identity, config.sites, layers)
    capture = _new_capture(config, source, arrays)
    objects = ObjectStore(config.store, config.storage_options)
    manifest = read_manifest(objects)
    held_plans, held_captures = [], []
    if manifest is not None:
        reader = StoreReader(config.store, config.storage_options)
        held_plans, held_captures = reader.plans(), reader.captures()
    bytes_per_row = sum(spec.bytes_per_row for spec in capture_specs(capture))
    planned = plan_corpus(config, source, manifest, bytes_per_row, reporter)
    check_captures(config.store, capture, held_captures)
    plan = planned.plan
    reporter.stage(
        f"plan: {plan.n_examples:,} examples, {plan.n_tokens:,} tokens are {plan.n_rows:,} rows "
        f"({plan.n_tokens / plan.n_rows:.2f} tokens a row), {len(plan.units)} units, "
        f"{plan.n_rows * bytes_per_row / 1e6:,.0f} MB of vectors before compression"
    )
    write_plan(objects, planned, manifest, held_plans)
    reader = StoreReader(config.store, config.storage_options)
    capture = create_capture(objects, capture, n_units=len(plan.units), chunking=reader.manifest.chunking)
    spec = WorkerSpec(
        store=config.store,
        plan=plan.name,
        capture=capture,
        source=source,
        device=config.device,
        allow_nonfinite=config.allow_nonfinite,
        storage_options=dict(config.storage_options),
    )
    done = receipts.committed(objects, capture.capture)
    pending = [unit.number for unit in plan.units if unit.number not in done]
    result = _run_units(config, spec, pending, len(plan.units), reporter)
    report = ExtractReport(
        store=config.store,
        plan=plan.name,
        capture=capture.capture,
        examples=plan.n_examples,
        skipped=len(plan.skipped),
        tokens=plan.n_tokens,
        rows=plan.n_rows,
        units=len(plan.units),
        units_done_before=len(plan.units) - len(pending),
        units_done_now=len(result.receipts),
        units_failed=len(result.errors),
        bytes=sum(receipt.bytes for receipt in result.receipts),
        seconds=round(result.seconds, 3),
        executor=result.executor,
    )
    if result.errors:
        raise ExtractionError(
            f"{len(result.errors)} of {report.units} units failed, the others are stored "
            f"(SELECT unit, error FROM units WHERE error IS NOT NULL); the first: {result.errors[0]}"
        )
    return report


@dataclass(frozen=True, slots=True)
class _UnitResults:
    receipts: list[Receipt]
    errors: list[str]
    seconds: float
    executor: str


def _run_units(
    config: ExtractConfig, spec: WorkerSpec, pending: Sequence[int], total: int, reporter: Reporter
) -> _UnitResults:
    done_before = total - len(pending)
    if not pending:
        reporter.stage(f"extract: all {total} units are stored already, nothing to do")
        return _UnitResults([], [], 0.0, "none")
    executor = choose_executor(config)
    resumed = f", {done_before} stored already" if done_before else ""
    reporter.stage(f"extract: {len(pending)} units{resumed}, {executor.description}")
    found: list[Receipt] = []
    errors: list[str] = []
    tokens = 0
    begun = time.monotonic()

    def on_done(outcome: UnitOutcome) -> None:
        nonlocal tokens
        if outcome.receipt is not None:
            found.append(outcome.receipt)
            tokens += outcome.receipt.n_tokens
        else:
            errors.append(outcome.error or f"unit {outcome.unit} failed")
            reporter.notice(errors[-1])
        reporter.advance(f" {tokens / max(time.monotonic() - begun, 1e-9):,.0f} tokens/s")

    reporter.begin("extract", total, done_before)
    try:
        executor.run(spec, pending, on_done)
    except InterruptedRunError:
        kept = len(receipts.committed(ObjectStore(config.store, config.storage_options), spec.capture.capture))
        raise InterruptedRunError(
            f"interrupted: {kept} of {total} units are stored; run the same command again to go on"
        ) from None
    finally:
        reporter.end()
    return _UnitResults(found, errors, time.monotonic() - begun, executor.description)


def choose_executor(config: ExtractConfig) -> Executor:
    """Return the executor that the configuration asks for; `auto` is Ray where RAY_ADDRESS names a cluster."""
    wants_ray = config.executor == "ray" or (config.executor == "auto" and bool(os.environ.get("RAY_ADDRESS")))
    if not wants_ray:
        return LocalExecutor()
    from cliffstore.run.ray_executor import RayExecutor

    return RayExecutor(config.actors)


def check_captures(url: str, capture: CaptureDocument, held: Sequence[CaptureDocument]) -> None:
    """Raise `StoreError` where the alias belongs to another model, or another capture has one of the arrays."""
    for other in (one for one in held if one.alias == capture.alias and one.capture != capture.capture):
        if _model_key(other) != _model_key(capture):
            raise StoreError(
                f"store {url}: model alias {capture.alias!r} belongs to another model or dtype ({other.model.name}, "
                f"{other.dtype}): give another --model-alias"
            )
        taken = {(one.site, one.layer) for one in other.arrays} & {(one.site, one.layer) for one in capture.arrays}
        if taken:
            layers = compact_ranges(sorted({layer for _, layer in taken}))
            raise StoreError(
                f"store {url} has layers {layers} of these sites already (capture {other.capture}): "
                "ask for the other layers with --layers, or for exactly the same ones to go on"
            )


def _model_key(capture: CaptureDocument) -> tuple[str | None, ...]:
    model = capture.model
    return (model.config_digest, model.weights_digest, model.revision, capture.dtype)


def _new_capture(config: ExtractConfig, source: ModelSource, arrays: Sequence[ArrayIdentity]) -> CaptureDocument:
    dtype = source.dtype if config.dtype == "auto" else config.dtype
    if dtype not in STORED_DTYPE:
        raise ModelError(f"model {config.model} is in {dtype}, which is not stored: choose one with --dtype")
    device = choose_device(config.device).type
    document = CaptureDocument(
        capture="",
        alias=config.model_alias,
        model=source.identity,
        arrays=list(arrays),
        dtype=cast(Dtype, dtype),
        batch_tokens=config.batch_tokens or _BATCH_TOKENS.get(device, _BATCH_TOKENS_ACCELERATOR),
        cliffstore_version=__version__,
    )
    named: Mapping[str, object] = {
        "alias": document.alias,
        "model": _model_key(document),
        "arrays": [array.model_dump() for array in document.arrays],
    }
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    return document.model_copy(update={"capture": f"capture-{digest[:12]}"})
