"""Examples to units: which rows exist, which unit holds them, how they are named. Pure and deterministic.

The result depends on the set of rendered examples and the settings alone: not on the order of files, not on the
number of workers, not on the machine. Examples are sorted by token sequence, so neighbours share the longest
prefixes, and packed in that order into units of a fixed number of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.plan.prefix import assign_rows, shared_lengths, sort_key
from cliffstore.records import RenderedExample, SkippedRow

CHUNK_ROWS = 256
MIN_UNIT_ROWS = 1_024
MAX_UNIT_ROWS = 65_536
UNIT_BYTES = 1 << 30
SMALL_CORPUS_UNITS = 16


@dataclass(frozen=True, slots=True)
class PlannedExample:
    """An example with its place: ordinal, unit, and one row for each of its positions (int64 [T])."""

    ordinal: int
    unit: int
    example: RenderedExample
    digest: str
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Unit:
    """The atom of work: whole examples over one contiguous, aligned range of rows."""

    number: int
    row_start: int
    n_rows: int
    examples: tuple[PlannedExample, ...]

    @property
    def n_tokens(self) -> int:
        return sum(len(planned.rows) for planned in self.examples)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which tokens exist and which row each takes."""

    digest: str
    unit_rows: int
    units: tuple[Unit, ...]
    skipped: tuple[SkippedRow, ...]
    settings: Mapping[str, str | int | None]

    @property
    def name(self) -> str:
        return f"plan-{self.digest[:12]}"

    @property
    def n_examples(self) -> int:
        return sum(len(unit.examples) for unit in self.units)

    @property
    def n_tokens(self) -> int:
        return sum(unit.n_tokens for unit in self.units)

    @property
    def n_rows(self) -> int:
        return sum(unit.n_rows for unit in self.units)


def choose_unit_rows(n_nodes: int, longest: int, bytes_per_row: int) -> int:
    """Return the rows of a unit: about 1 GiB of vectors, about 16 units for a small corpus, whole chunks.

    Parameters
    ----------
    n_nodes : nodes of the prefix tree over the whole corpus
    longest : tokens of the longest example, which must fit into one unit
    bytes_per_row : bytes of one row over all arrays of the first capture
    """
    by_size = UNIT_BYTES // max(bytes_per_row, 1)
    by_share = -(-n_nodes // SMALL_CORPUS_UNITS)
    rows = min(max(min(by_size, by_share), MIN_UNIT_ROWS), MAX_UNIT_ROWS)
    return -(-max(rows, longest) // CHUNK_ROWS) * CHUNK_ROWS


def make_plan(
    examples: Sequence[RenderedExample],
    skipped: Sequence[SkippedRow],
    *,
    bytes_per_row: int,
    identity: Mapping[str, str],
    settings: Mapping[str, str | int | None],
    unit_rows: int | None = None,
) -> Plan:
    """Sort examples, pack them into units, number their rows.

    Parameters
    ----------
    bytes_per_row : see `choose_unit_rows`; used only where `unit_rows` is None
    identity : digests of tokenizer and template; part of the plan's digest
    unit_rows : rows of a unit where the store has them fixed already

    Raises
    ------
    ValueError
        An example is longer than a given `unit_rows`.
    """
    ordered = sorted(examples, key=lambda example: (sort_key(example.token_ids), example.row.id))
    sequences = [example.token_ids for example in ordered]
    shared = shared_lengths(sequences)
    longest = max((len(sequence) for sequence in sequences), default=0)
    if unit_rows is None:
        n_nodes = sum(len(sequence) for sequence in sequences) - sum(shared)
        unit_rows = choose_unit_rows(n_nodes, longest, bytes_per_row)
    elif longest > unit_rows:
        raise ValueError(f"an example of {longest} tokens does not fit into a unit of {unit_rows} rows")
    digests = [example_digest(example) for example in ordered]
    units = tuple(
        _build_unit(number, first, last, ordered, shared, digests, unit_rows)
        for number, (first, last) in enumerate(_pack([len(s) for s in sequences], shared, unit_rows))
    )
    left_out = tuple(sorted(skipped, key=_skipped_key))
    return Plan(_plan_digest(digests, left_out, identity, settings, unit_rows), unit_rows, units, left_out, settings)


def _skipped_key(row: SkippedRow) -> tuple[str, ...]:
    return (row.location, row.source or "", row.id or "", row.reason, row.detail)


def _pack(lengths: Sequence[int], shared: Sequence[int], unit_rows: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) ranges of sorted examples whose prefix tree has at most `unit_rows` nodes."""
    first, used = 0, 0
    for index, length in enumerate(lengths):
        n_new = length - (shared[index] if index > first else 0)
        if index > first and used + n_new > unit_rows:
            yield first, index
            first, used, n_new = index, 0, length
        used += n_new
    if lengths:
        yield first, len(lengths)


def _build_unit(
    number: int,
    first: int,
    last: int,
    ordered: Sequence[RenderedExample],
    shared: Sequence[int],
    digests: Sequence[str],
    unit_rows: int,
) -> Unit:
    row_start = number * unit_rows
    own = [0, *shared[first + 1 : last]]
    rows = assign_rows([example.token_ids for example in ordered[first:last]], own, row_start)
    planned = tuple(
        PlannedExample(ordinal, number, ordered[ordinal], digests[ordinal], rows[ordinal - first])
        for ordinal in range(first, last)
    )
    n_rows = max(int(row[-1]) for row in rows) - row_start + 1
    return Unit(number, row_start, n_rows, planned)


def example_digest(example: RenderedExample) -> str:
    """Return the sha256 over everything that the store keeps of an example."""
    row = example.row
    fields = [row.id, row.prompt, row.system, row.thinking, row.response, row.label, row.source]
    text = json.dumps([fields, dict(sorted(row.extra.items())), example.decision], default=str, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(example.token_ids.astype("<i4").tobytes())
    digest.update(example.segments.tobytes())
    return digest.hexdigest()


def _plan_digest(
    digests: Sequence[str],
    skipped: Sequence[SkippedRow],
    identity: Mapping[str, str],
    settings: Mapping[str, str | int | None],
    unit_rows: int,
) -> str:
    left_out = [[row.id, row.source, row.location, row.reason, row.detail] for row in skipped]
    head = [dict(sorted(identity.items())), dict(sorted(settings.items())), unit_rows, left_out]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for one in digests:
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()
