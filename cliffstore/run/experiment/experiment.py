"""`cliffstore heads experiment`: are the heads that a trace blames those that matter, and for nothing else?

Half of the harmful prompts are traced, the heads with the most negative shares are switched off on the other half and
on benign prompts, beside random heads of the same layers. What each example gives under one condition is one piece in
the store, under a digest of all that bears on it: a run that was cut off goes on, and a further share or random set
costs no more than itself. When all pieces are there they become the table and its document, which vouches for them.

Cost: a forward pass over all examples for every condition; those that write text generate besides, which is most of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

import pyarrow as pa

from cliffstore.config import check_name
from cliffstore.corpus.template import Renderer, tokenizer_digest
from cliffstore.errors import ConfigError
from cliffstore.model.identity import ModelSource
from cliffstore.model.loader import load_tokenizer
from cliffstore.run.experiment.conditions import (
    conditions_of,
    interventions_of,
    negative_heads,
)
from cliffstore.run.experiment.examples import (
    ChosenExamples,
    ExampleLine,
    choose,
    read_lines,
    renderer_of,
    with_text,
    without_thinking,
)
from cliffstore.run.experiment.openers import check_apart, first_tokens
from cliffstore.run.experiment.settings import (
    BENIGN,
    FIXED,
    HARMFUL,
    REGENERATED,
    Condition,
    ExperimentReport,
    ExperimentSettings,
    Thinking,
)
from cliffstore.run.experiment.table import PIECE, Found, rows_of
from cliffstore.run.experiment.work import Work, facts_of, write
from cliffstore.run.heads.results import read_heads
from cliffstore.run.heads.shares import passes_of
from cliffstore.run.heads.trace import TraceSettings, trace_heads
from cliffstore.run.origins import Origins, source_of_probe
from cliffstore.run.progress import Piece, Reporter
from cliffstore.run.tokenizers import check_tokens
from cliffstore.schema import ExperimentDocument, HeadsDocument, ProbeDocument
from cliffstore.store import documents, layout, tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights, read_probe


def run_experiment(
    catalog: Catalog, settings: ExperimentSettings, origins: Origins, reporter: Reporter
) -> tuple[ExperimentReport, list[Found], ChosenExamples]:
    """Run an experiment, or what is missing of it. See `Store.experiment_heads`."""
    objects = catalog.reader.objects
    check_name(settings.name, "name of an experiment")
    probe, weights = read_probe(objects, settings.probe)
    chosen = choose(catalog, settings)
    source = source_of_probe(probe, origins, reporter)
    tokenizer = load_tokenizer(source)
    renderer = renderer_of(catalog.reader.manifest, tokenizer)
    check_tokens(catalog.reader.url, catalog.reader.manifest, tokenizer_digest(tokenizer), source.identity.name)
    lines = list(read_lines(catalog, chosen.measured))
    if settings.benign_text != "response":
        lines = with_text(catalog, lines, settings.benign_text, tokenizer)
    lines = _benign_texts(lines, chosen, settings, reporter)
    openers = (first_tokens(tokenizer, settings.refusal_openers), first_tokens(tokenizer, settings.compliance_openers))
    check_apart(*openers)
    ways = _ways_of_thinking(lines, renderer, settings, reporter)
    held = _held(objects, settings)
    document, table = _trace(catalog, probe, chosen, settings, origins, reporter, keep=held is not None)
    negative = negative_heads(document.name, table)
    identity = source.identity
    conditions = conditions_of(negative, identity.n_layers, identity.n_heads, settings, reporter.notice)
    facts = facts_of(probe, source, chosen, settings, openers, lines)
    work = Work(catalog, settings, conditions, ways, facts)
    begun = time.monotonic()
    if held is not None and held.inputs == work.digest:
        reporter.stage(f"experiment: {settings.name} is there already, with the same settings on the same examples")
        rows = tables.read(objects, layout.experiment_table(settings.name)).to_pylist()
        return ExperimentReport(settings.name, held.model_dump(), rows, len(work.all), 0, 0.0), work.found(), chosen
    if held is not None and not settings.replace:
        raise ConfigError(
            f"experiment {settings.name!r} is there already, with other settings or examples: choose another --name, "
            "or pass --replace"
        )
    pending = work.pending()
    if pending:
        _tell(work, len(pending), chosen, settings, openers, reporter)
        without = without_thinking(catalog, lines, renderer) if REGENERATED in ways else lines
        _measure(work, pending, lines, without, probe, weights, source, renderer, openers, origins, reporter)
    found = work.found()
    parts = {HARMFUL: chosen.harmful, BENIGN: chosen.benign}
    rows = rows_of(found, parts, settings)
    new = write(rows, settings, work, probe, document, chosen, openers, source, ways, lines)
    report = ExperimentReport(
        settings.name, new.model_dump(), rows, len(work.all), len(pending), round(time.monotonic() - begun, 3)
    )
    return report, found, chosen


def _held(objects: ObjectStore, settings: ExperimentSettings) -> ExperimentDocument | None:
    try:
        return documents.read(objects, ExperimentDocument, layout.experiment_document(settings.name))
    except FileNotFoundError:
        return None


def _benign_texts(
    lines: Sequence[ExampleLine], chosen: ChosenExamples, settings: ExperimentSettings, reporter: Reporter
) -> list[ExampleLine]:
    """Return examples of which only benign ones have a text to measure; say how many have none."""
    benign = set(chosen.benign)
    without = sum(line.example in benign and not len(line.answer_N) for line in lines)
    if without:
        said = f"{without} of {len(benign)} benign examples have no {settings.benign_text}"
        rest = "perplexity is of the others" if without < len(benign) else "there is no perplexity"
        reporter.notice(f"{said}: {rest} (another column: --benign-text)")
    return [line if line.example in benign else replace(line, answer_N=line.answer_N[:0]) for line in lines]


def _ways_of_thinking(
    lines: Sequence[ExampleLine], renderer: Renderer, settings: ExperimentSettings, reporter: Reporter
) -> tuple[Thinking, ...]:
    """Return how thinking comes about; a model that does not think can regenerate none."""
    if renderer.thinks:
        without = sum(not line.has_thinking for line in lines)
        if without and settings.thinking != REGENERATED:
            reporter.notice(
                f"{without} of {len(lines)} examples have no thinking: where it is fixed, their score is the one "
                "before any, and what the model thinks counts among --new-tokens"
            )
        return (FIXED, REGENERATED) if settings.thinking == "both" else (settings.thinking,)
    if settings.thinking == REGENERATED:
        raise ConfigError("this model has no thinking markers, so it regenerates no thinking: say --thinking fixed")
    if settings.thinking == "both":
        reporter.notice("this model has no thinking markers: thinking is not regenerated")
    return (FIXED,)


def _trace(
    catalog: Catalog,
    probe: ProbeDocument,
    chosen: ChosenExamples,
    settings: ExperimentSettings,
    origins: Origins,
    reporter: Reporter,
    *,
    keep: bool,
) -> tuple[HeadsDocument, pa.Table]:
    """Return the trace that was named, or one of the examples that are traced: made now unless it is there.

    Parameters
    ----------
    keep : whether a finished experiment of this name is there, whose trace is not to be replaced unasked
    """
    objects = catalog.reader.objects
    if settings.trace is not None:
        document, table = read_heads(objects, settings.trace)
        if document.kind != "direct" or document.probe_digest != probe.digest:
            raise ConfigError(f"{settings.trace!r} is no trace of probe {probe.name!r} as it is: name one with --trace")
        reporter.notice(
            f"heads are those of trace {settings.trace!r} ({document.examples} examples where "
            f"{document.where or 'true'}): whether these are others than those measured here is not checked"
        )
        return document, table
    name, where = f"{settings.name}-trace", f"example IN ({', '.join(map(str, chosen.traced))})"
    if objects.exists(layout.heads_document(name)):
        document, table = read_heads(objects, name)
        if document.kind == "direct" and (document.probe_digest, document.where) == (probe.digest, where):
            return document, table
        if not settings.replace:
            raise ConfigError(
                f"figures of heads {name!r} are there already, of other examples or another probe"
                f"{', as is the experiment' if keep else ''}: choose another --name, or pass --replace"
            )
    trace_heads(
        catalog,
        TraceSettings(
            probe.name,
            name,
            where,
            resamples=settings.resamples,
            level=settings.level,
            seed=settings.seed,
            replace=True,
        ),
        origins,
        reporter,
    )
    return read_heads(objects, name)


def _tell(
    work: Work,
    n_pending: int,
    chosen: ChosenExamples,
    settings: ExperimentSettings,
    openers: Sequence[Mapping[str, int]],
    reporter: Reporter,
) -> None:
    writing = sum(one.generates for _, one in work.all)
    done = len(work.all) - n_pending
    before = f", {done} of them measured before" if done else ""
    reporter.stage(
        f"experiment: {len(work.all)} conditions{before}, on {len(chosen.harmful)} harmful and {len(chosen.benign)} "
        f"benign examples; {len(chosen.traced)} others were traced"
    )
    if settings.random_generate < settings.random:
        reporter.notice(
            f"{writing} of {len(work.all)} conditions write text: of {settings.random} random sets a share, "
            f"{settings.random_generate} do; the others are scored, with fixed thinking only (--random-generate)"
        )
    for kind, asked, found in zip(("refusals", "answers"), (settings.refusal_openers, settings.compliance_openers),
                                  openers, strict=True):  # fmt: skip
        if missing := [one for one in asked if one not in found]:
            reporter.notice(f"openers of {kind} that this tokenizer does not know are left out: {', '.join(missing)}")


def _measure(
    work: Work,
    pending: Sequence[tuple[Thinking, Condition]],
    lines: Sequence[ExampleLine],
    without: Sequence[ExampleLine],
    probe: ProbeDocument,
    weights: ProbeWeights,
    source: ModelSource,
    renderer: Renderer,
    openers: Sequence[Mapping[str, int]],
    origins: Origins,
    reporter: Reporter,
) -> None:
    """Write the pieces that are missing."""
    from cliffstore.run.experiment.model import ExperimentModel

    reader = work.catalog.reader
    model = ExperimentModel(
        source, probe, weights, renderer, work.settings, device=origins.device,
        products=passes_of(reader, probe).products, refusing=sorted(set(openers[0].values())),
        complying=sorted(set(openers[1].values())),
    )  # fmt: skip
    with _progress(reporter, len(pending) * len(lines)):
        for way, condition in pending:
            model.change(interventions_of(condition, work.settings))
            measured = model.measure(
                without if way == REGENERATED else lines,
                way,
                generates=condition.generates,
                advance=lambda n: reporter.advance(Piece(noun="examples", count=n)),
            )
            table = pa.Table.from_pylist([asdict(one) for one in measured], schema=PIECE)
            reader.objects.put(work.key_of(way, condition), tables.encode(table, {"condition": condition.title}))


@contextmanager
def _progress(reporter: Reporter, total: int) -> Iterator[None]:
    reporter.begin("experiment", total)
    try:
        yield
    finally:
        reporter.end()
