"""Host memory for the vectors of a unit, used again by the units after it.

Fresh memory costs a page fault every 4 KiB, and pinned memory a call to the driver; a unit with all layers of a large
model has gigabytes of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cliffstore.store.arrays import ArraySpec

if TYPE_CHECKING:
    import torch

Blocks = dict[str, "torch.Tensor"]
"""Array name ('<site>/<layer>') -> [unit rows, ...] on the host."""


class BlockPool:
    """Lends the blocks of one unit at a time. May be used from several threads.

    Parameters
    ----------
    specs : arrays of the capture
    unit_rows : rows of each block
    """

    def __init__(self, specs: Sequence[ArraySpec], unit_rows: int) -> None:
        import torch

        self.unit_rows = unit_rows
        self._shapes = {spec.name: (unit_rows, *spec.row_shape) for spec in specs}
        self._dtypes: dict[str, torch.dtype] = {spec.name: getattr(torch, spec.dtype) for spec in specs}
        self._free: dict[bool, list[Blocks]] = {True: [], False: []}

    def lend(self, *, pinned: bool) -> Blocks:
        """Return a block for each array; what they hold is left over from whoever had them before."""
        try:
            return self._free[pinned].pop()
        except IndexError:
            return self._allocate(pinned)

    def take_back(self, blocks: Blocks) -> None:
        """Let others use blocks, to which nobody may refer any longer."""
        pinned = any(block.is_pinned() for block in blocks.values())
        self._free[pinned].append(blocks)

    def _allocate(self, pinned: bool) -> Blocks:
        """Allocate all blocks as one piece, which the system can back with huge pages."""
        import torch

        sizes = {name: _count(shape) * self._dtypes[name].itemsize for name, shape in self._shapes.items()}
        blocks: Blocks = {}
        start = 0
        with torch.inference_mode(False):  # a tensor that begins in it cannot be changed behind it
            piece = _bytes(sum(sizes.values()), pinned)
            for name, size in sizes.items():
                blocks[name] = piece[start : start + size].view(self._dtypes[name]).view(self._shapes[name])
                start += size
        return blocks


def _bytes(n: int, pinned: bool) -> torch.Tensor:
    import torch

    # NumPy asks the system for huge pages, PyTorch does not.
    return torch.empty(n, dtype=torch.uint8, pin_memory=True) if pinned else torch.from_numpy(np.empty(n, np.uint8))


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
