"""What score an example held over its thinking: a statistic over all tokens of the segment `think`, or over some.

Statistics: `mean`, `median`, `max`, or a quantile such as `q0.9` (between two scores, linear, as NumPy's). Windows:
`all`, `last:32` tokens, `first:50%` of them; a share is rounded up, and an example that has fewer tokens gives all that
it has. Every example counts with the tokens of its own: nothing is padded, cut to one length or resampled.

Legend: T thinking tokens of all examples, one example after the other; E examples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError

ALL = "all"
_QUANTILE = re.compile(r"q(0(?:\.\d{1,6})?|1(?:\.0{1,6})?)")
_WINDOW = re.compile(r"(first|last):(\d{1,9})(?:\.(\d{1,6}))?(%?)")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlateauRule:
    """A statistic and a window, as they are written down with the cliffs that they gave. Use `parse` to make one."""

    statistic: str = "mean"
    window: str = ALL

    @classmethod
    def parse(cls, statistic: str, window: str = ALL) -> Self:
        """Return a rule, in one way of writing it.

        Raises
        ------
        ConfigError
            It is none.
        """
        statistic, window = statistic.strip().lower(), window.strip().lower()
        if found := _QUANTILE.fullmatch(statistic):
            statistic = f"q{float(found[1]):g}"
        elif statistic not in ("mean", "median", "max"):
            raise ConfigError(
                f"plateau {statistic!r} is not known: choose mean, median, max or a quantile such as q0.9"
            )
        if window == ALL:
            return cls(statistic, window)
        found = _WINDOW.fullmatch(window)
        number = Fraction(f"{found[2]}.{found[3] or 0}") if found else Fraction(0)
        if not found or not number or (number > 100 if found[4] else number.denominator > 1):
            raise ConfigError(f"window {window!r} is not known: write all, last:32 or first:50%")
        return cls(statistic, f"{found[1]}:{float(number):.9g}{found[4]}")

    def __str__(self) -> str:
        return f"{self.statistic} over {'all' if self.window == ALL else self.window} thinking tokens"

    def plateaus(self, score_T: npt.NDArray[np.float32], example_T: Ints, n_examples: int) -> Floats:
        """Return the plateau of each example as float64 [E]; NaN where it has no thinking.

        Means are sums over tokens in their order, so that equal scores give equal plateaus to the last bit.

        Parameters
        ----------
        example_T : number of the example, from 0 on, in ascending order
        """
        kept_T = self._in_window(example_T, n_examples)
        if kept_T is not None:
            score_T, example_T = score_T[kept_T], example_T[kept_T]
        n_E = np.bincount(example_T, minlength=n_examples)
        some_E = n_E > 0
        plateau_E = np.full(n_examples, np.nan)
        if not len(score_T):
            return plateau_E
        begin_E = (np.cumsum(n_E) - n_E)[some_E]
        if self.statistic == "mean":
            # bincount adds one weight after the other; add.reduceat would add in pairs.
            plateau_E[some_E] = np.bincount(example_T, weights=score_T, minlength=n_examples)[some_E] / n_E[some_E]
        elif self.statistic == "max":
            plateau_E[some_E] = np.maximum.reduceat(score_T, begin_E)
        else:
            share = 0.5 if self.statistic == "median" else float(self.statistic[1:])
            sorted_T = score_T[np.lexsort((score_T, example_T))].astype(np.float64)
            at_E = (n_E[some_E] - 1) * share
            below_E = np.floor(at_E).astype(np.int64)
            above_E = np.minimum(below_E + 1, n_E[some_E] - 1)
            low_E, high_E = sorted_T[begin_E + below_E], sorted_T[begin_E + above_E]
            plateau_E[some_E] = low_E + (at_E - below_E) * (high_E - low_E)
        return plateau_E

    def _in_window(self, example_T: Ints, n_examples: int) -> npt.NDArray[np.bool_] | None:
        """Return which tokens are in the window; None where all are."""
        if self.window == ALL:
            return None
        side, _, size = self.window.partition(":")
        n_E = np.bincount(example_T, minlength=n_examples)
        if size.endswith("%"):
            share = Fraction(size[:-1]) / 100
            wanted_E = -(-n_E * share.numerator // share.denominator)
        else:
            wanted_E = np.minimum(n_E, int(size))
        number_T = np.arange(len(example_T)) - (np.cumsum(n_E) - n_E)[example_T]
        if side == "first":
            return number_T < wanted_E[example_T]
        return number_T >= (n_E - wanted_E)[example_T]
