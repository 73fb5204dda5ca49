"""What a selection is asked for, read from the texts that options have: strategy, number, quotas, near-duplicates.

| strategy | value of an example | first |
|---|---|---|
| `cliff` | plateau - final | highest |
| `final` | score at the decision position alone | lowest: the least refusal before the answer |
| `random` | a hash of seed and id | highest |
| `rules` | the same hash, of examples whose response is no refusal by its words | highest |
| `column:NAME` | a number or a boolean of the corpus, such as a judge's | highest |
| `sql:EXPRESSION` | any expression over examples (`e`) and cliffs (`c`) | highest |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cliffstore.errors import SelectionError

STRATEGIES = ("cliff", "final", "random", "rules", "column:NAME", "sql:EXPRESSION")
DEDUPES = {"prompt": 0.8, "activation": 0.98}
"""What near-duplicates are told by, and from what likeness on by default."""
_OF_CLIFFS = ("cliff", "final")
_TURNED = ("cliff", "column", "sql")
_MOST = 1e12
_TOP = re.compile(r"(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy, and what it is of: a column or an expression."""

    kind: str
    of: str = ""

    @property
    def needs_cliffs(self) -> bool:
        return self.kind in _OF_CLIFFS


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many examples with one value of a column: with `value`, or with any one where that is None.

    `number` is a number of examples, or a percentage of those that are wanted where `is_share`.
    """

    column: str
    value: str | None
    number: float
    is_share: bool

    def most(self, wanted: int) -> int:
        """Return how many examples that is; a share is rounded down, and is one at least unless it is 0 %."""
        if not self.is_share:
            return int(self.number)
        return max(int(wanted * self.number / 100 + 1e-9), 1 if self.number else 0)


@dataclass(frozen=True, slots=True)
class Dedupe:
    """Examples are near-duplicates whose prompts, or activations, are at least so much alike."""

    kind: Literal["prompt", "activation"]
    threshold: float


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """What to choose. All that it takes to choose again is in here, and goes into the document.

    Attributes
    ----------
    top : a number of examples, or a share of the candidates such as `1.7%`
    ascending : smallest value first; of `cliff`, `column:` and `sql:` alone
    seed : of `random` and `rules`
    probe : may be None where no cliffs and no activations are asked for
    where : SQL condition over examples (`e`) and cliffs (`c`)
    phrases : what refusals begin with; None for the built-in wordings
    min_plateau : a logit; examples below it, or without a plateau, are no candidates
    quotas, dedupe : as `parse_quota` and `parse_dedupe` read them
    """

    name: str
    top: str
    strategy: str = "cliff"
    ascending: bool = False
    seed: int = 0
    probe: str | None = None
    where: str | None = None
    phrases: tuple[str, ...] | None = None
    min_plateau: float | None = None
    quotas: tuple[str, ...] = ()
    dedupe: tuple[str, ...] = ()

    @property
    def needs_cliffs(self) -> bool:
        return parse_strategy(self.strategy).needs_cliffs or self.min_plateau is not None

    @property
    def lowest_first(self) -> bool:
        return self.ascending or parse_strategy(self.strategy).kind == "final"

    @property
    def needs_vectors(self) -> bool:
        return any(parse_dedupe(one).kind == "activation" for one in self.dedupe)


def check_settings(settings: SelectionSettings) -> None:
    """Find what is wrong with settings as far as that can be known without a store. Raises `SelectionError`."""
    check_top(settings.top)
    kind = parse_strategy(settings.strategy).kind
    if settings.ascending and kind not in _TURNED:
        raise SelectionError(
            f"--ascending has no meaning for strategy {kind}: it is for cliff, column:NAME and sql:EXPRESSION"
        )
    if settings.phrases is not None and kind != "rules":
        raise SelectionError(f"--rules is for strategy rules, not {kind}: leave it out")
    if settings.min_plateau is not None and not math.isfinite(settings.min_plateau):
        raise SelectionError(f"--min-plateau {settings.min_plateau}: give a number")
    for one in settings.quotas:
        parse_quota(one)
    _refuse_twice("--dedupe", (parse_dedupe(one).kind for one in settings.dedupe))


def parse_strategy(text: str) -> Strategy:
    """Return the strategy that a text names. Raises `SelectionError` where it names none."""
    kind, colon, of = text.partition(":")
    known = {name.partition(":")[0]: ":" in name for name in STRATEGIES}
    if kind not in known or bool(colon) is not known[kind] or (colon and not of.strip()):
        raise SelectionError(f"strategy {text!r} is not known: choose from {', '.join(STRATEGIES)}")
    return Strategy(kind, of.strip())


def parse_quota(text: str) -> Quota:
    """Return the quota of `source=50%`, `source=100`, `label:1=500` or `label:1=70%`.

    Raises
    ------
    SelectionError
        It is none of these.
    """
    named, equals, limit = text.rpartition("=")
    column, colon, value = named.partition(":")
    match = _TOP.fullmatch(limit.strip())
    number = float(match[1]) if match else -1.0
    is_share = bool(match and match[2])
    usable = 0 <= number <= 100 if is_share else 0 <= number < _MOST and number.is_integer()
    if not equals or not column.strip() or not usable:
        raise SelectionError(
            f"--quota {text!r}: write COLUMN=50% or COLUMN=100 (at most so many of any one value), or "
            "COLUMN:VALUE=500 (of that value)"
        )
    return Quota(column.strip(), value if colon else None, number, is_share)


def parse_dedupe(text: str) -> Dedupe:
    """Return what `prompt`, `prompt:0.8`, `activation` or `activation:0.98` means. Raises `SelectionError`."""
    kind, colon, given = text.strip().partition(":")
    try:
        threshold = float(given) if colon else DEDUPES.get(kind, 0.0)
    except ValueError:
        threshold = 0.0
    if kind not in DEDUPES or not 0 < threshold <= 1:
        raise SelectionError(
            f"--dedupe {text!r}: write prompt or activation, and after a colon from what likeness on (above 0, up to "
            "1), such as prompt:0.8"
        )
    return Dedupe("prompt" if kind == "prompt" else "activation", threshold)


def check_top(top: str) -> tuple[float, bool]:
    """Return the number in `top` and whether it is a percentage. Raises `SelectionError` where it is neither."""
    match = _TOP.fullmatch(top.strip())
    number = float(match.group(1)) if match else 0.0
    share = bool(match and match.group(2))
    usable = 0 < number <= 100 if share else 0 < number < _MOST and number.is_integer()
    if not usable:
        raise SelectionError(f"--top {top!r}: give a number of examples such as 700, or a share such as 1.7%")
    return number, share


def count_top(top: str, candidates: int) -> int:
    """Return how many of `candidates` examples `top` means: at least one, at most all."""
    number, share = check_top(top)
    wanted = round(candidates * number / 100) if share else int(number)
    return min(max(wanted, 1), candidates)


def _refuse_twice(option: str, kinds: Iterable[str]) -> None:
    seen: set[str] = set()
    for kind in kinds:
        if kind in seen:
            raise SelectionError(f"{option} {kind} is said twice: say it once")
        seen.add(kind)
