"""The arithmetic of cliffs: plateau, final score, cliff, where it is steepest and how many tokens it takes.

final = score at the decision position; cliff = plateau - final (DESIGN: Words). Scores are logits. An example without
thinking has no plateau and no cliff; it stays in the table, with null in both.

steepest_position: where the largest fall from one token to the next ends, from the second thinking token to the
decision; the first of several equal ones. Where not all positions are stored, a fall is one from a stored token to the
next, however far apart they are.

n_steep: how many tokens the fall takes. Between the first thinking token and the decision, it begins at the last token
whose score is plateau - 10 % of the cliff or more, and ends at the first token behind that one whose score is
final + 10 % of the cliff or less; n_steep is the position of the latter minus that of the former, at least 1. Null
where there is no cliff, or none downward (cliff <= 0).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.analyze.plateau import PlateauRule
from cliffstore.analyze.token_scores import TokenScores
from cliffstore.schema import CLIFFS

EDGE = 0.1
"""Share of the cliff at its top and at its foot that does not count as steep."""

_NONE = -1


def falls(scores: TokenScores, rule: PlateauRule) -> pa.Table:
    """Return a line for each example with scores, by example."""
    n_E = scores.n_examples
    at_T = np.flatnonzero(scores.is_think_N)
    example_T = scores.example_N[at_T]
    n_think_E = np.bincount(example_T, minlength=n_E)
    plateau_E = rule.plateaus(scores.score_N[at_T], example_T, n_E)
    final_E, at_D = np.zeros(n_E), np.flatnonzero(scores.to_decision_N == 0)
    final_E[scores.example_N[at_D]] = scores.score_N[at_D]
    has_plateau_E, has_final_E = n_think_E > 0, np.zeros(n_E, dtype=np.bool_)
    has_final_E[scores.example_N[at_D]] = True
    has_cliff_E = has_plateau_E & has_final_E
    cliff_E = plateau_E - final_E
    steepest_E = _steepest(scores)
    n_steep_E = _lengths(scores, plateau_E, final_E, np.where(has_cliff_E, cliff_E, 0.0))
    columns = [
        pa.array(scores.examples_E),
        pa.array(plateau_E, mask=~has_plateau_E),
        pa.array(final_E, mask=~has_final_E),
        pa.array(cliff_E, mask=~has_cliff_E),
        pa.array(n_think_E.astype(np.int32)),
        pa.array(steepest_E, mask=steepest_E == _NONE),
        pa.array(n_steep_E, mask=n_steep_E == _NONE),
    ]
    return pa.table(columns, schema=CLIFFS)


def _steepest(scores: TokenScores) -> npt.NDArray[np.int32]:
    """Return where the largest fall of each example ends; -1 where there is none."""
    behind_N = scores.position_N > scores.first_think_E[scores.example_N]
    is_next_N = np.concatenate([np.zeros(1, dtype=np.bool_), scores.example_N[1:] == scores.example_N[:-1]])
    at_M = np.flatnonzero(behind_N & is_next_N[: len(behind_N)] & (scores.to_decision_N <= 0))
    steepest_E = np.full(scores.n_examples, _NONE, dtype=np.int32)
    if not len(at_M):
        return steepest_E
    example_M = scores.example_N[at_M]
    fall_M = scores.score_N[at_M - 1] - scores.score_N[at_M]
    fall_M[np.isnan(fall_M)] = np.inf  # as SQL orders them
    begin_G = np.flatnonzero(np.concatenate([[True], example_M[1:] != example_M[:-1]]))
    largest_G = np.maximum.reduceat(fall_M, begin_G)
    hits_M = fall_M == np.repeat(largest_G, np.diff(np.append(begin_G, len(at_M))))
    hits = np.flatnonzero(hits_M)[::-1]
    steepest_E[example_M[hits]] = scores.position_N[at_M[hits]]  # of several, the last that is assigned stays
    return steepest_E


def _lengths(
    scores: TokenScores,
    plateau_E: npt.NDArray[np.float64],
    final_E: npt.NDArray[np.float64],
    cliff_E: npt.NDArray[np.float64],
) -> npt.NDArray[np.int32]:
    """Return n_steep of each example; -1 where it has none."""
    down_E = cliff_E > 0
    high_E, low_E = plateau_E - EDGE * cliff_E, final_E + EDGE * cliff_E
    in_curve_N = down_E[scores.example_N] & (scores.to_decision_N <= 0)
    in_curve_N &= scores.position_N >= scores.first_think_E[scores.example_N]
    at_M = np.flatnonzero(in_curve_N)
    example_M, score_M, position_M = scores.example_N[at_M], scores.score_N[at_M], scores.position_N[at_M]
    begin_E = np.full(scores.n_examples, np.iinfo(np.int32).max, dtype=np.int32)
    high_M = np.flatnonzero(score_M >= high_E[example_M])
    begin_E[example_M[high_M]] = position_M[high_M]  # the last that is assigned stays
    end_E = np.full(scores.n_examples, _NONE, dtype=np.int32)
    low_M = np.flatnonzero((score_M <= low_E[example_M]) & (position_M > begin_E[example_M]))[::-1]
    end_E[example_M[low_M]] = position_M[low_M]
    return np.where(end_E == _NONE, _NONE, end_E - begin_E).astype(np.int32)
