"""Figures of an experiment: what was found of each example under each condition, to rows of the table `experiments`.

Every change is against the unchanged model with the same kind of thinking, over the examples that have the figure in
both. Examples are resampled alike for all conditions of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.analyze.paired import PairedBootstrap, Sums
from cliffstore.analyze.rates import wilson
from cliffstore.run.experiment.settings import (
    BENIGN,
    DIFFERENCE,
    HARMFUL,
    PERPLEXITY,
    REFUSED,
    SCORE,
    Condition,
    ExperimentSettings,
    Thinking,
)
from cliffstore.run.heads.results import spell_heads

Floats = npt.NDArray[np.float64]
PIECE = pa.schema(
    [
        ("example", pa.int64()),
        ("score", pa.float64()),
        ("difference", pa.float64()),
        ("surprise", pa.float64()),
        ("n_text", pa.int64()),
        ("refused", pa.bool_()),
        ("thinking", pa.string()),
        ("response", pa.string()),
    ]
)
"""What was found under one condition, a row an example."""


@dataclass(frozen=True, slots=True)
class Found:
    """The figures of one condition, by example, ascending."""

    thinking: Thinking
    condition: Condition
    table: pa.Table


def rows_of(found: Sequence[Found], parts: Mapping[str, Sequence[int]], settings: ExperimentSettings) -> list[dict]:
    """Return the rows of the table.

    Parameters
    ----------
    found : of each kind of thinking the unchanged model first
    parts : harmful and benign examples by ordinal, ascending
    """
    rows = []
    for part, examples in parts.items():
        bootstrap = PairedBootstrap(
            len(examples), resamples=settings.resamples, level=settings.level, seed=settings.seed
        )
        before: dict[str, dict[str, Sums]] = {}
        for one in found:
            sums = dict(_sums(one.table, examples, part))
            is_first = one.thinking not in before
            first = before.setdefault(one.thinking, sums)
            for measure, own in sums.items():
                rows.append(
                    {**_named(one, settings), "part": part, "measure": measure}
                    | _figures(bootstrap, measure, own, None if is_first else first.get(measure), settings)
                )
    return rows


def _named(one: Found, settings: ExperimentSettings) -> dict[str, object]:
    condition = one.condition
    return {
        "probe": settings.probe,
        "thinking": one.thinking,
        "condition": condition.kind,
        "share": condition.share,
        "set": condition.number,
        "n_heads": len(condition.heads),
        "heads": spell_heads(condition.heads) or None,
    }


def _sums(table: pa.Table, examples: Sequence[int], part: str) -> Iterator[tuple[str, Sums]]:
    """Yield what each measure of a part is made from; measures that no example has are left out."""
    at_E = np.searchsorted(table["example"].to_numpy(), np.asarray(examples))

    def column(name: str) -> Floats:
        values = table[name].combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.asarray(values[at_E], dtype=np.float64)

    score_E = column("score")
    if not np.isnan(score_E).all():
        yield SCORE, Sums.of_values(score_E)
        yield DIFFERENCE, Sums.of_values(column("difference"))
    refused_E = column("refused") if table["refused"].null_count < table.num_rows else np.full(len(at_E), np.nan)
    if not np.isnan(refused_E).all():
        yield REFUSED, Sums.of_values(refused_E)
    if part == BENIGN and not np.isnan(surprise_E := column("surprise")).all():
        yield PERPLEXITY, Sums(surprise_E, column("n_text"))


def _figures(
    bootstrap: PairedBootstrap, measure: str, own: Sums, before: Sums | None, settings: ExperimentSettings
) -> dict[str, object]:
    link = np.exp if measure == PERPLEXITY else None
    figure = bootstrap.figure(own, link)
    row: dict[str, object] = {"n": figure.n, "value": figure.value, "low": figure.low, "high": figure.high}
    row |= dict.fromkeys(("change", "change_low", "change_high"))
    if measure == REFUSED:
        rate = wilson(int(np.nansum(own.sum_E)), figure.n, settings.level)
        row |= {"low": rate.low, "high": rate.high}
    if before is not None:
        change = bootstrap.change(own, before, link)
        row |= {"change": change.value, "change_low": change.low, "change_high": change.high}
    return row


def texts_of(found: Sequence[Found], parts: Mapping[str, Sequence[int]], ids: Mapping[int, str]) -> pa.Table:
    """Return what was generated, a row a condition and example."""
    part_of = {example: part for part in (HARMFUL, BENIGN) for example in parts[part]}
    rows = [
        {
            "thinking_is": one.thinking,
            "condition": one.condition.kind,
            "share": one.condition.share,
            "set": one.condition.number,
            "part": part_of[row["example"]],
            "example": row["example"],
            "id": ids[row["example"]],
            **{name: row[name] for name in ("score", "refused", "thinking", "response")},
        }
        for one in found
        if one.condition.generates
        for row in one.table.to_pylist()
    ]
    columns = [("thinking_is", pa.string()), ("condition", pa.string()), ("share", pa.float64()), ("set", pa.int32()),
               ("part", pa.string()), ("example", pa.int64()), ("id", pa.string()), ("score", pa.float64()),
               ("refused", pa.bool_()), ("thinking", pa.string()), ("response", pa.string())]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))
