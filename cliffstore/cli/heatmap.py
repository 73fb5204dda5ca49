"""A sweep on the terminal: validation AUROC by layer and position, coloured where there are colours."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from cliffstore.schema import ProbeDocument

_CIVIDIS = ((0, 32, 76), (49, 68, 107), (102, 105, 112), (149, 143, 120), (203, 186, 105), (255, 233, 69))
"""The colours of matplotlib's `cividis`, which all kinds of colour vision tell apart."""
_SHADES = " ░▒▓█"


def print_heatmap(document: ProbeDocument) -> None:
    """Print the cells of a probe, layers from the highest down; the chosen one has a star."""
    from cliffstore.publish.heatmap import grid_of

    grid = grid_of(document)
    in_colour = sys.stdout.isatty()
    console = Console(file=sys.stdout, highlight=False, width=None if in_colour else 10_000)
    width = max(7, *(len(name) + 1 for name in grid.positions))
    console.print(Text(f"validation AUROC  {'position'}"))
    console.print(Text("layer " + "".join(f"{name:>{width}}" for name in grid.positions)))
    for row in reversed(range(len(grid.layers))):
        line = Text(f"{grid.layers[row]:>5} ")
        for column in range(len(grid.positions)):
            value = float(grid.auroc_LP[row, column])
            star = "*" if (row, column) == grid.chosen else " "
            if value != value:
                line.append(" " * width)
                continue
            share = (value - grid.lowest) / max(1 - grid.lowest, 1e-9)
            text = f"{value:.3f}{star}"
            if in_colour:
                line.append(f"{text:>{width}}", style=_style(share))
            else:
                shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
                line.append(f"{shade}{text:>{width - 1}}")
        console.print(line, soft_wrap=True)


def _style(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    low = min(int(place), len(_CIVIDIS) - 2)
    mix = place - low
    red, green, blue = (round(a + (b - a) * mix) for a, b in zip(_CIVIDIS[low], _CIVIDIS[low + 1], strict=True))
    return f"{'black' if share > 0.5 else 'white'} on rgb({red},{green},{blue})"
