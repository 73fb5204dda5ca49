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
import pyarrow.compute as pc

from cliffstore import __version__
from cliffstore.analyze.example_means import ExampleMeans, Means
from cliffstore.errors import ConfigError, ProbeError
from cliffstore.model.identity import ModelSource
from cliffstore.model.knockout import Heads, Knockouts, Prompt
from cliffstore.model.loader import load_model
from cliffstore.model.products import use_float32_products
from cliffstore.model.sites import arrays_of
from cliffstore.records import RESID_PRE, Z
from cliffstore.run import executor, heads_results
from cliffstore.run.heads_prompts import ABLATED, Ablated, Chosen, choose_examples, read_units
from cliffstore.run.heads_results import Head
from cliffstore.run.heads_trace import passes_of
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
    heads_results.check_free(reader.objects, settings.name, replace=settings.replace)
    probe, weights = read_probe(reader.objects, settings.probe)
    choices = _choose(reader, probe, settings)
    chosen = choose_examples(catalog, settings.where, settings.group_by)
    source = source_of_probe(probe, origins, reporter)
    begun = time.monotonic()
    model = _load(reader, probe, weights, source, origins)
    prompts = _prompts(reader, chosen, settings.positions)
    _check(model, next(prompts)[1], choices.all, probe.dtype, reporter)
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
        figures_MX = np.concatenate([scored_MV - plain_MV, plain_MV[:, :1]], axis=1)
        group_M = chosen.of(ordinals_M)
        for group in np.unique(group_M):
            sums[group].add(ordinals_M[group_M == group], figures_MX[group_M == group])
        for prompt in batch:
            reporter.advance(Piece(tokens=len(prompt.token_ids_T), noun="examples"))
    reporter.end()
    results = [one.finish() for one in sums]
    score = float(np.average([one.mean_X[-1] for one in results], weights=[one.n_X[-1] for one in results]))
    heads_results.write_heads(
        reader.objects,
        [
            row
            for group, one in zip(chosen.groups, results, strict=True)
            for row in _rows(one, choices, settings, group)
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
    set_effect, control_effects = _set_figures(results, choices)
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


@dataclass(frozen=True, slots=True)
class _Choices:
    """Single heads, then the shortlist as a set (or none), then random sets."""

    single: tuple[Head, ...]
    whole: Heads | None
    controls: tuple[Heads, ...]
    is_all: bool
    n_heads: int

    @property
    def all(self) -> list[Heads]:
        return [*((head,) for head in self.single), *([self.whole] if self.whole else []), *self.controls]


def _choose(reader: StoreReader, probe: ProbeDocument, settings: AblateSettings) -> _Choices:
    if probe.site == Z:
        raise ProbeError("a probe on z reads the heads themselves: switching one off says no more than its weights")
    layers = range(probe.layer + (probe.site != RESID_PRE))
    n_heads = probe.model.n_heads
    every = tuple((layer, head) for layer in layers for head in range(n_heads))
    if not every:
        raise ProbeError("a probe on resid_pre of layer 0 reads embeddings, before any head")
    if settings.heads is None and settings.shortlist is None:
        return _Choices(every, None, (), True, n_heads)
    given = settings.heads
    listed = heads_results.parse_heads(given) if given is not None else _from_trace(reader, settings)
    wrong = [head for head in listed if head not in every]
    if wrong:
        raise ConfigError(
            f"head {heads_results.spell_heads(wrong[:1])} cannot change what probe {probe.name!r} reads: heads are "
            f"0-{n_heads - 1} of layers 0-{layers[-1]}"
        )
    whole = tuple(sorted(listed))
    controls = random_sets(whole, n_heads, settings.controls, settings.seed)
    return _Choices(tuple(listed), whole, controls, False, n_heads)


def _from_trace(reader: StoreReader, settings: AblateSettings) -> list[Head]:
    """Return the heads with the most negative shares of a trace at the decision."""
    assert settings.shortlist is not None
    document, table = heads_results.read_heads(reader.objects, settings.trace or f"{settings.probe}-direct")
    if document.kind != "direct" or document.probe != settings.probe:
        raise ConfigError(f"{document.name!r} is no trace of probe {settings.probe!r}: name one with --trace")
    table = table.filter(pc.equal(table["to_decision"], pc.max(table["to_decision"])))
    sums: dict[Head, float] = {}
    for row in table.select(["layer", "head", "n", "mean"]).to_pylist():
        head = (row["layer"], row["head"])
        sums[head] = sums.get(head, 0.0) + row["n"] * row["mean"]
    return sorted(sums, key=lambda head: (sums[head], head))[: settings.shortlist]


def random_sets(heads: Heads, n_heads: int, n: int, seed: int) -> tuple[Heads, ...]:
    """Return random sets with as many heads in each layer as a set has, of other heads where there are enough."""
    generator = np.random.default_rng(seed)
    sets = []
    for _ in range(n):
        drawn: list[Head] = []
        for layer in sorted({layer for layer, _ in heads}):
            mine = {head for at, head in heads if at == layer}
            others = [head for head in range(n_heads) if head not in mine]
            pool = others if len(others) >= len(mine) else list(range(n_heads))
            drawn += [(layer, int(head)) for head in sorted(generator.choice(pool, len(mine), replace=False))]
        sets.append(tuple(drawn))
    return tuple(sets)


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


def _check(model: Knockouts, prompt: Prompt, choices: Sequence[Heads], dtype: str, reporter: Reporter) -> None:
    """Compare some choices on one prompt with whole passes; leave sharing, with a notice, where they disagree."""
    if not model.shared:
        reporter.notice("the model does not let its attention be replaced: every head takes whole forward passes")
        return
    some = [choices[at] for at in np.unique(np.linspace(0, len(choices) - 1, _CHECKED).astype(int))]
    try:
        found = np.stack(model.scores([prompt], some))
    except Exception as failure:  # noqa: BLE001  # whatever a model does not take, whole passes are the way out
        reason = " ".join([type(failure).__name__, *str(failure).splitlines()[:1]])[:200]
        found = None
    expected = np.stack(model.by_whole_passes([prompt], some))
    if found is not None:
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1.0))
        if difference <= _TOLERANCE[dtype]:
            return
        reason = f"scores differ by {difference:.1e}"
    model.leave_sharing()
    reporter.notice(f"prefixes are not shared, every head takes whole forward passes, which is slower: {reason}")


