"""A quick look: some units instead of all, chosen by a seed that can be given again."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from cliffstore.errors import ConfigError

_SAMPLE = re.compile(r"(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True, slots=True)
class Sample:
    """How many units to look at: a number, or a share of all."""

    number: float
    is_share: bool
    seed: int

    def choose(self, units: Iterable[int]) -> set[int]:
        """Return the units to look at: at least one, if there is any."""
        known = sorted(units)
        wanted = ceil(len(known) * self.number / 100) if self.is_share else int(self.number)
        return set(random.Random(self.seed).sample(known, min(wanted, len(known))))


def parse_sample(text: str, seed: int | None = None) -> Sample:
    """Return what `5%` or `100` means; without a seed, one is drawn.

    Raises
    ------
    ConfigError
        It is neither a number of units nor a share of them.
    """
    match = _SAMPLE.fullmatch(text.strip())
    number, is_share = (float(match.group(1)), bool(match.group(2))) if match else (0.0, False)
    usable = 0 < number <= 100 if is_share else number >= 1 and number.is_integer()
    if not usable:
        raise ConfigError(f"--sample {text!r}: give a number of units such as 100, or a share of them such as 5%")
    return Sample(number, is_share, random.randrange(1 << 31) if seed is None else seed)
