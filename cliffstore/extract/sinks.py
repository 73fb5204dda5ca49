"""What becomes of captured vectors: blocks of activations in host memory, or scores of probes.

On CUDA, vectors are copied on a side stream into pinned memory while the next block computes; whether they are finite
is found on the device and looked at once, at the end of the unit.

Legend: R rows of a unit, N positions that a pass keeps, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ExtractionError
from cliffstore.extract.blocks import BlockPool, Blocks
from cliffstore.extract.passes import Pass
from cliffstore.store.arrays import ArraySpec, Vectors
from cliffstore.store.probes import ProbeWeights

if TYPE_CHECKING:
    import torch


class NonFiniteError(ExtractionError):
    """A vector holds NaN or Inf. `row` is the first such row."""

    def __init__(self, name: str, row: int) -> None:
        super().__init__(f"NaN or Inf in {name}, row {row}")
        self.name, self.row = name, row


class UnitSink(Protocol):
    """Takes the vectors of one unit, pass by pass."""

    def begin(self, one: Pass) -> None:
        """The vectors that follow belong to this pass."""

    def take(self, name: str, vectors_ND: torch.Tensor) -> None:
        """Take an array's vectors of the pass; they may change after the call."""

    def check(self) -> None:
        """After the last pass: raises `NonFiniteError` where a vector holds NaN or Inf.

        What was taken is kept; the passes may be run once more, and then what they give replaces it.
        """


class ActivationBlocks:
    """The rows of a unit in host memory, one block an array.

    Parameters
    ----------
    specs : arrays of the capture
    row_start : the unit's first row
    pool : lends the blocks
    """

    def __init__(self, specs: Sequence[ArraySpec], row_start: int, pool: BlockPool) -> None:
        self._row_start, self._pool = row_start, pool
        self._specs = {spec.name: spec for spec in specs}
        self._blocks: Blocks | None = None
        self._taken: list[npt.NDArray[np.int64]] = []
        self._checks: list[_Check] = []
        self._copies = _Copies()

    def begin(self, one: Pass) -> None:
        self._rows_N = one.rows_N - self._row_start
        self._taken.append(self._rows_N)

    def take(self, name: str, vectors_ND: torch.Tensor) -> None:
        spec = self._specs[name]
        dtype = str(vectors_ND.dtype).removeprefix("torch.")
        if dtype != spec.dtype or tuple(vectors_ND.shape[1:]) != spec.row_shape:
            raise ExtractionError(
                f"{name} came out as {dtype} {list(vectors_ND.shape[1:])}, the store holds {spec.dtype} "
                f"{list(spec.row_shape)}"
            )
        if len(vectors_ND):
            self._checks.append(_Check(name, self._rows_N, _extremes(vectors_ND)))
        if self._blocks is None:
            self._blocks = self._pool.lend(pinned=vectors_ND.is_cuda)
        self._copies.start(vectors_ND, self._blocks[name], self._rows_N)

    def check(self) -> None:
        """Wait for the copies. Raises `NonFiniteError` where a vector holds NaN or Inf."""
        import torch

        self._copies.finish()
        checks, self._checks = self._checks, []
        if checks and not bool(torch.isfinite(torch.stack([one.extremes.cpu() for one in checks])).all()):
            for one in checks:
                self._name_the_row(one)

    def finish(self) -> dict[str, Vectors]:
        """Return array name -> stored vectors [unit rows, ...], zero where no row was taken."""
        import torch

        blocks = self._blocks or self._pool.lend(pinned=False)
        self._blocks = blocks
        untaken_R = np.ones(self._pool.unit_rows, dtype=bool)
        for rows_N in self._taken:
            untaken_R[rows_N] = False
        rows = torch.from_numpy(np.flatnonzero(untaken_R))
        for block in blocks.values():
            block.index_fill_(0, rows, 0)
        return {name: _stored(block) for name, block in blocks.items()}

    def give_back(self) -> None:
        """Let the next unit have the blocks; nobody may refer to what `finish` returned any longer."""
        blocks, self._blocks = self._blocks, None
        if blocks is not None:
            self._pool.take_back(blocks)

    def _name_the_row(self, check: _Check) -> None:
        import torch

        assert self._blocks is not None  # what is checked was taken
        block = self._blocks[check.name]
        for row in check.rows_N:
            if not bool(torch.isfinite(block[int(row)]).all()):
                raise NonFiniteError(check.name, self._row_start + int(row))


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    rows_N: npt.NDArray[np.int64]
    extremes: torch.Tensor


