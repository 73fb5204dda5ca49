"""A unit of a plan as Arrow tables: `examples` and `tokens`; a plan as `units` and `skipped`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from cliffstore.plan.units import Plan, Unit
from cliffstore.records import SEGMENTS, SkippedRow
from cliffstore.schema import EXAMPLES, SKIPPED, TOKENS, UNITS

TokenText = Callable[[Sequence[int]], Sequence[str]]
"""Distinct token ids -> the text of each, as it is shown in the column `token`."""


def examples_table(unit: Unit, extra_schema: pa.Schema) -> pa.Table:
    """Return the examples of a unit, sorted by ordinal, the corpus's further columns last."""
    known = [
        {
            "example": planned.ordinal,
            "id": planned.example.row.id,
            "unit": unit.number,
            "n_tokens": len(planned.rows),
            "decision": planned.example.decision,
            "prompt": planned.example.row.prompt,
            "system": planned.example.row.system,
            "thinking": planned.example.row.thinking,
            "response": planned.example.row.response,
            "label": planned.example.row.label,
            "source": planned.example.row.source,
            "digest": planned.digest,
        }
        for planned in unit.examples
    ]
    table = pa.Table.from_pylist(known, schema=EXAMPLES)
    for field in extra_schema:
        values = [planned.example.row.extra.get(field.name) for planned in unit.examples]
        table = table.append_column(field, pa.array(values, type=field.type))
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


def units_table(plan: Plan) -> pa.Table:
    """Return the units of a plan."""
    rows = [
        {
            "unit": unit.number,
            "plan": plan.name,
            "row_start": unit.row_start,
            "n_rows": unit.n_rows,
            "n_examples": len(unit.examples),
            "n_tokens": unit.n_tokens,
        }
        for unit in plan.units
    ]
    return pa.Table.from_pylist(rows, schema=UNITS)


def skipped_table(skipped: Sequence[SkippedRow]) -> pa.Table:
    """Return the corpus rows that are not in the store, with their reasons."""
    rows = [
        {
            "id": row.id,
            "source": row.source,
            "location": row.location,
            "reason": row.reason,
            "detail": row.detail,
        }
        for row in skipped
    ]
    return pa.Table.from_pylist(rows, schema=SKIPPED)


def _dictionary(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(values), pa.string()))
