"""Mean curves: the score by distance from the decision position, averaged over the examples that have one there.

Curves are those of the thinking: from its first token to the decision, and on into the answer where distances go beyond
0; with `all_tokens` those of whole examples. Each distance says how many examples it is the mean of.

Bands are bootstrap intervals over examples: as many are drawn anew, with replacement, as have a score at any of the
distances, and the mean of each distance is taken over those drawn that have one there; the band lies between two
quantiles of such means. A seed decides the draws. Cost: resamples x examples x distances multiplications, in matrix
products, and memory for the scores at these distances.

Legend: E examples, L some of them, W distances, X these twice: sums and counts, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.analyze.aligned import Distances, align
from cliffstore.analyze.labels import Notice
from cliffstore.config.values import check_level
from cliffstore.errors import ConfigError, ProbeError
from cliffstore.store.catalog import Catalog

CURVES = pa.schema(
    [
        ("probe", pa.string()),
        ("group", pa.string()),
        ("to_decision", pa.int32()),
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
"""`low` and `high` are null where no resamples were asked for."""

_DRAWS, _LINES = 256, 2_048
"""Resamples and examples of one matrix product."""
_MOST_GROUPS = 1_000


@dataclass(frozen=True, slots=True)
class CurveSettings:
    """What curves to draw.

    Attributes
    ----------
    group_by : SQL expression over examples; a curve for each of its values
    where : SQL condition over examples
    resamples : of the bootstrap; 0: no bands
    level : share of the resampled means that the band holds
    all_tokens : prompts, and examples without thinking, too
    """

    distances: Distances
    group_by: str | None = None
    where: str | None = None
    resamples: int = 1_000
    level: float = 0.95
    seed: int = 0
    all_tokens: bool = False

    def __post_init__(self) -> None:
        check_level(self.level)
        if not 0 <= self.resamples <= 100_000:
            raise ConfigError(f"resamples {self.resamples}: say a number from 0 to 100,000")


def mean_curves(catalog: Catalog, probes: Sequence[str], settings: CurveSettings, notice: Notice) -> pa.Table:
    """Return the curves of probes as a table `CURVES`, by probe in the order given, group and distance.

    What is in no curve is told with its count.

    Raises
    ------
    ProbeError
        There is no such probe; or no example is left with scores at these distances.
    QueryError
        `group_by` or `where` is malformed.
    ConfigError
        There are too many groups, or scores to hold.
    """
    examples_E, groups, number_E = grouped_examples(catalog, settings.group_by, settings.where)
    parts: list[pa.Table] = []
    for probe in dict.fromkeys(probes):
        found = align(catalog.reader, probe, examples_E, settings.distances, all_tokens=settings.all_tokens)
        _tell(probe, len(examples_E), int(found.is_scored_E.sum()), int(found.thinks_E.sum()), settings, notice)
        n_before = len(parts)
        for number, group in enumerate(groups):
            score_EW = found.score_EW[number_E == number]
            part = _curve(probe, group, score_EW[~np.isnan(score_EW).all(axis=1)], settings, number)
            parts += [part] if part.num_rows else []
        if len(parts) == n_before:
            first, last = settings.distances.first, settings.distances.last
            raise ProbeError(
                f"probe {probe!r}: none of {len(examples_E):,} examples has scores of its thinking at distances "
                f"{first} to {last}: choose other --positions or examples, or --all-tokens"
            )
    return pa.concat_tables(parts)


def grouped_examples(
    catalog: Catalog, by: str | None, where: str | None
) -> tuple[npt.NDArray[np.int64], list[str | None], npt.NDArray[np.int64]]:
    """Return examples by ordinal, the values of their groups in order, and which of these each example has.

    Parameters
    ----------
    by, where : SQL expression and condition over examples
    """
    group_by = f"CAST(({by}\n) AS VARCHAR)" if by else "CAST(NULL AS VARCHAR)"
    condition = f"WHERE ({where}\n)" if where else ""
    table = catalog.arrow(f'SELECT e.example, {group_by} AS "group" FROM examples e {condition} ORDER BY e.example')
    coded = table["group"].combine_chunks().dictionary_encode(null_encoding="encode")
    values = coded.dictionary.to_pylist()
    if len(values) > _MOST_GROUPS:
        raise ConfigError(f"--group-by {by} has {len(values):,} values: at most {_MOST_GROUPS:,} are drawn")
    order = sorted(range(len(values)), key=lambda at: (values[at] is None, values[at] or ""))
    number = np.empty(len(values), dtype=np.int64)
    number[order] = np.arange(len(values))
    return table["example"].to_numpy(), [values[at] for at in order], number[coded.indices.to_numpy()]


def _tell(probe: str, n_examples: int, n_scored: int, n_think: int, settings: CurveSettings, notice: Notice) -> None:
    if n_scored < n_examples:
        notice(f"{n_examples - n_scored:,} of {n_examples:,} examples have no scores of probe {probe} yet")
    if n_think < n_scored and not settings.all_tokens:
        notice(
            f"{n_scored - n_think:,} of {n_scored:,} examples have no stored thinking and are in no curve of {probe} "
            "(--all-tokens takes prompts, and them, in)"
        )


def _curve(
    probe: str, group: str | None, score_EW: npt.NDArray[np.float32], settings: CurveSettings, number: int
) -> pa.Table:
    is_there_EW = ~np.isnan(score_EW)
    n_W = is_there_EW.sum(axis=0)
    at_W = np.flatnonzero(n_W)
    # Along the first axis, NumPy adds one line after the other.
    sum_W = np.add.reduce(score_EW, axis=0, dtype=np.float64, where=is_there_EW, initial=0.0)
    mean_W = sum_W[at_W] / n_W[at_W]
    n = len(at_W)
    bands = [pa.nulls(n, pa.float64())] * 2
    if settings.resamples and n:
        bands = [pa.array(edge_W[at_W]) for edge_W in _bands(score_EW, is_there_EW, settings, number)]
    columns = [
        pa.repeat(pa.scalar(probe, pa.string()), n),
        pa.repeat(pa.scalar(group, pa.string()), n),
        pa.array((at_W + settings.distances.first).astype(np.int32)),
        pa.array(n_W[at_W].astype(np.int64)),
        pa.array(mean_W),
        *bands,
    ]
    return pa.table(columns, schema=CURVES)


def _drawn(generator: np.random.Generator, n_E: int) -> npt.NDArray[np.uint16]:
    """Return how many times each example is drawn."""
    return np.bincount(generator.integers(n_E, size=n_E), minlength=n_E).astype(np.uint16)


def _bands(
    score_EW: npt.NDArray[np.float32], is_there_EW: npt.NDArray[np.bool_], settings: CurveSettings, number: int
) -> npt.NDArray[np.float64]:
    """Return lower and upper edge, [2, W]; NaN where no example has a score."""
    n_E, n_W = score_EW.shape
    generator = np.random.default_rng([settings.seed, number])
    means_BW = np.full((settings.resamples, n_W), np.nan)
    for first in range(0, settings.resamples, _DRAWS):
        last = min(first + _DRAWS, settings.resamples)
        times_BE = np.stack([_drawn(generator, n_E) for _ in range(first, last)])
        sums_BX = np.zeros((last - first, 2 * n_W))
        for begin in range(0, n_E, _LINES):
            lines = slice(begin, begin + _LINES)
            there_LW = is_there_EW[lines]
            both_LX = np.concatenate([np.where(there_LW, score_EW[lines], 0.0), there_LW], axis=1, dtype=np.float64)
            sums_BX += times_BE[:, lines].astype(np.float64) @ both_LX
        sum_BW, n_BW = sums_BX[:, :n_W], sums_BX[:, n_W:]
        np.divide(sum_BW, n_BW, out=means_BW[first:last], where=n_BW > 0)
    edges_2W = np.full((2, n_W), np.nan)
    held_W = is_there_EW.any(axis=0)
    tail = (1 - settings.level) / 2
    edges_2W[:, held_W] = np.nanquantile(means_BW[:, held_W], [tail, 1 - tail], axis=0)
    return edges_2W
