"""What `cliffstore heads experiment` is told, what it tells, and the values that its modules hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cliffstore.config.values import check_level
from cliffstore.errors import ConfigError
from cliffstore.plan.choices import parse_choice

Thinking = Literal["fixed", "regenerated"]
FIXED: Thinking = "fixed"
REGENERATED: Thinking = "regenerated"
UNCHANGED, CHOSEN, RANDOM = "unchanged", "chosen", "random"
"""Kinds of conditions."""
HARMFUL, BENIGN = "harmful", "benign"
"""Parts of the examples."""
SCORE, DIFFERENCE, REFUSED, PERPLEXITY = "score", "logit_difference", "refused", "perplexity"
"""Measures."""
REFUSAL_OPENERS = ("I cannot", "I can't", "I'm sorry", "Sorry", "Unfortunately")
COMPLIANCE_OPENERS = ("Sure", "Here", "Certainly", "Of course")
MOST_TRACED = 1_000
"""Harmful examples for tracing; more make the condition in the document of the trace long, and the shares no better."""
Head = tuple[int, int]
Heads = tuple[Head, ...]


@dataclass(frozen=True, slots=True)
class ExperimentSettings:
    """What to do. See `Store.experiment_heads`."""

    probe: str
    name: str
    trace: str | None = None
    shares: tuple[float, ...] = (1.0, 3.0, 10.0)
    random: int = 20
    random_generate: int = 3
    scale: float = 0.0
    keep_norm: bool = False
    positions: str = "all"
    harmful_where: str = "label = '1'"
    benign_where: str = "label = '0'"
    limit: int = 100
    thinking: Literal["fixed", "regenerated", "both"] = "both"
    new_tokens: int = 64
    thinking_tokens: int = 512
    benign_text: str = "response"
    refusal_openers: tuple[str, ...] = REFUSAL_OPENERS
    compliance_openers: tuple[str, ...] = COMPLIANCE_OPENERS
    batch_size: int = 16
    resamples: int = 1_000
    level: float = 0.95
    seed: int = 0
    replace: bool = False

    def __post_init__(self) -> None:
        parse_choice(self.positions)
        if not self.shares or not all(0 < share <= 100 for share in self.shares):
            raise ConfigError(f"shares {self.shares}: give percentages of heads above 0, such as 1,3,10")
        if not 0 <= self.scale <= 2:
            raise ConfigError(f"scale {self.scale}: give a factor from 0 to 2; 0 switches heads off")
        if self.thinking not in (FIXED, REGENERATED, "both"):
            raise ConfigError(f"thinking {self.thinking!r}: choose fixed, regenerated or both")
        if min(self.random, self.random_generate, self.resamples) < 0:
            raise ConfigError("random, random-generate and resamples must not be negative")
        if min(self.limit, self.new_tokens, self.thinking_tokens, self.batch_size) < 1:
            raise ConfigError("limit, new-tokens, thinking-tokens and batch-size must be at least 1")
        check_level(self.level)
        if not self.refusal_openers or not self.compliance_openers:
            raise ConfigError("logit differences need at least one opener of refusals and one of answers")


@dataclass(frozen=True, slots=True)
class Condition:
    """What is done to the model.

    Attributes
    ----------
    share : percentage of all heads that was asked for; None for the unchanged model
    number : of a random set; None for others
    heads : that are scaled
    generates : whether it writes text, too
    """

    kind: str
    share: float | None
    number: int | None
    heads: Heads
    generates: bool

    @property
    def title(self) -> str:
        """What progress calls it."""
        if self.share is None:
            return self.kind
        number = "" if self.number is None else f" {self.number + 1}"
        return f"{self.kind}{number} {self.share:g} %"


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """What was done.

    Attributes
    ----------
    conditions : of all ways of thinking; `computed` of them in this run
    rows : of the table, by name of column
    """

    name: str
    document: dict[str, object]
    rows: list[dict[str, object]]
    conditions: int
    computed: int
    seconds: float
    files: tuple[str, ...] = ()
