"""The colours of scores: blue below the probe's threshold (score 0), orange above, the ground in the middle.

Blue and orange stay apart under all common kinds of colour vision, and each step is darker (on dark: lighter) than the
one before, so that strength is seen without colour too. On every step the text has a contrast of at least 4.5 : 1
(WCAG 2.2, 1.4.3). Steps are equal in logits up to a limit, and the last one holds all that is beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Theme = Literal["light", "dark"]
STEPS = 5
"""On each side of the middle."""
BELOW: dict[Theme, tuple[str, ...]] = {
    "light": ("#e4eff9", "#c6dff2", "#9fc9e9", "#72aedb", "#4a92cb"),
    "dark": ("#1d2f40", "#1f405c", "#215178", "#246394", "#2a72ad"),
}
ABOVE: dict[Theme, tuple[str, ...]] = {
    "light": ("#fdeddc", "#fbd9b0", "#f7bd7c", "#ee9f4d", "#de8228"),
    "dark": ("#382a1c", "#52381e", "#6d471d", "#87551a", "#9c6117"),
}
MIDDLE: dict[Theme, str] = {"light": "#ffffff", "dark": "#16181d"}
INK: dict[Theme, str] = {"light": "#14171a", "dark": "#f4f5f7"}
_QUANTILE = 0.98
_NEARLY = 1 - 1e-6
_NICE = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


def limit_of(scores: npt.NDArray[np.float32]) -> float:
    """Return where the colours of a probe end: a round number near the 98th percentile of |score|, in logits."""
    known = np.abs(scores[np.isfinite(scores)])
    reached = float(np.quantile(known, _QUANTILE)) if len(known) else 0.0
    if reached <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(reached))
    return next((nice * power for nice in _NICE if nice * power >= reached * _NEARLY), 10 * power)


def colours(theme: Theme) -> list[str]:
    """Return the steps from the lowest score to the highest."""
    return [*reversed(BELOW[theme]), MIDDLE[theme], *ABOVE[theme]]


def variables(theme: Theme) -> str:
    """Return the colours as CSS custom properties: `--step-0` is the lowest."""
    steps = [f"--step-{number}: {colour};" for number, colour in enumerate(colours(theme))]
    return " ".join([*steps, f"--on-step: {INK[theme]};"])


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear: Sequence[float] = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


THEMES: tuple[Theme, ...] = get_args(Theme)
