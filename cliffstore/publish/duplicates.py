"""Near-duplicates of what is chosen: by the words of the prompt, and by the vectors at the decision position.

Prompts are alike by the Jaccard index of their sets of three words in a row, exactly: an inverted index over rare
shingles finds the few chosen prompts that may reach the threshold (prefix filter: two sets with J >= t share one of
the first |x| - ceil(t |x|) + 1 elements in any order that both keep to), and only those are compared.

Vectors are alike by the cosine after the mean of the candidates is taken from both. Without that, residual streams of
one position all point the same way (a few dimensions are far larger than the rest in every example), and any two
examples are alike. Blocks of candidates are multiplied with what is chosen; what lies close to the threshold, where
the order of a sum might decide, is summed again in double precision and in one order.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SAMPLED = 4_096
"""Candidates, at most, that say which shingles are common and what the mean vector is."""
_N_GRAM = 3
_ALONE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
"""A word; where a script has no spaces, a character."""
_BLOCK_BYTES, _BLOCK_MOST, _BLOCK_LEAST = 64 << 20, 4_096, 256
_MARGIN = 1e-3

Vectors = npt.NDArray[np.float32]


def shingles(text: str) -> frozenset[str]:
    """Return the sets of three words in a row, without case and punctuation; a shorter text is one whole."""
    words = _WORD.findall(text.casefold())
    if len(words) < _N_GRAM:
        return frozenset([" ".join(words) or text.strip()])
    return frozenset(" ".join(words[at : at + _N_GRAM]) for at in range(len(words) - _N_GRAM + 1))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return shared elements over all elements."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def spread(n: int) -> npt.NDArray[np.int64]:
    """Return at most `SAMPLED` of n indices, evenly spread, int64 ascending."""
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLED)).round().astype(np.int64)) if n else np.zeros(0, np.int64)


class PromptGate:
    """Keeps out prompts that are nearly those of a chosen example.

    Parameters
    ----------
    prompts : strings, one a candidate
    threshold : of the Jaccard index
    """

    reason = "near_duplicate_prompt"

    def __init__(self, prompts: pa.Array, threshold: float) -> None:
        self._prompts, self._threshold = prompts, threshold
        self._frequency = Counter(one for index in spread(len(prompts)).tolist() for one in self._shingles(index))
        self._chosen: list[frozenset[str]] = []
        self._having: defaultdict[str, list[int]] = defaultdict(list)
        self._now: frozenset[str] = frozenset()

    def admits(self, index: int) -> bool:
        self._now = self._shingles(index)
        size, least = len(self._now), self._threshold
        suspects = {other for one in self._first(self._now) for other in self._having.get(one, ())}
        return not any(
            least * size <= len(self._chosen[other]) * (1 + 1e-9)
            and least * len(self._chosen[other]) <= size * (1 + 1e-9)
            and jaccard(self._now, self._chosen[other]) >= least
            for other in suspects
        )

    def take(self, index: int) -> None:
        for one in self._first(self._now):
            self._having[one].append(len(self._chosen))
        self._chosen.append(self._now)

    def _shingles(self, index: int) -> frozenset[str]:
        return shingles(self._prompts[index].as_py() or "")

    def _first(self, found: frozenset[str]) -> list[str]:
        """Return the rarest shingles, one of which is shared with whatever reaches the threshold."""
        n = len(found) - math.ceil(self._threshold * len(found) - 1e-9) + 1
        return sorted(found, key=lambda one: (self._frequency[one], one))[:n]


class ActivationGate:
    """Keeps out examples whose vector is nearly that of a chosen example.

    Memory: blocks of at most 64 MiB, what lies beside them, and the vectors of what is chosen.

    Parameters
    ----------
    n_candidates : how many there are
    read : of candidates' indices -> their vectors, float32 [N, width]
    threshold : of the cosine
    wanted : how many are to be chosen: no more is read at once than may be needed
    sample_N : candidates whose mean is taken from all
    """

    reason = "near_duplicate_activation"

    def __init__(
        self,
        n_candidates: int,
        read: Callable[[npt.NDArray[np.int64]], Vectors],
        threshold: float,
        wanted: int,
        sample_N: npt.NDArray[np.int64],
    ) -> None:
        self._n, self._read, self._threshold = n_candidates, read, threshold
        sampled_ND = read(sample_N)
        self._mean_D = sampled_ND.mean(axis=0, dtype=np.float64)
        self._width = sampled_ND.shape[1]
        fits = _BLOCK_BYTES // (4 * max(self._width, 1))
        self._rows = max(min(fits, 2 * wanted, _BLOCK_MOST), _BLOCK_LEAST)
        self._unit_KD = np.zeros((_BLOCK_LEAST, self._width + 1), dtype=np.float32)
        self._n_chosen = 0
        self._first, self._unit_BD = 0, self._unit_KD[:0]
        self._like_BK: npt.NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)
        self._like_BB = self._like_BK
        self._within: list[int] = []

    def admits(self, index: int) -> bool:
        if not self._first <= index < self._first + len(self._unit_BD):
            self._load(index)
        at = index - self._first
        unit_D, close = self._unit_BD[at], self._threshold - _MARGIN
        before = np.flatnonzero(self._like_BK[at] >= close)
        if self._is_like(unit_D, self._unit_KD[before]):
            return False
        within = [other for other in self._within if self._like_BB[at, other] >= close]
        return not self._is_like(unit_D, self._unit_BD[within])

    def take(self, index: int) -> None:
        if self._n_chosen == len(self._unit_KD):
            self._unit_KD = np.concatenate([self._unit_KD, np.zeros_like(self._unit_KD)])
        self._unit_KD[self._n_chosen] = self._unit_BD[index - self._first]
        self._n_chosen += 1
        self._within.append(index - self._first)

    def _load(self, index: int) -> None:
        self._first, self._within = index, []
        rows = max(min(self._rows, _BLOCK_BYTES // (4 * max(self._n_chosen, 1))), _BLOCK_LEAST)
        self._unit_BD = self._unit(self._read(np.arange(index, min(index + rows, self._n))))
        self._like_BK = self._unit_BD @ self._unit_KD[: self._n_chosen].T
        self._like_BB = self._unit_BD @ self._unit_BD.T

    def _unit(self, h_ND: Vectors) -> Vectors:
        """Return vectors less the mean, of length 1, float32 [N, width + 1].

        The last number is 1 for vectors that equal the mean, and have no direction; these are like one another.
        """
        unit_ND = np.zeros((len(h_ND), self._width + 1), dtype=np.float32)
        for first in range(0, len(h_ND), _BLOCK_LEAST):
            part = h_ND[first : first + _BLOCK_LEAST] - self._mean_D
            length = np.sqrt(np.einsum("nd,nd->n", part, part))
            unit_ND[first : first + _BLOCK_LEAST, :-1] = part / np.where(length > 0, length, 1)[:, None]
            unit_ND[first : first + _BLOCK_LEAST, -1] = length == 0
        return unit_ND

    def _is_like(self, unit_D: Vectors, others_MD: Vectors) -> bool:
        if not len(others_MD):
            return False
        cosine_M = (others_MD.astype(np.float64) * unit_D).sum(axis=1)
        return bool((cosine_M >= self._threshold - 1e-6).any())
