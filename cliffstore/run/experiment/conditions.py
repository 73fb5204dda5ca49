"""What an experiment does to the model: heads by their shares in a trace, random sets beside them, as interventions.

Of each percentage of all heads of the model, those with the most negative shares are taken, one at least, and none
whose share is not negative. Random sets have as many heads in each layer, of other heads where there are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from cliffstore.errors import ConfigError
from cliffstore.plan.choices import parse_choice
from cliffstore.run.experiment.settings import (
    CHOSEN,
    RANDOM,
    REGENERATED,
    UNCHANGED,
    Condition,
    ExperimentSettings,
    Head,
    Heads,
    Thinking,
)
from cliffstore.run.heads.choices import random_sets, shares_at_decision
from cliffstore.schema import HeadFactors, HeadScaling, Interventions


def negative_heads(trace: str, table: pa.Table) -> tuple[Head, ...]:
    """Return the heads whose share at the decision is negative in a trace, the most negative first.

    Raises
    ------
    ConfigError
        It has no figures there.
    """
    sums = shares_at_decision(trace, table)
    return tuple(sorted((head for head in sums if sums[head] < 0), key=lambda head: (sums[head], head)))


def conditions_of(
    negative: Sequence[Head], n_layers: int, n_heads: int, settings: ExperimentSettings, notice: Callable[[str], object]
) -> list[Condition]:
    """Return the conditions: the unchanged model, then each share's chosen heads and random sets.

    Percentages that mean the same heads are measured once.

    Raises
    ------
    ConfigError
        No head has a negative share.
    """
    if not negative:
        raise ConfigError("no head has a negative share in this trace: there is nothing to switch off")
    found = [Condition(UNCHANGED, None, None, (), generates=True)]
    sizes: dict[int, float] = {}
    for share in sorted(settings.shares):
        wanted = max(round(n_layers * n_heads * share / 100), 1)
        heads: Heads = tuple(negative[:wanted])
        if len(heads) in sizes:
            notice(
                f"{share:g} % is measured with {sizes[len(heads)]:g} %: both are {len(heads)} heads of "
                f"{n_layers * n_heads}, and {len(negative)} have negative shares"
            )
            continue
        if len(heads) < wanted:
            notice(f"{share:g} % are {wanted} heads, and {len(heads)} have negative shares: no others are taken")
        sizes[len(heads)] = share
        found.append(Condition(CHOSEN, share, None, heads, generates=True))
        sets = random_sets(tuple(sorted(heads)), n_heads, settings.random, settings.seed)
        found += [
            Condition(RANDOM, share, number, drawn, generates=number < settings.random_generate)
            for number, drawn in enumerate(sets)
        ]
    return found


def for_thinking(conditions: Sequence[Condition], thinking: Thinking) -> list[Condition]:
    """Return those that are measured with a kind of thinking: where it is regenerated, every one writes text."""
    return [one for one in conditions if thinking != REGENERATED or one.generates]


def interventions_of(condition: Condition, settings: ExperimentSettings) -> Interventions | None:
    """Return what is done to the model; None for nothing."""
    if not condition.heads:
        return None
    heads = [HeadFactors(layer=layer, head=head, factors=[settings.scale]) for layer, head in sorted(condition.heads)]
    step = HeadScaling(heads=heads, positions=parse_choice(settings.positions), keep_norm=settings.keep_norm)
    return Interventions.of([step])
