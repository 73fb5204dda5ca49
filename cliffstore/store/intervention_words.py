"""Interventions as a table shows them: one short text."""

from __future__ import annotations

from cliffstore.schema import DirectionAblation, HeadScaling, Interventions, Steering
from cliffstore.store.reader import compact_ranges


def in_words(interventions: Interventions | None) -> str | None:
    """Return what is changed, such as `ablate probe refusal at resid_pre, layers 0-29`; None where nothing is."""
    if interventions is None:
        return None
    return "; ".join(_words(step) for step in interventions.steps)


def _words(step: HeadScaling | DirectionAblation | Steering) -> str:
    if isinstance(step, HeadScaling):
        layers = compact_ranges(sorted({one.layer for one in step.heads}))
        factors = {factor for one in step.heads for factor in one.factors}
        by = f" by {min(factors):g}" if len(factors) == 1 else ""
        text = f"scale {len(step.heads)} heads{by}, layers {layers}"
    else:
        by = f"{step.factor:g} x " if isinstance(step, Steering) else ""
        text = f"{step.kind} {by}{step.origin or 'a vector'} at {','.join(step.sites)}, layers " + compact_ranges(
            sorted(step.layers)
        )
    where = "" if step.positions == "all" else f", positions {step.positions}"
    return f"{text}{where}{', norm kept' if step.keep_norm else ''}"
