"""Scores of whole examples, as curves and cliffs read them: unit by unit, as they were scored.

A unit's scores are one table, of some hundred thousand tokens at most, and a unit holds whole examples. So whatever is
said of examples is found unit by unit, in memory that does not grow with the store.

Legend: N tokens, E examples of a unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.schema import ScoreReceipt, damaged
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.views import Readers

Ints = npt.NDArray[np.int64]
THINK = "think"


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Tokens with scores, by example and position.

    Attributes
    ----------
    examples_E : ordinals, ascending
    example_N : number of a token's example within `examples_E`
    is_think_N : of the segment `think`
    """

    examples_E: Ints
    example_N: Ints
    position_N: npt.NDArray[np.int32]
    to_decision_N: npt.NDArray[np.int32]
    is_think_N: npt.NDArray[np.bool_]
    score_N: npt.NDArray[np.float32]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Return what a table of scores has, in whatever order its rows are."""
        ordinal_N = table["example"].to_numpy()
        position_N = table["position"].to_numpy()
        columns = [table["to_decision"].to_numpy(), _is_think(table["segment"]), table["score"].to_numpy()]
        step_N = np.diff(ordinal_N)
        if (step_N < 0).any() or (np.diff(position_N)[step_N == 0] < 0).any():
            order_N = np.lexsort((position_N, ordinal_N))
            ordinal_N, position_N = ordinal_N[order_N], position_N[order_N]
            columns = [column[order_N] for column in columns]
            step_N = np.diff(ordinal_N)
        begins_N = np.concatenate([np.ones(min(len(ordinal_N), 1), dtype=np.bool_), step_N > 0])
        return cls(ordinal_N[begins_N], np.cumsum(begins_N) - 1, position_N, *columns)

    @property
    def n_examples(self) -> int:
        return len(self.examples_E)

    @property
    def first_think_E(self) -> npt.NDArray[np.int32]:
        """Position of the first thinking token of each example; beyond all positions where it has none."""
        first_E = np.full(self.n_examples, np.iinfo(np.int32).max, dtype=np.int32)
        at_T = np.flatnonzero(self.is_think_N)[::-1]
        first_E[self.example_N[at_T]] = self.position_N[at_T]  # of several, the last that is assigned stays
        return first_E


def _is_think(segments: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    parts = []
    for chunk in segments.chunks:
        words = chunk.dictionary.to_pylist()
        is_think = np.array([word == THINK for word in words], dtype=np.bool_)
        parts.append(is_think[chunk.indices.to_numpy()])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)


def each_unit(objects: ObjectStore, receipts: Sequence[ScoreReceipt]) -> Iterator[tuple[ScoreReceipt, TokenScores]]:
    """Yield the scores of each unit, in order. Some are fetched ahead by threads; decoding is quick and done here.

    Raises
    ------
    DamagedStoreError
        Scores are missing, or other than they were written.
    """
    with closing(Readers()) as readers:
        fetched = readers.map(lambda receipt: (receipt, *_fetch(objects, receipt)), receipts)
        for receipt, key, content in fetched:
            yield receipt, TokenScores.of(tables.decode(key, content))


def _fetch(objects: ObjectStore, receipt: ScoreReceipt) -> tuple[str, bytes]:
    key = layout.scores_table(receipt.probe, receipt.unit)
    try:
        content = objects.get(key)
    except FileNotFoundError:
        raise damaged(key, "is missing") from None
    if hashlib.sha256(content).hexdigest() != receipt.digest:
        raise damaged(key, "differs from its digest")
    return key, content
