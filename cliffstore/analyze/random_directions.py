"""Random directions: a control for what a probe shows. A cliff that they show too is none of the probe's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError

MOST = 1_000

Vector = npt.NDArray[np.float32]


def random_directions(w_D: Vector, n: int, seed: int) -> list[Vector]:
    """Return directions that are uniform on the sphere of a vector's width and norm, float32 [D] each.

    Raises
    ------
    ConfigError
        `n` is none that can be had.
    """
    if not 1 <= n <= MOST:
        raise ConfigError(f"{n} random directions: choose a number from 1 to {MOST:,}")
    norm = float(np.linalg.norm(w_D.astype(np.float64)))
    drawn = (np.random.default_rng([seed, number]).standard_normal(len(w_D)) for number in range(n))
    return [(norm * h_D / np.linalg.norm(h_D)).astype(np.float32) for h_D in drawn]
