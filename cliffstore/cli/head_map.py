"""Figures of heads on the terminal: a map of layers and heads, signed, and a table of the largest."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

Head = tuple[int, int]

_DOWN, _UP = (33, 102, 172), (178, 24, 43)
"""Blue and red of ColorBrewer's RdBu, which all kinds of colour vision tell apart; white is zero."""
_BELOW, _ABOVE = " ░▒▓█", " ·+*#"
"""Without colours: blocks take the score down, marks take it up."""
_MOST_FIGURES = 16
"""Heads of a layer, above which a cell is one character."""


def print_head_map(values: Mapping[Head, float], title: str) -> None:
    """Print a cell a head, layers from the highest down; the largest value of either sign has the full colour."""
    layers = sorted({layer for layer, _ in values}, reverse=True)
    n_heads = max(head for _, head in values) + 1
    largest = max(abs(value) for value in values.values()) or 1.0
    in_colour, with_figures = sys.stdout.isatty(), n_heads <= _MOST_FIGURES
    width = 8 if with_figures else 2 if in_colour else 1
    console = Console(file=sys.stdout, highlight=False, width=None if in_colour else 10_000)
    console.print(Text(f"{title}; largest {largest:.3g}"))
    if with_figures:
        console.print(Text("layer " + "".join(f"{head:>{width}}" for head in range(n_heads))))
    for layer in layers:
        line = Text(f"{layer:>5} ")
        for head in range(n_heads):
            value = values.get((layer, head))
            if value is None:
                line.append(" " * width)
                continue
            share = value / largest
            figure = f"{value:+.3f}" if with_figures else ""
            if in_colour:
                line.append(f"{figure:>{width}}", style=_style(share))
            else:
                line.append(f"{figure}{_mark(share)}".rjust(width))
        console.print(line, soft_wrap=True)
    if not in_colour:
        console.print(Text(f"{_BELOW[1:]} down, {_ABOVE[1:]} up"))


def _mark(share: float) -> str:
    marks = _BELOW if share < 0 else _ABOVE
    return marks[min(round(abs(share) * (len(marks) - 1)), len(marks) - 1)]


def _style(share: float) -> str:
    end = _DOWN if share < 0 else _UP
    strength = min(abs(share), 1.0)
    red, green, blue = (round(255 + (one - 255) * strength) for one in end)
    return f"{'white' if strength > 0.6 else 'black'} on rgb({red},{green},{blue})"


def largest_first(rows: Sequence[Mapping[str, object]], top: int) -> list[Mapping[str, object]]:
    """Return the rows with the largest figures of either sign."""
    return sorted(rows, key=lambda row: -abs(float(str(row["mean"]))))[:top]
