"""Rows of the table of figures for knock-outs: effects, their intervals, and controls beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.example_means import Means
from cliffstore.model.knockout_hooks import Heads
from cliffstore.run.heads import results
from cliffstore.run.heads.choices import Choices


@dataclass(frozen=True, slots=True)
class Facts:
    """What all rows of a measurement say."""

    probe: str
    positions: str
    ablation: str
    has_interval: bool


def knockout_rows(means: Means, choices: Choices, facts: Facts, group: str | None) -> list[dict[str, object]]:
    """Return the rows of a group: of each head, and of the shortlist as a set."""
    n_single = len(choices.single)
    rows = [
        _row(means, number, ((layer, head),), facts, group)
        | {"layer": layer, "head": head}
        | (_others(means, number, choices.n_heads) if choices.is_all else {})
        for number, (layer, head) in enumerate(choices.single)
    ]
    if choices.whole is not None:
        row = _row(means, n_single, choices.whole, facts, group)
        if choices.controls:
            row |= _control_columns(means.mean_X[n_single + 1 : -1])
        if len(choices.whole) > 1:
            rows.append(row)
        else:
            rows[0] |= {name: row[name] for name in row if "control" in name}
    return rows


def _row(means: Means, number: int, heads: Heads, facts: Facts, group: str | None) -> dict[str, object]:
    return {
        "probe": facts.probe,
        "positions": facts.positions,
        "ablation": facts.ablation,
        "kind": "knockout",
        "heads": results.spell_heads(heads),
        "to_decision": 0,
        "group": group,
        "n": int(means.n_X[number]),
        "mean": float(means.mean_X[number]),
        "low": float(means.low_X[number]) if facts.has_interval else None,
        "high": float(means.high_X[number]) if facts.has_interval else None,
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


def set_figures(finished: Sequence[Means], choices: Choices) -> tuple[float | None, tuple[float, float, float] | None]:
    """Return the effect of the shortlist as a set over all groups, and mean, low and high of the random sets."""
    if choices.whole is None:
        return None, None
    mean_X = np.average([one.mean_X for one in finished], axis=0, weights=[one.n_X[0] for one in finished])
    at = len(choices.single)
    controls = mean_X[at + 1 : -1]
    if not len(controls):
        return float(mean_X[at]), None
    low, high = np.quantile(controls, [0.025, 0.975])
    return float(mean_X[at]), (float(controls.mean()), float(low), float(high))