def _extremes(vectors_ND: torch.Tensor) -> torch.Tensor:
    """Return minimum and maximum, [2]: NaN and Inf come through, and nothing of the vectors' size is allocated."""
    import torch

    return torch.stack(torch.aminmax(vectors_ND))


class _Copies:
    """Copies into host blocks: at once on the CPU, on a side stream from CUDA."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._staged: list[tuple[torch.cuda.Event, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def start(self, vectors_ND: torch.Tensor, block: torch.Tensor, rows_N: npt.NDArray[np.int64]) -> None:
        import torch

        first, n = (int(rows_N[0]), len(rows_N)) if len(rows_N) else (0, 0)
        consecutive = n == 0 or (int(rows_N[-1]) - first == n - 1 and bool((np.diff(rows_N) == 1).all()))
        target = block[first : first + n] if consecutive else None
        if not vectors_ND.is_cuda:
            if target is not None:
                target.copy_(vectors_ND)
            else:
                block.index_copy_(0, torch.from_numpy(rows_N), vectors_ND)  # several times faster than assignment
            return
        vectors_ND = vectors_ND.clone()  # the model may reuse the memory before the copy has run
        stream = self._side_stream(vectors_ND.device)
        stream.wait_stream(torch.cuda.current_stream(vectors_ND.device))
        with torch.cuda.stream(stream):
            staged = target if target is not None else torch.empty(vectors_ND.shape, dtype=block.dtype, pin_memory=True)
            staged.copy_(vectors_ND, non_blocking=True)
        vectors_ND.record_stream(stream)
        if target is None:
            done = torch.cuda.Event()
            done.record(stream)
            self._staged.append((done, staged, block, torch.from_numpy(rows_N)))
            self._unstage(keep=_MOST_STAGED)

    def finish(self) -> None:
        """Wait for every copy."""
        self._unstage(keep=0)
        for stream in self._streams.values():
            stream.synchronize()

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        import torch

        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _unstage(self, keep: int) -> None:
        while len(self._staged) > keep:
            done, staged, block, rows = self._staged.pop(0)
            done.synchronize()
            block.index_copy_(0, rows, staged)


_MOST_STAGED = 64


def _stored(block: torch.Tensor) -> Vectors:
    """Return vectors as the store keeps them: bfloat16 as raw bits, bit for bit."""
    import torch

    return block.view(torch.uint16).numpy() if block.dtype == torch.bfloat16 else block.numpy()


class ProbeScores:
    """Scores of probes at the rows of a unit; no activation is kept.

    Parameters
    ----------
    probes : probe name -> the array it reads and its weights
    """

    def __init__(self, probes: Mapping[str, tuple[str, ProbeWeights]], row_start: int, n_rows: int) -> None:
        self._probes, self._row_start = probes, row_start
        self._scores = {probe: np.full(n_rows, np.nan, dtype=np.float32) for probe in probes}
        self._weights: dict[tuple[str, torch.device], torch.Tensor] = {}
        self._found: list[tuple[str, npt.NDArray[np.int64], torch.Tensor]] = []

    def begin(self, one: Pass) -> None:
        self._rows_N = one.rows_N - self._row_start

    def take(self, name: str, vectors_ND: torch.Tensor) -> None:
        for probe, (array, weights) in self._probes.items():
            if array == name:
                w_D = self._on(vectors_ND.device, probe, weights)
                scores_N = vectors_ND.flatten(1).float() @ w_D + weights.b
                self._found.append((probe, self._rows_N, scores_N))

    def check(self) -> None:
        """Raises `NonFiniteError` where a score is NaN or Inf."""
        found, self._found = self._found, []
        for probe, rows_N, scores_N in found:
            self._scores[probe][rows_N] = scores_N.cpu().numpy()
        for probe, scores_R in self._scores.items():
            bad = np.flatnonzero(~np.isfinite(scores_R))
            if len(bad):
                raise NonFiniteError(self._probes[probe][0], self._row_start + int(bad[0]))

    def finish(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return probe name -> float32 [R] scores."""
        return self._scores

    def _on(self, device: torch.device, probe: str, weights: ProbeWeights) -> torch.Tensor:
        import torch

        if (probe, device) not in self._weights:
            self._weights[probe, device] = torch.from_numpy(weights.w_D).to(device)
        return self._weights[probe, device]
