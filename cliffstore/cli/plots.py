"""What can be drawn with characters: lines on axes, and sparklines in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cliffstore.cli.output import cell_text

_MARKERS = ("·", "#", "+", "*", "o", "x")
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
    figure.width, figure.height = 72, 14
    figure.color_mode = "names"
    figure.with_colors = False
    figure.origin = False
    figure.x_label, figure.y_label = x_label, y_label
    figure.register_label_formatter(
        float, lambda value, chars, delta, left: f"{value:{'<' if left else '>'}{chars}.1f}"
    )
    for line, marker in zip(lines, _MARKERS, strict=False):
        figure.plot(line.x, line.y, label=cell_text(line.name), marker=marker)
    left_out = len(lines) - len(_MARKERS)
    more = f"\n{left_out} more lines are not drawn: --format csv has all" if left_out > 0 else ""
    return f"{figure.show(legend=True)}{more}"


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Return a block a value, lowest at `low`, highest at `high`; a space where there is none."""
    if not high > low:
        high = low + 1
    return "".join(_block((value - low) / (high - low)) for value in values)


def _block(share: float) -> str:
    if math.isnan(share):
        return " "
    return _BLOCKS[min(max(int(share * len(_BLOCKS)), 0), len(_BLOCKS) - 1)]
