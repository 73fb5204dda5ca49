"""A sweep as a picture: validation AUROC by layer and position, the chosen cell framed.

The colours are those of `cividis`, which look alike to all kinds of colour vision; every cell has its value written
in it. Needs matplotlib, the optional extra `plot`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError, ProbeError
from cliffstore.schema import ProbeDocument

_MOST_VALUES = 2_000
"""Cells, above which values would not be legible."""


@dataclass(frozen=True, slots=True)
class Grid:
    """AUROC by layer and position: [L, P], NaN where a cell was not tried."""

    layers: tuple[int, ...]
    positions: tuple[str, ...]
    auroc_LP: npt.NDArray[np.float64]
    chosen: tuple[int, int]

    @property
    def lowest(self) -> float:
        """The value at which colours begin: .5, which is chance, or lower where a cell is."""
        return float(min(0.5, np.nanmin(self.auroc_LP)))


def grid_of(document: ProbeDocument) -> Grid:
    """Return the figures of a probe's cells as a grid. Raises `ProbeError` where it has none."""
    if document.chosen is None:
        raise ProbeError(f"probe {document.name!r} was imported as it is: it has no figures to draw")
    layers = tuple(sorted({cell.layer for cell in document.cells}))
    positions = tuple(dict.fromkeys(cell.positions for cell in document.cells))
    auroc_LP = np.full((len(layers), len(positions)), np.nan)
    for cell in document.cells:
        auroc_LP[layers.index(cell.layer), positions.index(cell.positions)] = cell.auroc
    chosen = (layers.index(document.layer), positions.index(document.positions))
    return Grid(layers, positions, auroc_LP, chosen)


def heatmap_png(document: ProbeDocument) -> bytes:
    """Return the picture as PNG.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    ProbeError
        The probe has no figures.
    """
    grid = grid_of(document)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        raise ConfigError("a heat map needs matplotlib: run `pip install 'cliffstore[plot]'`") from None
    n_layers, n_positions = grid.auroc_LP.shape
    figure = Figure(figsize=(max(3.5, 1.8 + 0.55 * n_positions), max(2.5, 1.4 + 0.26 * n_layers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(
        grid.auroc_LP, origin="lower", aspect="auto", cmap="cividis", vmin=grid.lowest, vmax=1.0, interpolation="none"
    )
    axes.set_xticks(range(n_positions), grid.positions, rotation=0 if n_positions < 12 else 90)
    axes.set_yticks(range(n_layers), [str(layer) for layer in grid.layers])
    axes.set_xlabel("position")
    axes.set_ylabel("layer")
    axes.set_title(f"{document.name}: {document.kind}, {document.site}", fontsize=10)
    figure.colorbar(image, ax=axes, label="validation AUROC")
    if grid.auroc_LP.size <= _MOST_VALUES:
        middle = (1 + grid.lowest) / 2
        for (layer, position), value in np.ndenumerate(grid.auroc_LP):
            if np.isfinite(value):
                colour = "black" if value > middle else "white"
                axes.text(position, layer, f"{value:.3f}", ha="center", va="center", fontsize=7, color=colour)
    row, column = grid.chosen
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()
