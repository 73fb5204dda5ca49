"""What can be drawn with characters: lines on axes, and sparklines in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cliffstore.cli.output import cell_text

_MARKERS = ("·", "#", "+", "*", "o", "x")
_HEIGHT = 14
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one curve, and what it is called."""

    name: str
    x: Sequence[int]
    y: Sequence[float]


def draw_lines(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Return lines as a plot of characters. Those that there is no marker for are counted below it."""
    import plotille

    figure = plotille.Figure()
    figure.width, figure.height = 72, _HEIGHT
    figure.color_mode = "names"
    figure.with_colors = False
    figure.origin = False
    figure.x_label, figure.y_label = x_label, y_label
    figure.register_label_formatter(float, _tick)
    for line, marker in zip(lines, _MARKERS, strict=False):
        figure.plot(line.x, line.y, label=cell_text(line.name), marker=marker)
    left_out = len(lines) - len(_MARKERS)
    more = f"\n{left_out} more lines are not drawn: --format csv has all" if left_out > 0 else ""
    return f"{figure.show(legend=True)}{more}"


def _tick(value: float, chars: int, delta: float, left: bool = False) -> str:
    """Return a number on an axis that is `delta` long, with as many decimals as tell one line from the next."""
    step = delta / _HEIGHT
    digits = min(max(math.ceil(-math.log10(step)), 1), chars - 4) if step > 0 else 1
    return f"{value:{'<' if left else '>'}{chars}.{digits}f}"


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Return a block a value, lowest at `low`, highest at `high`; a space where there is none."""
    if not high > low:
        high = low + 1
    return "".join(_block((value - low) / (high - low)) for value in values)


def _block(share: float) -> str:
    if math.isnan(share):
        return " "
    return _BLOCKS[min(int(min(max(share, 0.0), 1.0) * len(_BLOCKS)), len(_BLOCKS) - 1)]
