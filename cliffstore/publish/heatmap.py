"""A sweep as a grid: validation AUROC by layer and position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ProbeError
from cliffstore.schema import ProbeDocument


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
