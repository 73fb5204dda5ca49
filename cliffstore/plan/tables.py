"""A unit of a plan as Arrow tables: `examples` and `tokens`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from cliffstore.corpus.values import from_text
from cliffstore.plan.units import Unit
from cliffstore.records import SEGMENTS
from cliffstore.schema import EXAMPLES, TOKENS

TokenText = Callable[[Sequence[int]], Sequence[str]]
"""Distinct token ids -> the text of each, as it is shown in the column `token`."""


def examples_table(unit: Unit, rows: pa.Table, extra_schema: pa.Schema) -> pa.Table:
    """Return the examples of a unit, sorted by ordinal, the corpus's further columns last.

    Parameters
    ----------
    rows : the same examples as `sorting` keeps them
    """
    count = len(unit.examples)
    columns = {
        "example": [planned.ordinal for planned in unit.examples],
        "unit": [unit.number] * count,
        "n_tokens": [len(planned.rows) for planned in unit.examples],
        **{name: rows[name] for name in EXAMPLES.names if name in rows.column_names},
    }
    table = pa.table({name: columns[name] for name in EXAMPLES.names}, schema=EXAMPLES)
    extras = [from_text(text) if text else {} for text in rows["extra"].to_pylist()] if len(extra_schema) else []
    for field in extra_schema:
        table = table.append_column(field, pa.array([extra.get(field.name) for extra in extras], type=field.type))
    return table


def tokens_table(unit: Unit, token_text: TokenText) -> pa.Table:
    """Return all tokens of a unit, sorted by example and position; `row` is null where a position is not stored."""
    lengths = [len(planned.rows) for planned in unit.examples]
    token_ids = np.concatenate([planned.example.token_ids for planned in unit.examples])
    segments = np.concatenate([planned.example.segments for planned in unit.examples])
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    decisions = np.repeat([planned.example.decision for planned in unit.examples], lengths)
    rows = np.concatenate([planned.rows for planned in unit.examples])
    distinct, codes = np.unique(token_ids, return_inverse=True)
    columns = {
        "example": np.repeat([planned.ordinal for planned in unit.examples], lengths),
        "position": positions,
        "token_id": token_ids,
        "token": _dictionary(codes, token_text([int(token) for token in distinct])),
        "segment": _dictionary(segments, [segment.value for segment in SEGMENTS]),
        "to_decision": (positions - decisions).astype(np.int32),
        "row": pa.array(rows, mask=rows < 0),
    }
    return pa.table(columns, schema=TOKENS)


def _dictionary(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(values), pa.string()))
