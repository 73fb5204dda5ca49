"""Knock-outs over a corpus: how a probe's score at the decision changes when a head is switched off.

Prompts are worked through in parts, by workers that have the model, each prompt with all heads (see `model.knockout`).
What a part gives is kept as a piece beside the result until that is written, so a run that was cut off goes on, and
ends with the bytes of a run that nobody disturbed (see `pieces`). A shortlist is measured head by head, as a set, and
beside random sets of as many heads in the same layers.

Effects are those of the model as it is: norms are not frozen, later blocks answer.

Legend: E examples, X figures, H heads, W width of a head.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from cliffstore import __version__
from cliffstore.analyze.example_means import ExampleMeans, Means
from cliffstore.errors import ConfigError, ExtractionError, InterruptedRunError, StoreError
from cliffstore.model.knockout_hooks import Heads
from cliffstore.model.undisturbed import fit_together
from cliffstore.run.executor import Executor, UnitOutcome
from cliffstore.run.heads import results
from cliffstore.run.heads.choices import Wish, choose_heads, layers_before
from cliffstore.run.heads.effects import Facts, knockout_rows, set_figures
from cliffstore.run.heads.knocking import Ability, KnockoutJob, KnockoutSpec, KnockoutWorker, MeanZ
from cliffstore.run.heads.parts import PASSES, parts_of
from cliffstore.run.heads.pieces import clear_pieces, digest_of, read_piece
from cliffstore.run.heads.prompts import (
    ABLATED,
    Ablated,
    Chosen,
    check_lengths,
    check_size,
    check_unchanged,
    choose_examples,
    read_units,
)
from cliffstore.run.heads.shares import passes_of
from cliffstore.run.origins import Origins, source_of_probe
from cliffstore.run.placement import check_placement, choose_executor
from cliffstore.run.progress import Piece, Reporter
from cliffstore.store import layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe
from cliffstore.store.reader import StoreReader

Ablation = Literal["zero", "mean"]
_CHECKED = 4
"""Choices of heads that are compared with whole forward passes."""
_CHECKED_PROMPTS = 2
"""Prompts that they are compared on, where prompts go together: what branches off a stem is compared, too."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where heads are measured: see `run.placement`."""

    executor: str
    actors: int | None
    device: str
    gpus_per_actor: int = 1


@dataclass(frozen=True, slots=True)
class AblateSettings:
    """What to switch off. See `Store.ablate_heads`."""

    probe: str
    name: str
    where: str | None = None
    group_by: str | None = None
    heads: str | None = None
    shortlist: int | None = None
    trace: str | None = None
    positions: Ablated = "template"
    ablation: Ablation = "zero"
    controls: int = 20
    resamples: int = 1_000
    level: float = 0.95
    seed: int = 0
    replace: bool = False
    executor: Literal["auto", "local", "ray"] = "auto"
    actors: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in ("auto", "local", "ray"):
            raise ConfigError(f"executor {self.executor!r}: choose one of auto, local, ray")
        if self.actors is not None and self.actors < 1:
            raise ConfigError(f"actors {self.actors}: at least 1")
        if self.positions not in ABLATED:
            raise ConfigError(f"positions {self.positions!r}: choose one of {', '.join(ABLATED)}")
        if self.ablation not in ("zero", "mean"):
            raise ConfigError(f"ablation {self.ablation!r}: choose zero or mean")
        if self.heads is not None and self.shortlist is not None:
            raise ConfigError("heads and shortlist both say which heads: give one of them")
        if self.trace is not None and self.shortlist is None:
            raise ConfigError("trace says what a shortlist is taken from: say --shortlist too, or leave it out")
        if not 0 < self.level < 1:
            raise ConfigError(f"level {self.level}: say a share between 0 and 1, such as 0.95")
        if min(self.resamples, self.controls) < 0 or (self.shortlist is not None and self.shortlist < 1):
            raise ConfigError("resamples and controls must not be negative, and a shortlist has at least one head")


@dataclass(frozen=True, slots=True)
class AblateReport:
    """What was switched off, and what came of it.

    Attributes
    ----------
    choices : sets of heads that were measured, single heads among them
    done_before : examples that an earlier run had measured
    score : mean as it is
    shared : whether prefixes were held once; if not, every line was a whole forward pass
    set_effect, control_effects : of the shortlist as a set, and of random sets; None where there is no set
    """

    name: str
    probe: str
    examples: int
    done_before: int
    positions: str
    ablation: str
    heads: int
    choices: int
    score: float
    shared: bool
    set_effect: float | None
    control_effects: tuple[float, float, float] | None
    executor: str
    seconds: float


