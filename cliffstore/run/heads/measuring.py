"""A knock-out measurement: its parts are handed to an executor, and their pieces become figures.

Pieces are read again in the order of the parts, also those of this very run: so it makes no difference to a bit which
of them an earlier run has left.

Legend: E examples, X figures, H heads, W width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cliffstore.analyze.example_means import ExampleMeans, Means
from cliffstore.errors import ExtractionError, InterruptedRunError
from cliffstore.model.knockout_hooks import Heads
from cliffstore.model.undisturbed import fit_together
from cliffstore.run.executor import Executor, UnitOutcome
from cliffstore.run.heads.choices import layers_before
from cliffstore.run.heads.knocking import Ability, KnockoutJob, KnockoutSpec, KnockoutWorker, MeanZ
from cliffstore.run.heads.parts import PASSES, parts_of
from cliffstore.run.heads.pieces import digest_of, read_piece
from cliffstore.run.heads.prompts import Chosen, check_lengths, read_units
from cliffstore.run.progress import Piece, Reporter
from cliffstore.store import layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

if TYPE_CHECKING:
    from cliffstore.run.heads.ablate import AblateSettings

_CHECKED = 4
"""Choices of heads that are compared with whole forward passes."""
_CHECKED_PROMPTS = 2
"""Prompts that they are compared on, where prompts go together: what branches off a stem is compared, too."""


@dataclass(slots=True)
class Measurement:
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
