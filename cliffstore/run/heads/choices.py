"""Which heads are switched off: all, one at a time, or a shortlist head by head, as a set, and beside random sets.

Random sets are matched by layer: as many heads in each layer as the set has, of other heads where there are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.errors import ConfigError, ProbeError
from cliffstore.model.knockout_hooks import Heads
from cliffstore.records import RESID_PRE, Z
from cliffstore.run.heads import results
from cliffstore.run.heads.results import Head
from cliffstore.schema import ProbeDocument
from cliffstore.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Choices:
    """Single heads, then the shortlist as a set (or none), then random sets."""

    single: tuple[Head, ...]
    whole: Heads | None
    controls: tuple[Heads, ...]
    is_all: bool
    n_heads: int

    @property
    def all(self) -> list[Heads]:
        return [*((head,) for head in self.single), *([self.whole] if self.whole else []), *self.controls]


@dataclass(frozen=True, slots=True)
class Wish:
    """Which heads are asked for: named, or a shortlist of a trace, and random sets beside them; all by default."""

    heads: str | None
    shortlist: int | None
    trace: str | None
    controls: int
    seed: int


def layers_before(probe: ProbeDocument) -> range:
    """Return the layers whose heads can change what a probe reads."""
    return range(probe.layer + (probe.site != RESID_PRE))


def choose_heads(objects: ObjectStore, probe: ProbeDocument, wish: Wish, notice: Callable[[str], None]) -> Choices:
    """Return what is to be measured.

    Raises
    ------
    ConfigError, ProbeError, StoreError
        There are no such heads, they cannot change what the probe reads, or there is no such trace.
    """
    if probe.site == Z:
        raise ProbeError("a probe on z reads the heads themselves: switching one off says no more than its weights")
    layers = layers_before(probe)
    n_heads = probe.model.n_heads
    every = tuple((layer, head) for layer in layers for head in range(n_heads))
    if not every:
        raise ProbeError("a probe on resid_pre of layer 0 reads embeddings, before any head")
    if wish.heads is None and wish.shortlist is None:
        return Choices(every, None, (), True, n_heads)
    listed = _from_trace(objects, probe, wish, notice) if wish.heads is None else results.parse_heads(wish.heads)
    wrong = [head for head in listed if head not in every]
    if wrong:
        raise ConfigError(
            f"head {results.spell_heads(wrong[:1])} cannot change what probe {probe.name!r} reads: heads are "
            f"0-{n_heads - 1} of layers 0-{layers[-1]}"
        )
    if wish.shortlist is not None and len(listed) < wish.shortlist:
        notice(f"a shortlist of {wish.shortlist:,} is asked for, the trace has {len(listed):,} heads: all are in it")
    whole = tuple(sorted(listed))
    controls = random_sets(whole, n_heads, wish.controls, wish.seed)
    crowded = [layer for layer in {layer for layer, _ in whole} if 2 * sum(at == layer for at, _ in whole) > n_heads]
    if controls and crowded:
        named = ", ".join(map(str, sorted(crowded)))
        notice(
            f"random sets have heads of the shortlist in them, for too few others are left in its layers ({named}): "
            "they say less"
        )
    return Choices(tuple(listed), whole, controls, False, n_heads)


def _from_trace(objects: ObjectStore, probe: ProbeDocument, wish: Wish, notice: Callable[[str], None]) -> list[Head]:
    """Return the heads with the most negative shares of a trace at the decision."""
    assert wish.shortlist is not None
    document, table = results.read_heads(objects, wish.trace or results.usual_name(probe.name, "direct"))
    if document.kind != "direct" or document.probe != probe.name:
        raise ConfigError(f"{document.name!r} is no trace of probe {probe.name!r}: name one with --trace")
    if document.probe_digest != probe.digest:
        raise ConfigError(
            f"trace {document.name!r} is of probe {probe.name!r} as it was before it was made anew: trace again with "
            "`cliffstore heads trace --replace`"
        )
    sums = shares_at_decision(document.name, table)
    listed = sorted(sums, key=lambda head: (sums[head], head))[: wish.shortlist]
    if other := sum(sums[head] >= 0 for head in listed):
        notice(f"{other} of {len(listed)} heads of the shortlist have no negative share in trace {document.name!r}")
    return listed


def shares_at_decision(trace: str, table: pa.Table) -> dict[Head, float]:
    """Return the share of each head in a trace at the decision, summed over its examples.

    Raises
    ------
    ConfigError
        It has no figures there.
    """
    table = table.filter(pc.equal(table["to_decision"], 0))
    if not table.num_rows:
        raise ConfigError(f"trace {trace!r} has no figures at the decision: trace there, or name another")
    sums: dict[Head, float] = {}
    for row in table.select(["layer", "head", "n", "mean"]).to_pylist():
        head = (row["layer"], row["head"])
        sums[head] = sums.get(head, 0.0) + row["n"] * row["mean"]
    return sums


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
