"""The pieces of a generation put together: rows of the corpus, in its order, with what was generated for them.

Columns: those of the corpus, with `thinking` and `response` filled, and `finish`; with several samples also
`generated_from` and `sample`. The same corpus and pieces give the same bytes. Memory holds a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.sources import Corpus
from cliffstore.errors import DamagedStoreError, GenerationError
from cliffstore.run.generation.config import GenerateConfig
from cliffstore.run.generation.plan import GenerationPlan, own_thinking, sample_name
from cliffstore.run.row_files import RowWriter, without_answer
from cliffstore.run.saving import saving
from cliffstore.schema import GenerationReceipt
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore

FINISH, SAMPLE, GENERATED_FROM = "finish", "sample", "generated_from"
_KNOWN = ("id", "prompt", "system", "thinking", "response", "label", "source")

Piece = dict[str, Any]


def output_schema(extra: pa.Schema, samples: int) -> pa.Schema:
    """Return the columns of an output whose corpus has these further ones."""
    added = _added(samples)
    known = [pa.field(name, pa.string()) for name in _KNOWN]
    return pa.schema([*known, *(one for one in extra if one.name not in added.names), *added])


def written_anew(extra: pa.Schema, samples: int) -> list[str]:
    """Return which of the further columns of a corpus the output has anew."""
    return [name for name in _added(samples).names if name in extra.names]


def _added(samples: int) -> pa.Schema:
    of_samples = [pa.field(GENERATED_FROM, pa.string()), pa.field(SAMPLE, pa.int32())] if samples > 1 else []
    return pa.schema([pa.field(FINISH, pa.string()), *of_samples])


def write_output(
    config: GenerateConfig, plan: GenerationPlan, corpus: Corpus, folder: ObjectStore
) -> tuple[GenerationReceipt, int]:
    """Write the output in one piece; return what is in it, and how many of its rows were cut off within thinking.

    Raises
    ------
    GenerationError
        A piece is missing or is not what was generated.
    QueryError, StorageError
        The output cannot be written.
    """
    schema = output_schema(corpus.extra_schema, config.samples)
    counts = _Counts({}, 0, 0, 0)
    with saving(config.output, config.storage_options) as sink:
        hashed = _Hashed(sink)
        with RowWriter(config.output, hashed, schema) as writer:
            for rows in _windows(config, plan, corpus, folder):
                writer.add(rows)
                counts.add(rows)
    receipt = GenerationReceipt(
        output=config.output.rstrip("/").rsplit("/", 1)[-1],
        digest=hashed.hexdigest(),
        rows=counts.rows,
        tokens=counts.tokens,
        with_thinking=counts.with_thinking,
        finish=dict(sorted(counts.finish.items())),
    )
    return receipt, counts.unended


@dataclass(slots=True)
class _Counts:
    finish: dict[str, int]
    rows: int
    tokens: int
    with_thinking: int
    unended: int = 0

    def add(self, rows: list[Piece]) -> None:
        for row in rows:
            self.rows += 1
            self.tokens += row["n_tokens"]
            self.with_thinking += row["thinking"] is not None
            self.unended += row[FINISH] == "length" and row["thinking"] is not None and row["response"] is None
            self.finish[row[FINISH]] = self.finish.get(row[FINISH], 0) + 1


def _windows(
    config: GenerateConfig, plan: GenerationPlan, corpus: Corpus, folder: ObjectStore
) -> Iterator[list[Piece]]:
    """Yield rows of the output, window by window."""
    used = (one for one in corpus.rows() if one.row.id not in plan.skipped_ids)
    items = ((one, sample) for one in used for sample in range(config.samples))
    for first in range(0, plan.units, plan.windows.units):
        pieces = _pieces(folder, range(first, min(first + plan.windows.units, plan.units)))
        start = first * plan.windows.unit
        rows = list(islice(items, plan.windows.items))
        found = []
        for number, (one, sample) in enumerate(rows, start):
            if number not in pieces:
                raise GenerationError(
                    f"{folder.url}: nothing was generated for example {one.row.id}: remove the folder"
                )
            found.append(_row(config, plan, one, sample, pieces[number]))
        yield found


def _pieces(folder: ObjectStore, units: range) -> dict[int, Piece]:
    """Return what was generated in some units, by item."""
    keys = [layout.generation_piece(unit) for unit in units]
    found: dict[int, Piece] = {}
    try:
        for key, content in folder.get_many(keys):
            found |= {row["item"]: row for row in tables.decode(key, content).to_pylist()}
    except DamagedStoreError:
        raise GenerationError(f"{folder.path(key)} is damaged: remove it and run again") from None
    except FileNotFoundError:
        raise GenerationError(f"{folder.url}: what was generated is no longer there: run again") from None
    return found


def _row(config: GenerateConfig, plan: GenerationPlan, one: LocatedRow, sample: int, piece: Piece) -> Piece:
    row = one.row
    added: Piece = {FINISH: piece["finish"], "n_tokens": piece["n_tokens"]}
    if config.samples > 1:
        added |= {GENERATED_FROM: row.id, SAMPLE: sample}
    return {
        **row.extra,
        "messages": without_answer(row.extra.get("messages")),
        "id": row.id if config.samples == 1 else sample_name(row.id, sample),
        "prompt": row.prompt,
        "system": row.system,
        "thinking": own_thinking(row, plan.marks) if piece["fixed"] else piece["thinking"],
        "response": piece["response"],
        "label": row.label,
        "source": row.source,
        **added,
    }


class _Hashed:
    """A file that is written, and the sha256 of its bytes."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._digest = sink, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._sink.write(content)

    def flush(self) -> None:
        self._sink.flush()

    @property
    def closed(self) -> bool:
        return self._sink.closed

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
