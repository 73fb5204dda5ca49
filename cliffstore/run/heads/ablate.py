"""Knock-outs over a corpus: how a probe's score at the decision changes when a head is switched off.

Prompts are worked through in parts, by workers that have the model, each prompt with all heads (see `model.knockout`).
What a part gives is kept as a piece beside the result until that is written, so a run that was cut off goes on, and
ends with the bytes of a run that nobody disturbed (see `measuring`). A shortlist is measured head by head, as a set,
and beside random sets of as many heads in the same layers.

Effects are those of the model as it is: norms are not frozen, later blocks answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cliffstore import __version__
from cliffstore.config.values import check_level
from cliffstore.errors import ConfigError, StoreError
from cliffstore.run.heads import results
from cliffstore.run.heads.choices import Wish, choose_heads
from cliffstore.run.heads.effects import Facts, knockout_rows, set_figures
from cliffstore.run.heads.knocking import KnockoutSpec
from cliffstore.run.heads.measuring import Measurement
from cliffstore.run.heads.pieces import clear_pieces
from cliffstore.run.heads.prompts import ABLATED, Ablated, check_size, check_unchanged, choose_examples
from cliffstore.run.heads.shares import passes_of
from cliffstore.run.origins import Origins, source_of_probe
from cliffstore.run.placement import check_placement, choose_executor
from cliffstore.run.progress import Reporter
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

Ablation = Literal["zero", "mean"]


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
        check_level(self.level)
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
        work = Measurement(catalog, settings, chosen, choices.all, spec, executor, reporter)
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