def ablate_heads(catalog: Catalog, settings: AblateSettings, origins: Origins, reporter: Reporter) -> AblateReport:
    """Measure what each head does to a probe's score. See `Store.ablate_heads`."""
    reader, place = catalog.reader, Place(settings.executor, settings.actors, origins.device)
    results.check_free(reader.objects, settings.name, replace=settings.replace)
    check_placement(place)
    probe, weights = read_probe(reader.objects, settings.probe)
    check_unchanged(probe)
    wish = Wish(settings.heads, settings.shortlist, settings.trace, settings.controls, settings.seed)
    choices = choose_heads(reader.objects, probe, wish, reporter.notice)
    chosen = choose_examples(catalog, settings.where, settings.group_by)
    check_size((len(choices.all) + 1) * len(chosen.groups), settings.resamples)
    source = source_of_probe(probe, origins, reporter)
    begun = time.monotonic()
    spec = KnockoutSpec(source, probe, weights, origins.device, passes_of(reader, probe).products)
    executor = choose_executor(place)
    try:
        executor.start(spec)
        work = _Work(catalog, settings, chosen, choices.all, spec, executor, reporter)
        finished, done_before = work.measure()
    finally:
        executor.close()
    facts = Facts(settings.probe, settings.positions, settings.ablation, settings.resamples > 0)
    score = float(np.average([one.mean_X[-1] for one in finished], weights=[one.n_X[-1] for one in finished]))
    results.write_heads(
        reader.objects,
        [
            row
            for group, one in zip(chosen.groups, finished, strict=True)
            for row in knockout_rows(one, choices, facts, group)
        ],
        {
            "name": settings.name,
            "kind": "knockout",
            "probe": probe.name,
            "probe_digest": probe.digest,
            "capture": probe.capture,
            "site": probe.site,
            "layer": probe.layer,
            "source": "model",
            "where": settings.where,
            "group_by": settings.group_by,
            "positions": settings.positions,
            "ablation": settings.ablation,
            "heads": None if choices.is_all else [f"{layer}:{head}" for layer, head in choices.single],
            "controls": len(choices.controls),
            "resamples": settings.resamples,
            "level": settings.level,
            "seed": settings.seed,
            "examples": len(chosen.examples_E),
            "score": score,
            "cliffstore_version": __version__,
        },
    )
    try:
        clear_pieces(reader.objects, settings.name)
    except StoreError as error:  # of one who may not remove anything: the result is there all the same
        reporter.notice(f"pieces of {settings.name!r} are no longer needed, and cannot be removed: {error}")
    set_effect, control_effects = set_figures(finished, choices)
    return AblateReport(
        name=settings.name,
        probe=probe.name,
        examples=len(chosen.examples_E),
        done_before=done_before,
        positions=settings.positions,
        ablation=settings.ablation,
        heads=len(choices.single),
        choices=len(choices.all),
        score=score,
        shared=work.shared,
        set_effect=set_effect,
        control_effects=control_effects,
        executor=executor.description,
        seconds=round(time.monotonic() - begun, 3),
    )


