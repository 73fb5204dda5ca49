"""Which examples of a unit share a forward pass. Pure; a function of the unit alone, so that a resumed run computes
the same passes as an undisturbed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class UnitExample:
    """One example as a worker sees it: token_ids int32 [T], rows int64 [T]."""

    example: int
    token_ids: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pass:
    """One right-padded forward pass.

    Attributes
    ----------
    input_ids : int64 [B, T], zero where padded
    mask : int64 [B, T]
    kept : int64 [N], flattened positions whose vectors are stored
    rows : int64 [N], the row of each
    examples : ordinals of the B examples
    """

    input_ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    examples: tuple[int, ...]


def plan_passes(examples: Sequence[UnitExample], batch_tokens: int) -> list[Pass]:
    """Group examples by length into passes of at most `batch_tokens` padded tokens (one example at the least).

    Each row is kept from the first example, in plan order, that has it; an example that adds no row is not run.
    """
    seen: set[int] = set()
    owners: list[tuple[UnitExample, npt.NDArray[np.int64]]] = []
    for example in examples:
        own = np.flatnonzero([int(row) not in seen for row in example.rows])
        if len(own):
            owners.append((example, own))
            seen.update(int(row) for row in example.rows[own])
    owners.sort(key=lambda pair: (len(pair[0].token_ids), pair[0].example))
    passes: list[Pass] = []
    group: list[tuple[UnitExample, npt.NDArray[np.int64]]] = []
    for pair in owners:
        if group and (len(group) + 1) * len(pair[0].token_ids) > batch_tokens:
            passes.append(_padded(group))
            group = []
        group.append(pair)
    if group:
        passes.append(_padded(group))
    return passes


def _padded(group: Sequence[tuple[UnitExample, npt.NDArray[np.int64]]]) -> Pass:
    width = max(len(example.token_ids) for example, _ in group)
    input_ids = np.zeros((len(group), width), dtype=np.int64)
    mask = np.zeros((len(group), width), dtype=np.int64)
    for line, (example, _) in enumerate(group):
        input_ids[line, : len(example.token_ids)] = example.token_ids
        mask[line, : len(example.token_ids)] = 1
    kept = np.concatenate([line * width + own for line, (_, own) in enumerate(group)])
    rows = np.concatenate([example.rows[own] for example, own in group])
    return Pass(input_ids, mask, kept, rows, tuple(example.example for example, _ in group))
