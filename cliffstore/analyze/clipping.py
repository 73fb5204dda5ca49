"""Clipping: the first part of a thinking, cut behind a share of its tokens; and means with their intervals.

A store keeps the text of a thinking and, token by token, the text of each. `token_ends` finds where in the thinking
each token ends; a cut is made there. White space is passed over when the two are compared, since some tokenizers show a
token without its space, and a token at the edge may hold white space of the thinking marks: so a cut ends behind the
last visible character of a token.

A character may be spread over several tokens, none of which can be shown; a cut between these is made before the
character. Where the texts of the tokens cannot be found in the thinking at all, the cut is made behind that share of
its words instead, and `Cut.by_tokens` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError

KEEP = (100.0, 80.0, 60.0, 40.0, 20.0, 0.0)
"""Per cent of the thinking that are kept, by default."""
RESAMPLES, _RESAMPLED = 2_000, 20_000_000

_UNDECODABLE = "\ufffd"
_WORD = re.compile(r"\S+")
_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """The first part of a thinking; `by_tokens` is false where words were counted instead."""

    text: str
    by_tokens: bool


def parse_keep(text: str) -> tuple[float, ...]:
    """Return the percentages in a text such as `100,50,0`. Raises `ConfigError` where it holds something else."""
    try:
        found = [float(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--keep {text!r}: give percentages such as 100,80,60,40,20,0") from None
    return check_keep(found)


def check_keep(keep: Sequence[float]) -> tuple[float, ...]:
    """Return percentages as they are used. Raises `ConfigError` where one is not from 0 to 100, or is said twice."""
    found = tuple(float(percent) for percent in keep)
    wrong = [f"{percent:g}" for percent in found if not 0 <= percent <= 100]
    if wrong or not found:
        raise ConfigError(f"keep: {', '.join(wrong) or 'nothing'} is no percentage from 0 to 100")
    names = [f"{percent:g}" for percent in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"keep: a percentage is there twice in {', '.join(names)}")
    return found


def cut(thinking: str, ends_T: Sequence[int] | None, fraction: float) -> Cut:
    """Return the first `fraction` (0 to 1) of a thinking: as given where it is 1, nothing where it is 0.

    Parameters
    ----------
    ends_T : where each token ends, as `token_ends` gives it; None to cut between words
    """
    if ends_T is None:
        ends_T, by_tokens = [word.end() for word in _WORD.finditer(thinking)], False
    else:
        by_tokens = True
    count = tokens_kept(len(ends_T), fraction)
    if fraction >= 1:
        return Cut(thinking, by_tokens)
    return Cut(thinking[: ends_T[count - 1]] if count else "", by_tokens)


def tokens_kept(n: int, fraction: float) -> int:
    """Return how many of n tokens a fraction keeps: the nearest number, a half rounded up."""
    return min(n, math.floor(n * fraction + 0.5))


def token_ends(thinking: str, pieces_T: Sequence[str]) -> list[int] | None:
    """Return where each token ends in a thinking (characters, int [T], ascending), None where that cannot be told.

    Parameters
    ----------
    pieces_T : text of each token of the segment `think`, in order
    """
    ends: list[int] = []
    place = 0
    behind = 0  # characters, at most, of tokens that cannot be shown, since `place`
    for piece in pieces_T:
        visible = piece.strip()
        start = _visible_from(thinking, place)
        if not visible:
            ends.append(place)
        elif not behind and thinking.startswith(visible, start):
            place = start + len(visible)
            ends.append(place)
        elif _UNDECODABLE in visible:
            behind += len(piece)
            ends.append(place)
        else:
            found = thinking.find(visible, start + 1, start + 2 * behind + len(visible)) if behind else -1
            if found < 0:
                return None
            ends[-1] = max(ends[-1], len(thinking[:found].rstrip()))
            place = found + len(visible)
            behind = 0
            ends.append(place)
    return ends


def _visible_from(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def mean_interval(values_N: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean, and the 2.5 and 97.5 percentiles of the mean over resamples of the N values.

    There are 2,000 resamples, fewer above 10,000 values.
    """
    n = len(values_N)
    resamples = int(np.clip(_RESAMPLED // n, 200, RESAMPLES))
    generator = np.random.default_rng([seed, 0xC119])
    means = []
    block = max(_BLOCK // n, 1)
    for first in range(0, resamples, block):
        drawn_BN = generator.integers(n, size=(min(block, resamples - first), n))
        means.append(values_N[drawn_BN].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(values_N.mean()), float(low), float(high)
