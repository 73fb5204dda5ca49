"""What a planted model is made from, and where each of its heads stands: settings to places, nothing else.

Blocks have three zones. Block 0 prepares: the gate moves a flag, two heads note where in the text a token is. The
middle blocks work on the refusal direction. The last block comes after the probe, and does nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from cliffstore.errors import ConfigError

Head: TypeAlias = tuple[int, int]
"""(layer, head)"""

FEWEST_LAYERS, FEWEST_HEADS, MOST = 3, 4, 64
WRITERS = 2
OTHER_HEADS = 5
"""Heads in the middle blocks that are no suppressors: writers and decoys."""


class Role(StrEnum):
    """What a head is for."""

    GATE = "gate"
    WRITER = "writer"
    SUPPRESSOR = "suppressor"
    DECOY_CONSTANT = "decoy_constant"
    DECOY_JAILBREAK = "decoy_jailbreak"
    DECOY_CLOSE = "decoy_close"
    PREVIOUS = "previous"
    CLOSER = "closer"
    IDLE = "idle"


DECOYS = (Role.DECOY_CONSTANT, Role.DECOY_JAILBREAK, Role.DECOY_CLOSE)
PLUMBING = (Role.PREVIOUS, Role.CLOSER)


@dataclass(frozen=True, slots=True)
class PlantSettings:
    """What a planted model is made from.

    Attributes
    ----------
    seed : of where heads stand, how the basis is turned, how words are coded
    layers : blocks, 3 to 64
    heads : attention heads of each block, 4 to 64
    suppressors : planted heads that take the refusal away; the middle blocks need 5 heads besides

    Raises
    ------
    ConfigError
        A value is out of its range.
    """

    seed: int = 0
    layers: int = 6
    heads: int = 8
    suppressors: int = 3

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}")
        for name, value, fewest in (("layers", self.layers, FEWEST_LAYERS), ("heads", self.heads, FEWEST_HEADS)):
            if not fewest <= value <= MOST:
                raise ConfigError(f"{name} must be {fewest} to {MOST}, not {value}")
        room = (self.layers - 2) * self.heads - OTHER_HEADS
        if room < 1:
            raise ConfigError(f"{self.layers} layers of {self.heads} heads have no room: give more of either")
        if not 1 <= self.suppressors <= room:
            raise ConfigError(
                f"suppressors must be 1 to {room} with {self.layers} layers of {self.heads} heads, "
                f"not {self.suppressors}"
            )

    @property
    def probe_layer(self) -> int:
        """The block whose output the probe reads: the last but one."""
        return self.layers - 2


def place_heads(settings: PlantSettings) -> dict[Head, Role]:
    """Give every head its role. Suppressors are spread over the middle blocks; a seed decides the head indices."""
    middle = range(1, settings.layers - 1)
    first, last = middle[0], middle[-1]
    wanted: list[tuple[int, Role]] = [
        (0, Role.GATE),
        (0, Role.PREVIOUS),
        (0, Role.CLOSER),
        (last, Role.DECOY_CONSTANT),
        (settings.layers - 1, Role.DECOY_CONSTANT),
        (first, Role.WRITER),
        (middle[len(middle) // 2], Role.WRITER),
        (last, Role.DECOY_JAILBREAK),
        (last, Role.DECOY_CLOSE),
    ]
    spread = np.linspace(0, len(middle) - 1, settings.suppressors) if settings.suppressors > 1 else [len(middle) // 2]
    wanted += [(middle[round(place)], Role.SUPPRESSOR) for place in spread]

    rng = np.random.default_rng((settings.seed, 1))
    free = {layer: rng.permutation(settings.heads).tolist() for layer in range(settings.layers)}
    roles: dict[Head, Role] = {}
    for layer, role in wanted:
        # a full block sends its head to the nearest middle block that has room
        chosen = layer if free[layer] else min((one for one in middle if free[one]), key=lambda one: abs(one - layer))
        roles[chosen, int(free[chosen].pop())] = role
    for layer, heads in free.items():
        roles |= {(layer, int(head)): Role.IDLE for head in heads}
    return dict(sorted(roles.items()))