@dataclass(slots=True)
class _Work:
    """What is measured, and who does it."""

    catalog: Catalog
    settings: AblateSettings
    chosen: Chosen
    choices: Sequence[Heads]
    spec: KnockoutSpec
    executor: Executor[Any]
    reporter: Reporter
    shared: bool = True
    errors: list[str] = field(default_factory=list)

    @property
    def reader(self) -> StoreReader:
        return self.catalog.reader

    def measure(self) -> tuple[list[Means], int]:
        """Return the figures of each group, and how many examples an earlier run had measured."""
        settings = self.settings
        ability: Ability = self.executor.ask(KnockoutWorker.ability)
        check_lengths(self.catalog, self.chosen.examples_E.tolist(), ability.whole_below)
        self.shared = ability.shared and self._may_share(ability)
        job = self._job(ability)
        means = None
        if settings.ablation == "mean":
            self._run(job, "mean of z")
            means = self._mean_z(job)
            facts = {layer: one.tolist() for layer, one in means.items()}
            job = replace(job, means=means, facts={**job.facts, "means": digest_of(facts)})
        choices = tuple(self.choices)
        job = replace(job, choices=choices, facts={**job.facts, "choices": digest_of(choices)})
        done_before = self._run(job, "heads")
        return self._figures(job), done_before

    def _may_share(self, ability: Ability) -> bool:
        """Return whether lines that share prefixes agree with whole passes; tell the user where they do not."""
        settings, choices = self.settings, self.choices
        _, examples = next(read_units(self.reader, self.chosen))
        prompts = [one.prompt(settings.positions) for one in examples[:_CHECKED_PROMPTS]]
        if not fit_together(prompts, ability.tokens):
            del prompts[1:]
        some = [choices[at] for at in np.unique(np.linspace(0, len(choices) - 1, _CHECKED).astype(int))]
        reason: str | None = self.executor.ask(KnockoutWorker.check, prompts, some)
        if reason is not None:
            self.reporter.notice(
                f"prefixes are not shared, every head takes whole forward passes, which is slower: {reason}"
            )
        return reason is None

    def _job(self, ability: Ability) -> KnockoutJob:
        """Return the job that sums z."""
        settings, units = self.settings, read_units(self.reader, self.chosen)
        if not ability.shared:
            self.reporter.notice(
                "the model does not let its attention be replaced: every head takes whole forward passes"
            )
        fit = partial(fit_together, tokens=ability.tokens) if self.shared else lambda prompts: len(prompts) == 1
        parts = tuple(parts_of(units, settings.positions, len(self.choices), fit, PASSES * ability.tokens))
        return KnockoutJob(
            store=self.reader.url,
            name=settings.name,
            parts=parts,
            positions=settings.positions,
            shared=self.shared,
            facts={**self.spec.facts, "positions": settings.positions, "shared": self.shared},
            storage_options=dict(self.reader.objects.storage_options),
        )

    def _run(self, job: KnockoutJob, what: str) -> int:
        """Measure the parts that have no piece yet; return how many examples an earlier run had measured.

        Raises
        ------
        ExtractionError
            Some parts could not be measured; all others are kept.
        InterruptedRunError
            Ctrl-C; the same call goes on from there.
        """
        total, settings = len(self.chosen.examples_E), self.settings
        pending = _pending(self.reader.objects, job)
        done = total - sum(len(job.parts[number].examples) for number in pending)
        before = f", {done:,} of them measured before" if done else ""
        if job.choices:
            self.reporter.stage(
                f"heads: {len(self.choices):,} choices of heads, {settings.ablation} at {settings.positions} "
                f"positions, {total:,} examples{before}, {self.executor.description}"
            )
        self.reporter.begin(what, total, done)
        try:
            if pending:
                self.executor.run(job, pending, partial(self._take, job), self.reporter.notice)
        except InterruptedRunError:
            kept = total - sum(len(job.parts[number].examples) for number in _pending(self.reader.objects, job))
            raise InterruptedRunError(
                f"interrupted: {kept:,} of {total:,} examples are measured ({what}) and kept; run the same command "
                "again to go on"
            ) from None
        finally:
            self.reporter.end()
        if self.errors:
            raise ExtractionError(
                f"{len(self.errors)} of {len(job.parts)} parts of the examples failed, the others are kept: the same "
                f"command goes on with them; the first: {self.errors[0]}"
            )
        return done

    def _take(self, job: KnockoutJob, outcome: UnitOutcome) -> None:
        """Tell how one part ended."""
        done, count = outcome.report, len(job.parts[outcome.unit].examples)
        if done is None:
            self.errors.append(outcome.error or f"part {outcome.unit} failed")
            self.reporter.notice(self.errors[-1])
        else:
            for notice in done.notices:
                self.reporter.notice(notice)
        n_tokens = done.n_tokens if done is not None else 0
        self.reporter.advance(Piece(n_tokens, failed=done is None, noun="examples", count=count))

    def _mean_z(self, job: KnockoutJob) -> MeanZ:
        """Return z of each layer's heads, averaged over the positions that are ablated of all examples."""
        layers = layers_before(self.spec.probe)
        sums = sum(read_piece(self.reader.objects, job.key_of(part), layers) for part in job.parts)
        n_heads = self.spec.probe.model.n_heads
        assert isinstance(sums, np.ndarray)
        return {layer: (sums[layer, :-1] / sums[layer, -1]).reshape(n_heads, -1).astype(np.float32) for layer in layers}

    def _figures(self, job: KnockoutJob) -> list[Means]:
        """Return the figures of each group, from the pieces of all parts in their order."""
        settings, chosen = self.settings, self.chosen
        sums = [
            ExampleMeans(len(job.choices) + 1, resamples=settings.resamples, level=settings.level, seed=settings.seed)
            for _ in chosen.groups
        ]
        for part in job.parts:
            figures_EX = read_piece(self.reader.objects, job.key_of(part), part.examples)
            ordinals_E = np.array(part.examples, dtype=np.int64)
            group_E = chosen.of(ordinals_E)
            for group in np.unique(group_E):
                sums[group].add(ordinals_E[group_E == group], figures_EX[group_E == group])
        return [one.finish() for one in sums]


def _pending(objects: ObjectStore, job: KnockoutJob) -> list[int]:
    """Return the parts that have no piece."""
    there = set(objects.list(layout.heads_pieces(job.name)))
    return [number for number, part in enumerate(job.parts) if job.key_of(part) not in there]
