"""The examples and tokens of one unit against each other and against the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.records import SEGMENTS, PlannedUnit
from cliffstore.schema import EXAMPLES

ExampleDigest = Callable[
    [Mapping[str, object], Mapping[str, object], npt.NDArray[np.int32], npt.NDArray[np.uint8]], str
]
"""(known columns, further columns, token ids, segments as indices into `SEGMENTS`) of an example -> its digest."""


def check_unit(unit: PlannedUnit, examples: pa.Table, tokens: pa.Table, digest: ExampleDigest) -> tuple[list[str], int]:
    """Return what is wrong, and how many tokens have a row."""
    rows = tokens["row"].drop_null().to_numpy()
    problems = []
    if set(examples["unit"].to_pylist()) != {unit.unit}:
        problems.append(f"has other examples than those of unit {unit.unit}")
    if (examples.num_rows, tokens.num_rows) != (unit.n_examples, unit.n_tokens):
        problems.append(f"has other examples or tokens of unit {unit.unit} than were planned")
    if not np.array_equal(np.unique(rows), np.arange(unit.row_start, unit.row_start + unit.n_rows)):
        problems.append(f"leaves out rows of unit {unit.unit}, or has others")
    columns = _Columns(examples, tokens, digest)
    found = (columns.problem(index) for index in range(examples.num_rows))
    return [*problems, *(problem for problem in found if problem)], len(rows)


class _Columns:
    """The columns of a unit's tables as the checks of its examples need them."""

    def __init__(self, examples: pa.Table, tokens: pa.Table, digest: ExampleDigest) -> None:
        further = [field.name for field in examples.schema if field.name not in EXAMPLES.names]
        # Numbers that are not whole and nested values may have come from others of the same meaning: 1 and 1.0.
        plain = all(_is_plain(examples.schema.field(name).type) for name in further)
        self._digest = digest if plain else None
        self._known = examples.select(EXAMPLES.names).to_pylist()
        self._further = examples.select(further).to_pylist() if plain and further else [{}] * examples.num_rows
        ordinals, of_token = examples["example"].to_numpy(), tokens["example"].to_numpy()
        self._starts = np.searchsorted(of_token, ordinals, side="left")
        self._stops = np.searchsorted(of_token, ordinals, side="right")
        self._positions = tokens["position"].to_numpy()
        self._to_decision = tokens["to_decision"].to_numpy()
        self._token_ids = tokens["token_id"].to_numpy().astype(np.int32)
        self._segments = _segments(tokens["segment"])

    def problem(self, index: int) -> str | None:
        """Return what is wrong with an example."""
        known, own = self._known[index], slice(int(self._starts[index]), int(self._stops[index]))
        name, n_tokens, decision = known["id"], known["n_tokens"], known["decision"]
        positions = np.arange(n_tokens)
        if not np.array_equal(self._positions[own], positions):
            return f"has {n_tokens} tokens of {name!r}, which are not those that are there"
        if not 0 <= decision < n_tokens or not np.array_equal(self._to_decision[own], positions - decision):
            return f"has another decision position of {name!r} than its tokens"
        if self._digest is None:
            return None
        found = self._digest(known, self._further[index], self._token_ids[own], self._segments[own])
        return None if found == known["digest"] else f"has another digest of {name!r} than its text and tokens"


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _segments(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Return segments as indices into `SEGMENTS`."""
    whole = column.unify_dictionaries().combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    names = [segment.value for segment in SEGMENTS]
    codes = np.array([names.index(name) for name in whole.dictionary.to_pylist()], dtype=np.uint8)
    return codes[whole.indices.to_numpy(zero_copy_only=False)]
