"""Knock-outs over a corpus: how a probe's score at the decision changes when a head is switched off.

Prompts are worked through one after the other, in this process, each with all heads (see `model.knockout`); effects are
added to the means and forgotten. A shortlist is measured head by head, as a set, and beside random sets of as many
heads in the same layers. An interrupted run is begun again: nothing of it is kept.

Effects are those of the model as it is: norms are not frozen, later blocks answer.

Legend: E examples, V choices of heads, H heads, W width of a head, K positions that are ablated.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cliffstore import __version__
from cliffstore.analyze.example_means import ExampleMeans
from cliffstore.errors import ConfigError, ExtractionError
from cliffstore.model.identity import ModelSource
from cliffstore.model.knockout import Knockouts
from cliffstore.model.knockout_hooks import Heads
from cliffstore.model.loader import load_model
from cliffstore.model.products import use_float32_products
from cliffstore.model.sites import arrays_of
from cliffstore.model.undisturbed import Prompt
from cliffstore.run import executor
from cliffstore.run.heads import results
from cliffstore.run.heads.choices import Wish, choose_heads
from cliffstore.run.heads.effects import Facts, knockout_rows, set_figures
from cliffstore.run.heads.prompts import (
    ABLATED,
    Ablated,
    Chosen,
    check_lengths,
    check_size,
    check_unchanged,
    choose_examples,
    id_of,
    read_units,
)
from cliffstore.run.heads.shares import passes_of
from cliffstore.run.origins import Origins, source_of_probe
from cliffstore.run.progress import Piece, Reporter
from cliffstore.schema import ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import ProbeWeights, read_probe
from cliffstore.store.reader import StoreReader

Ablation = Literal["zero", "mean"]
TOKENS = {"cpu": 2_048, "accelerator": 16_384}
"""Positions of all lines of a pass."""
_CHECKED = 4
"""Choices of heads that are compared with whole forward passes."""
_CHECKED_PROMPTS = 2
"""Prompts that they are compared on, where prompts go together: what branches off a stem is compared, too."""
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest difference to whole passes, of the largest score or effect among those compared."""


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

    def __post_init__(self) -> None:
        if self.positions not in ABLATED:
            raise ConfigError(f"positions {self.positions!r}: choose one of {', '.join(ABLATED)}")
        if self.ablation not in ("zero", "mean"):
            raise ConfigError(f"ablation {self.ablation!r}: choose zero or mean")
        if self.heads is not None and self.shortlist is not None:
            raise ConfigError("heads and shortlist both say which heads: give one of them")
        if self.trace is not None and self.shortlist is None:
            raise ConfigError(f"trace {self.trace!r} says where a shortlist is from: give the shortlist, too")
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
    score : mean as it is
    shared : whether prefixes were held once; if not, every line was a whole forward pass
    set_effect, control_effects : of the shortlist as a set, and of random sets; None where there is no set
    """

    name: str
    probe: str
    examples: int
    positions: str
    ablation: str
    heads: int
    choices: int
    score: float
    shared: bool
    set_effect: float | None
    control_effects: tuple[float, float, float] | None
    seconds: float


def ablate_heads(catalog: Catalog, settings: AblateSettings, origins: Origins, reporter: Reporter) -> AblateReport:
    """Measure what each head does to a probe's score. See `Store.ablate_heads`."""
    reader = catalog.reader
    results.check_free(reader.objects, settings.name, replace=settings.replace)
    probe, weights = read_probe(reader.objects, settings.probe)
    check_unchanged(probe)
    wish = Wish(settings.heads, settings.shortlist, settings.trace, settings.controls, settings.seed)
    choices = choose_heads(reader.objects, probe, wish, reporter.notice)
    chosen = choose_examples(catalog, settings.where, settings.group_by)
    check_size((len(choices.all) + 1) * len(chosen.groups), settings.resamples)
    source = source_of_probe(probe, origins, reporter)
    begun = time.monotonic()
    model = _load(reader, probe, weights, source, origins)
    check_lengths(catalog, chosen.examples_E.tolist(), model.whole_below)
    _, first = next(_batches(model, _prompts(reader, chosen, settings.positions)))
    _check(model, first[:_CHECKED_PROMPTS], choices.all, probe.dtype, reporter)
    reporter.stage(
        f"heads: {len(choices.all):,} choices of heads, {settings.ablation} at {settings.positions} positions, "
        f"{len(chosen.examples_E):,} examples"
    )
    means = _mean_z(model, reader, chosen, settings.positions, reporter) if settings.ablation == "mean" else None
    sums = [
        ExampleMeans(len(choices.all) + 1, resamples=settings.resamples, level=settings.level, seed=settings.seed)
        for _ in chosen.groups
    ]
    reporter.begin("heads", len(chosen.examples_E))
    for ordinals_M, batch in _batches(model, _prompts(reader, chosen, settings.positions)):
        scored_MV, plain_MV = model.scores(batch, choices.all, means)
        _check_finite(reader, model, ordinals_M, batch, scored_MV, plain_MV, choices.all)
        figures_MX = np.concatenate([scored_MV - plain_MV, plain_MV[:, :1]], axis=1)
        group_M = chosen.of(ordinals_M)
        for group in np.unique(group_M):
            sums[group].add(ordinals_M[group_M == group], figures_MX[group_M == group])
        for prompt in batch:
            reporter.advance(Piece(tokens=len(prompt.token_ids_T), noun="examples"))
    reporter.end()
    finished = [one.finish() for one in sums]
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
    set_effect, control_effects = set_figures(finished, choices)
    return AblateReport(
        name=settings.name,
        probe=probe.name,
        examples=len(chosen.examples_E),
        positions=settings.positions,
        ablation=settings.ablation,
        heads=len(choices.single),
        choices=len(choices.all),
        score=score,
        shared=model.shared,
        set_effect=set_effect,
        control_effects=control_effects,
        seconds=round(time.monotonic() - begun, 3),
    )


