"""A unit as a worker sees it, made of token sequences, and what passes over it capture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from cliffstore.extract.passes import Pass, Passes
from cliffstore.extract.tree import UnitExample
from cliffstore.extract.trial import as_tensors
from cliffstore.model.capture import SiteCapture
from cliffstore.plan.prefix import assign_rows, shared_lengths

ROW_START = 48


def unit_of(sequences: Iterable[Sequence[int]], row_start: int = ROW_START) -> list[UnitExample]:
    """Return sequences as the plan sorts them, every position stored; examples are numbered from 10 on."""
    ordered = [np.array(tokens, dtype=np.int32) for tokens in sorted(map(list, sequences))]
    rows = assign_rows(ordered, shared_lengths(ordered), row_start)
    return [UnitExample(10 + n, tokens, own) for n, (tokens, own) in enumerate(zip(ordered, rows, strict=True))]


def without(examples: Sequence[UnitExample], dropped: set[int]) -> list[UnitExample]:
    """Return the examples with some rows not stored, up to their last stored one; those without any are left out."""
    kept: list[UnitExample] = []
    for one in examples:
        rows = np.where(np.isin(one.rows, list(dropped)), -1, one.rows)
        if (rows >= 0).any():
            length = int(np.flatnonzero(rows >= 0)[-1]) + 1
            kept.append(UnitExample(one.example, one.token_ids[:length], rows[:length]))
    return kept


def capture_rows(capture: SiteCapture, groups: Iterable[Passes]) -> dict[str, dict[int, torch.Tensor]]:
    """Run passes. Return array name -> row -> its vector; fails where a row is taken twice."""
    found: dict[str, dict[int, torch.Tensor]] = {name: {} for name in capture.array_names}
    for passes in groups:
        for one in passes:

            def take(name: str, vectors_ND: torch.Tensor, one: Pass = one) -> None:
                for row, vector in zip(one.rows_N.tolist(), vectors_ND.clone(), strict=True):
                    assert row not in found[name], f"{name}: row {row} is computed twice"
                    found[name][row] = vector

            capture.run(as_tensors(one), take)
    return found
