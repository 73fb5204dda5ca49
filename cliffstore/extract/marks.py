"""Where interventions act in the examples of a unit, and whether examples that share a row agree on it.

Each choice of positions is one bit of a token's mark. Examples of equal token prefix share rows, and a shared row holds
one vector: it is right for all of them only if their marks agree on the whole prefix, since what an intervention
changes reaches every later token. Where they do not agree and share tokens only (a prefix of which no row is stored for
both), each example is computed by its own marks. Where they share a row, nothing could be right, and it is refused.

Legend: T tokens of an example. Cost: O(tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from cliffstore.errors import ConfigError
from cliffstore.extract.tree import Int64s, UnitExample
from cliffstore.plan.choices import chosen
from cliffstore.records import SEGMENTS

MOST_CHOICES = 16
"""Bits of a mark, which stands beside a token id in one int64."""
COLUMNS = ["example", "position", "token_id", "segment", "to_decision", "row"]
"""What of a tokens table marks are made from."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Two examples that share a row and are to be changed at different positions.

    Attributes
    ----------
    examples : their ordinals
    position : the first at which they differ
    choice : positions that hold there for one of the two
    """

    examples: tuple[int, int]
    position: int
    choice: str

    def error(self) -> ConfigError:
        one, other = self.examples
        return ConfigError(
            f"interventions at {self.choice!r}: examples {one} and {other} begin with the same tokens and share their "
            f"rows, but only one of them is to be changed at position {self.position}: choose positions that equal "
            "beginnings agree on, or extract the two into different stores"
        )


def marks_of(tokens: pa.Table, choices: Sequence[str]) -> Int64s:
    """Return the mark of every token of a unit, int64: bit k is set where `choices[k]` holds.

    Parameters
    ----------
    tokens : whole examples, sorted by example and position, at least `COLUMNS`
    """
    ordinals = tokens["example"].to_numpy()
    segments = _codes(tokens["segment"])
    decisions = tokens["position"].to_numpy() - tokens["to_decision"].to_numpy()
    marks = np.zeros(len(ordinals), dtype=np.int64)
    starts = [0, *(np.flatnonzero(np.diff(ordinals)) + 1).tolist(), len(ordinals)]
    for first, last in pairwise(starts):
        for bit, choice in enumerate(choices):
            holds_T = chosen(choice, segments[first:last], int(decisions[first]))
            marks[first:last] |= holds_T.astype(np.int64) << bit
    return marks


def find_disagreement(examples: Sequence[UnitExample], choices: Sequence[str]) -> Disagreement | None:
    """Return two examples of a unit that share a row and differ in their marks before it, None where there are none.

    Parameters
    ----------
    examples : of one unit, with marks, each with all rows that it has
    """
    lowest = min((int(one.rows[one.rows >= 0].min(initial=1 << 62)) for one in examples), default=0)
    highest = max((int(one.rows.max(initial=-1)) for one in examples), default=-1)
    owner_R = np.full(max(highest - lowest + 1, 0), -1, dtype=np.int64)
    for index, example in enumerate(examples):
        assert example.marks is not None
        places = np.flatnonzero(example.rows >= 0)
        own = example.rows[places] - lowest
        for owner in np.unique(owner_R[own]):
            if owner < 0:
                continue
            other = examples[int(owner)]
            assert other.marks is not None
            end = int(places[owner_R[own] == owner][-1]) + 1
            differ = np.flatnonzero(example.marks[:end] != other.marks[:end])
            if len(differ):
                position = int(differ[0])
                bits = int(example.marks[position] ^ other.marks[position])
                choice = next(one for bit, one in enumerate(choices) if bits >> bit & 1)
                return Disagreement((other.example, example.example), position, choice)
        owner_R[own[owner_R[own] < 0]] = index
    return None


def _codes(segments: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return segments as indices into `SEGMENTS`, uint8."""
    whole = segments.combine_chunks().dictionary_encode()
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    codes = np.array([SEGMENTS.index(name) for name in whole.dictionary.to_pylist()], dtype=np.uint8)
    return codes[whole.indices.to_numpy()]