def _mean_z(
    model: Knockouts, reader: StoreReader, chosen: Chosen, positions: Ablated, reporter: Reporter
) -> dict[int, npt.NDArray[np.float32]]:
    """Return z of each layer's heads, [H, W], averaged over the positions that are ablated of all examples."""
    reporter.begin("mean of z", len(chosen.examples_E))
    sums: dict[int, npt.NDArray[np.float64]] = {}
    count = 0
    for _, prompt in _prompts(reader, chosen, positions):
        for layer, z_KHW in model.z_of(prompt).items():
            sums[layer] = sums.get(layer, 0.0) + z_KHW.sum(axis=0, dtype=np.float64)
        count += len(prompt.token_ids_T) - prompt.first
        reporter.advance(Piece(tokens=len(prompt.token_ids_T), noun="examples"))
    reporter.end()
    return {layer: (one / count).astype(np.float32) for layer, one in sums.items()}


def _rows(means: Means, choices: _Choices, settings: AblateSettings, group: str | None) -> list[dict[str, object]]:
    n_single = len(choices.single)
    rows = [
        _row(means, number, ((layer, head),), settings, group)
        | {"layer": layer, "head": head}
        | (_others(means, number, choices.n_heads) if choices.is_all else {})
        for number, (layer, head) in enumerate(choices.single)
    ]
    if choices.whole is not None:
        row = _row(means, n_single, choices.whole, settings, group)
        if choices.controls:
            row |= _control_columns(means.mean_X[n_single + 1 : -1])
        if len(choices.whole) > 1:
            rows.append(row)
        else:
            rows[0] |= {name: row[name] for name in row if "control" in name}
    return rows


def _row(means: Means, number: int, heads: Heads, settings: AblateSettings, group: str | None) -> dict[str, object]:
    has_interval = settings.resamples > 0
    return {
        "probe": settings.probe,
        "kind": "knockout",
        "heads": heads_results.spell_heads(heads),
        "positions": settings.positions,
        "ablation": settings.ablation,
        "to_decision": 0,
        "group": group,
        "n": int(means.n_X[number]),
        "mean": float(means.mean_X[number]),
        "low": float(means.low_X[number]) if has_interval else None,
        "high": float(means.high_X[number]) if has_interval else None,
    }


def _others(means: Means, number: int, n_heads: int) -> dict[str, object]:
    """Return the figures of the other heads of a head's layer."""
    first = number // n_heads * n_heads
    own = means.mean_X[first : first + n_heads]
    return _control_columns(np.delete(own, number - first)) if n_heads > 1 else {}


def _control_columns(effects: npt.NDArray[np.float64]) -> dict[str, object]:
    low, high = np.quantile(effects, [0.025, 0.975])
    return {
        "control_mean": float(effects.mean()),
        "control_low": float(low),
        "control_high": float(high),
        "n_controls": len(effects),
    }


def _set_figures(results: Sequence[Means], choices: _Choices) -> tuple[float | None, tuple[float, float, float] | None]:
    """Return the effect of the shortlist as a set over all groups, and mean, low and high of the random sets."""
    if choices.whole is None:
        return None, None
    mean_X = np.average([one.mean_X for one in results], axis=0, weights=[one.n_X[0] for one in results])
    at = len(choices.single)
    controls = mean_X[at + 1 : -1]
    if not len(controls):
        return float(mean_X[at]), None
    low, high = np.quantile(controls, [0.025, 0.975])
    return float(mean_X[at]), (float(controls.mean()), float(low), float(high))
