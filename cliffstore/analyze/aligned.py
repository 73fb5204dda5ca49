"""Scores by distance from the decision position: a line an example, its decision always in the same column.

Where an example has no score at a distance, there is a gap (NaN): it is shorter, or the position is not stored. Nothing
is padded and nothing is resampled; whoever averages a column counts the scores that are in it.

Legend: E examples, W distances, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.token_scores import TokenScores, each_unit
from cliffstore.errors import ConfigError
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import find_scores

MOST_NUMBERS = 250_000_000
"""Scores that are held at once: 1 GB."""

_DISTANCES = re.compile(r"([+-]?[0-9]{1,6})\.\.([+-]?[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Distances:
    """From `first` to `last`, both among them; 0 is the decision position, what is before it is negative."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Distances:
        """Return what `-64..0` means. Raises `ConfigError` where it means nothing."""
        found = _DISTANCES.fullmatch(text.strip())
        if not found or int(found[1]) > int(found[2]):
            raise ConfigError(f"positions {text!r}: write a range of distances from the decision, such as -64..0")
        return cls(int(found[1]), int(found[2]))

    def __len__(self) -> int:
        return self.last - self.first + 1

    @property
    def numbers(self) -> range:
        return range(self.first, self.last + 1)


@dataclass(frozen=True, slots=True)
class AlignedScores:
    """Scores of examples by distance.

    Attributes
    ----------
    score_EW : float32, NaN where there is none
    is_scored_E : has scores, at any distance
    thinks_E : has scores in its thinking, at any distance
    """

    score_EW: npt.NDArray[np.float32]
    is_scored_E: npt.NDArray[np.bool_]
    thinks_E: npt.NDArray[np.bool_]


def align(
    reader: StoreReader,
    probe: str,
    examples_E: npt.NDArray[np.int64],
    distances: Distances,
    *,
    all_tokens: bool = False,
    units: Collection[object] | None = None,
) -> AlignedScores:
    """Return the scores of examples by distance.

    Parameters
    ----------
    examples_E : ordinals, ascending
    all_tokens : of the prompt too, and of examples without thinking; else from the first thinking token on
    units : that the examples are in; None means any

    Raises
    ------
    ProbeError
        There is no such probe, or it has no scores.
    ConfigError
        There are more scores than are held at once.
    """
    if len(examples_E) * len(distances) > MOST_NUMBERS:
        raise ConfigError(
            f"{len(examples_E):,} examples at {len(distances):,} distances are more than {MOST_NUMBERS:,} scores to "
            "hold: choose fewer --positions, or examples with --where"
        )
    _, receipts = find_scores(reader, probe)
    found = AlignedScores(
        np.full((len(examples_E), len(distances)), np.nan, dtype=np.float32),
        np.zeros(len(examples_E), dtype=np.bool_),
        np.zeros(len(examples_E), dtype=np.bool_),
    )
    wanted = [receipt for receipt in receipts if units is None or receipt.unit in units]
    for _, scores in each_unit(reader.objects, wanted):
        _put(found, scores, examples_E, distances, all_tokens=all_tokens)
    return found


def _put(
    found: AlignedScores,
    scores: TokenScores,
    examples_E: npt.NDArray[np.int64],
    distances: Distances,
    *,
    all_tokens: bool,
) -> None:
    """Put the scores of a unit in their places."""
    if not len(examples_E):
        return
    line_U = np.minimum(np.searchsorted(examples_E, scores.examples_E), len(examples_E) - 1)
    is_wanted_U = examples_E[line_U] == scores.examples_E
    thinks_U = scores.first_think_E < np.iinfo(np.int32).max
    found.is_scored_E[line_U[is_wanted_U]] = True
    found.thinks_E[line_U[is_wanted_U & thinks_U]] = True
    is_here_N = (scores.to_decision_N >= distances.first) & (scores.to_decision_N <= distances.last)
    is_here_N &= is_wanted_U[scores.example_N]
    if not all_tokens:
        is_here_N &= scores.position_N >= scores.first_think_E[scores.example_N]
    at = np.flatnonzero(is_here_N)
    found.score_EW[line_U[scores.example_N[at]], scores.to_decision_N[at] - distances.first] = scores.score_N[at]
