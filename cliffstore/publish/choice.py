"""The choice itself: candidates in their order, passed through gates one by one, until there are enough.

Pure: from values to values. The order is total (value, then id, then ordinal), so the choice is the same in whatever
order candidates were read. What a gate keeps out is kept out by something that ranks better and is chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.publish.criteria import Quota


class Gate(Protocol):
    """Something that may keep a candidate out. Candidates come in their order, each once.

    Attributes
    ----------
    reason : under which those that are kept out are counted
    """

    reason: str

    def admits(self, index: int) -> bool:
        """Return whether a candidate may be chosen beside those that are."""
        ...

    def take(self, index: int) -> None:
        """Note that a candidate is chosen."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, best first, as indices of the candidates, and how many were passed over for which reason."""

    index_N: npt.NDArray[np.int64]
    left_out: Mapping[str, int]


def rank(candidates: pa.Table, *, ascending: bool) -> pa.Table:
    """Return candidates by `value`, ties by `id` and then by `example`."""
    direction = "ascending" if ascending else "descending"
    keys = [("value", direction), ("id", "ascending"), ("example", "ascending")]
    return candidates.take(pc.sort_indices(candidates, sort_keys=keys))


def choose(n_candidates: int, wanted: int, gates: Sequence[Gate]) -> Choice:
    """Walk through candidates from the best on; stop where there are as many as are wanted."""
    chosen: list[int] = []
    left_out: Counter[str] = Counter()
    for index in range(n_candidates):
        if len(chosen) == wanted:
            break
        closed = next((gate for gate in gates if not gate.admits(index)), None)
        if closed is not None:
            left_out[closed.reason] += 1
            continue
        for gate in gates:
            gate.take(index)
        chosen.append(index)
    return Choice(np.array(chosen, dtype=np.int64), dict(left_out))


class QuotaGate:
    """At most so many examples of one value; null is a value like any other.

    Parameters
    ----------
    values : of the quota's column, one a candidate
    most : how many
    """

    reason = "over_quota"

    def __init__(self, quota: Quota, values: Sequence[str | None], most: int) -> None:
        self._only, self._values, self._most = quota.value, values, most
        self._taken: Counter[str | None] = Counter()

    def admits(self, index: int) -> bool:
        value = self._values[index]
        return (self._only is not None and value != self._only) or self._taken[value] < self._most

    def take(self, index: int) -> None:
        self._taken[self._values[index]] += 1
