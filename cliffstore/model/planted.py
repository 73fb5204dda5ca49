"""A transformer whose refusal mechanism is set by hand: ground truth for probes, cliffs, head tracing, ablation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cliffstore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEWEST_LAYERS, FEWEST_HEADS = 3, 4
OTHER_HEADS = 4
"""Heads in the middle layers that are no suppressors: writers and decoys."""


@dataclass(frozen=True, slots=True)
class PlantSettings:
    """What a planted model is made from.

    Attributes
    ----------
    seed : of where heads stand and how the basis is turned
    layers : blocks
    heads : attention heads of each block
    suppressors : planted heads that take the refusal away
    """

    seed: int = 0
    layers: int = 6
    heads: int = 8
    suppressors: int = 3

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}")
        if not FEWEST_LAYERS <= self.layers <= 64:
            raise ConfigError(f"layers must be {FEWEST_LAYERS} to 64, not {self.layers}")
        if not FEWEST_HEADS <= self.heads <= 64:
            raise ConfigError(f"heads must be {FEWEST_HEADS} to 64, not {self.heads}")
        room = (self.layers - 2) * self.heads - OTHER_HEADS
        if not 1 <= self.suppressors <= room:
            limit = f"1 to {room}" if room >= 1 else "more than these layers and heads have room for"
            raise ConfigError(
                f"suppressors must be {limit} for {self.layers} layers of {self.heads} heads, not {self.suppressors}"
            )


@dataclass(frozen=True, slots=True)
class PlantedTruth:
    """Which head does what, and the probe. Heads are (layer, head)."""

    layer: int
    suppressors: tuple[tuple[int, int], ...]
    writers: tuple[tuple[int, int], ...]
    decoys: tuple[tuple[int, int], ...]
    gates: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Planted:
    """A planted model and all that is known of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    truth: PlantedTruth
    settings: PlantSettings

    def corpus(self, n: int, seed: int = 0) -> list[dict[str, object]]:
        """Return n rows."""
        raise NotImplementedError

    def save(self, folder: Path, *, examples: int = 96) -> None:
        """Write everything to a folder."""
        raise NotImplementedError


def plant(settings: PlantSettings) -> Planted:
    """Build a planted model."""
    raise NotImplementedError