def _load(
    reader: StoreReader, probe: ProbeDocument, weights: ProbeWeights, source: ModelSource, origins: Origins
) -> Knockouts:
    import torch

    torch.set_num_threads(executor.available_cpus())
    model = load_model(source, probe.dtype, origins.device)
    if passes_of(reader, probe).products == "float32":
        use_float32_products(model)
    place = "cpu" if model.device.type == "cpu" else "accelerator"
    (array,) = arrays_of(source.identity, [probe.site], [probe.layer])
    return Knockouts(model, source.identity, array, weights.w_D, weights.b, tokens=TOKENS[place])


def _prompts(reader: StoreReader, chosen: Chosen, positions: Ablated) -> Iterator[tuple[int, Prompt]]:
    """Yield ordinal and prompt of each example."""
    for examples in read_units(reader, chosen):
        for one in examples:
            token_ids_T = one.token_ids_T[: one.decision + 1].astype(np.int64)
            yield one.example, Prompt(token_ids_T, one.first_ablated(positions))


def _batches(
    model: Knockouts, prompts: Iterable[tuple[int, Prompt]]
) -> Iterator[tuple[npt.NDArray[np.int64], list[Prompt]]]:
    """Yield neighbours that share a pass, and their ordinals."""
    ordinals: list[int] = []
    batch: list[Prompt] = []
    for ordinal, prompt in prompts:
        if batch and not model.fit_together([*batch, prompt]):
            yield np.array(ordinals, dtype=np.int64), batch
            ordinals, batch = [], []
        ordinals, batch = [*ordinals, ordinal], [*batch, prompt]
    if batch:
        yield np.array(ordinals, dtype=np.int64), batch


def _check(
    model: Knockouts, prompts: Sequence[Prompt], choices: Sequence[Heads], dtype: str, reporter: Reporter
) -> None:
    """Compare some choices on prompts with whole passes; leave sharing, with a notice, where they disagree."""
    if not model.shared:
        reporter.notice("the model does not let its attention be replaced: every head takes whole forward passes")
        return
    some = [choices[at] for at in np.unique(np.linspace(0, len(choices) - 1, _CHECKED).astype(int))]
    try:
        found = np.stack(model.scores(prompts, some))
    except Exception as failure:  # noqa: BLE001  # whatever a model does not take, whole passes are the way out
        reason = " ".join([type(failure).__name__, *str(failure).splitlines()[:1]])[:200]
        found = None
    expected = np.stack(model.by_whole_passes(prompts, some))
    if found is not None:
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1.0))
        if difference <= _TOLERANCE[dtype]:
            return
        reason = f"scores differ by {difference:.1e}"
    model.leave_sharing()
    reporter.notice(f"prefixes are not shared, every head takes whole forward passes, which is slower: {reason}")


def _check_finite(
    reader: StoreReader,
    model: Knockouts,
    ordinals_M: npt.NDArray[np.int64],
    batch: Sequence[Prompt],
    scored_MV: npt.NDArray[np.float64],
    plain_MV: npt.NDArray[np.float64],
    choices: Sequence[Heads],
) -> None:
    """Raise `ExtractionError` where a score is NaN or Inf, as it is or without heads."""
    for what_MV, is_off in ((plain_MV, False), (scored_MV, True)):
        bad = np.argwhere(~np.isfinite(what_MV))
        if len(bad):
            number, choice = bad[0]
            heads = choices[choice] if is_off else ()
            raise ExtractionError(
                f"NaN or Inf at layer {model.nonfinite_layer(batch[number], heads)} in example "
                f"{id_of(reader, int(ordinals_M[number]))!r}"
                + (f" without heads {results.spell_heads(heads)}" if heads else "")
                + ": nothing was written; leave it out with --where"
            )


def _mean_z(
    model: Knockouts, reader: StoreReader, chosen: Chosen, positions: Ablated, reporter: Reporter
) -> dict[int, npt.NDArray[np.float32]]:
    """Return z of each layer's heads, [H, W], averaged over the positions that are ablated of all examples."""
    reporter.begin("mean of z", len(chosen.examples_E))
    sums: dict[int, npt.NDArray[np.float64]] = {}
    count = 0
    for example, prompt in _prompts(reader, chosen, positions):
        for layer, z_KHW in model.z_of(prompt).items():
            if not np.isfinite(z_KHW).all():
                raise ExtractionError(
                    f"NaN or Inf at site z, layer {layer} in example {id_of(reader, example)!r}: nothing was written; "
                    "leave it out with --where"
                )
            sums[layer] = sums.get(layer, 0.0) + z_KHW.sum(axis=0, dtype=np.float64)
        count += len(prompt.token_ids_T) - prompt.first
        reporter.advance(Piece(tokens=len(prompt.token_ids_T), noun="examples"))
    reporter.end()
    return {layer: (one / count).astype(np.float32) for layer, one in sums.items()}
