"""Examples to units: which rows exist, which unit holds them, how they are named. Pure and deterministic.

The result depends on the set of rendered examples and the settings alone: not on the order of files, not on the
number of workers, not on the machine. An example is computed up to the last of its stored positions, so examples are
sorted by that part of their tokens, neighbours share the longest prefixes, and they are packed in that order into
units of a fixed number of rows. The nodes of a unit's prefix tree are what must be computed; a node has a row where
one of the unit's examples stores a position there. With all positions stored, nodes and rows are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.plan.positions import Positions, selected
from cliffstore.plan.prefix import assign_rows, rows_of_selected, shared_lengths, sort_key
from cliffstore.records import RenderedExample, SkippedRow

CHUNK_ROWS = 256
MIN_UNIT_ROWS = 1_024
MAX_UNIT_ROWS = 65_536
MAX_UNIT_NODES = 1_048_576
"""Nodes of a unit whose rows are few: without a bound, one unit would be hours of work."""
UNIT_BYTES = 1 << 30
SMALL_CORPUS_UNITS = 16
NO_POSITION = "no position to store"


@dataclass(frozen=True, slots=True)
class PlannedExample:
    """An example with its place: ordinal, unit, and the row of each of its positions (int64 [T], -1: not stored)."""

    ordinal: int
    unit: int
    example: RenderedExample
    digest: str
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Unit:
    """The atom of work: whole examples over one contiguous, aligned range of rows.

    Attributes
    ----------
    n_rows : vectors to store of each array
    n_nodes : nodes of the prefix tree to compute, at least `n_rows`
    n_tokens : tokens of the examples, stored or not
    """

    number: int
    row_start: int
    n_rows: int
    n_nodes: int
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

    @property
    def n_nodes(self) -> int:
        return sum(unit.n_nodes for unit in self.units)


@dataclass(frozen=True, slots=True)
class _Member:
    """An example before it has a place. C: its tokens up to the last stored one, which are those to compute."""

    example: RenderedExample
    selected_T: npt.NDArray[np.bool_]
    n_computed: int

    @property
    def token_ids_C(self) -> npt.NDArray[np.int32]:
        return self.example.token_ids[: self.n_computed]

    @property
    def selected_C(self) -> npt.NDArray[np.bool_]:
        return self.selected_T[: self.n_computed]

    @property
    def order(self) -> tuple[bytes, bytes, str]:
        """Computed tokens, then all tokens, then id."""
        behind = self.example.token_ids[self.n_computed :]
        return (sort_key(self.token_ids_C), sort_key(behind), self.example.row.id)


def whole_chunks(rows: int) -> int:
    """Return `rows`, rounded up to whole chunks."""
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS


def longest_example(examples: Sequence[RenderedExample], positions: Positions) -> int:
    """Return the stored positions of the example that has most of them: the least rows that a unit must have."""
    masks = (selected(positions, example.segments, example.decision) for example in examples)
    return max((int(np.count_nonzero(selected_T)) for selected_T in masks), default=0)


def choose_unit_rows(n_rows: int, longest: int, bytes_per_row: int, *, n_nodes: int) -> int:
    """Return the rows of a unit: about 1 GiB of vectors, about 16 units for a small corpus, whole chunks.

    Where few positions are stored, a unit is also kept to about `MAX_UNIT_NODES` nodes.

    Parameters
    ----------
    n_rows : rows that the corpus would take in one single unit
    longest : stored positions of the example that has most, which must fit into one unit
    bytes_per_row : bytes of one row over all arrays of the first capture
    n_nodes : nodes of the prefix tree over the whole corpus; equal to `n_rows` where all positions are stored
    """
    by_size = UNIT_BYTES // max(bytes_per_row, 1)
    by_share = -(-n_rows // SMALL_CORPUS_UNITS)
    by_nodes = MAX_UNIT_NODES * n_rows // max(n_nodes, 1)
    rows = min(max(min(by_size, by_share, by_nodes), MIN_UNIT_ROWS), MAX_UNIT_ROWS)
    return whole_chunks(max(rows, longest))


def make_plan(
    examples: Sequence[RenderedExample],
    skipped: Sequence[SkippedRow],
    *,
    positions: Positions,
    bytes_per_row: int,
    identity: Mapping[str, str],
    settings: Mapping[str, str | int | None],
    unit_rows: int | None = None,
) -> Plan:
    """Sort examples, pack them into units, number their rows.

    An example without a position to store joins `skipped`.

    Parameters
    ----------
    positions : what is stored of an example; becomes the setting `positions`
    bytes_per_row : see `choose_unit_rows`; used only where `unit_rows` is None
    identity : digests of tokenizer and template; part of the plan's digest
    unit_rows : rows of a unit where they are fixed already, by the store or by the user

    Raises
    ------
    ValueError
        An example has more positions to store than a given `unit_rows`.
    """
    found = [_member(example, positions) for example in examples]
    members = sorted((member for member in found if member.n_computed), key=lambda member: member.order)
    shared = shared_lengths([member.token_ids_C for member in members])
    longest = max((int(np.count_nonzero(member.selected_C)) for member in members), default=0)
    if unit_rows is None:
        n_nodes = sum(member.n_computed for member in members) - sum(shared)
        unit_rows = choose_unit_rows(_count_rows(members, shared), longest, bytes_per_row, n_nodes=n_nodes)
    elif longest > unit_rows:
        raise ValueError(f"an example stores {longest} tokens, which do not fit into a unit of {unit_rows} rows")
    digests = [example_digest(member.example) for member in members]
    # A unit of all positions has as many nodes as rows, so its rows bound both.
    max_nodes = unit_rows if positions.everything else MAX_UNIT_NODES
    units = tuple(
        _build_unit(number, first, last, members, shared, digests, unit_rows)
        for number, (first, last) in enumerate(_pack(members, shared, unit_rows, max_nodes))
    )
    unstored = [_without_position(member.example, positions) for member in found if not member.n_computed]
    left_out = tuple(sorted([*skipped, *unstored], key=_skipped_key))
    settings = {**settings, "positions": str(positions)}
    return Plan(_plan_digest(digests, left_out, identity, settings, unit_rows), unit_rows, units, left_out, settings)


def _member(example: RenderedExample, positions: Positions) -> _Member:
    selected_T = selected(positions, example.segments, example.decision)
    stored = np.flatnonzero(selected_T)
    return _Member(example, selected_T, int(stored[-1]) + 1 if len(stored) else 0)


def _without_position(example: RenderedExample, positions: Positions) -> SkippedRow:
    detail = f"positions {positions}: none among its {len(example.token_ids)} tokens"
    return SkippedRow(example.row.id, example.row.source, example.location, NO_POSITION, detail)


def _skipped_key(row: SkippedRow) -> tuple[str, ...]:
    return (row.location, row.source or "", row.id or "", row.reason, row.detail)


def _grow(stored_S: npt.NDArray[np.bool_], selected_C: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], int]:
    """Add a sequence to a tree: `stored_S` says which nodes of the S that it shares with its predecessor have rows.

    Return the same for all its C nodes, and how many rows it adds: a shared node may get its row only now.
    """
    stored_C = selected_C.copy()
    stored_C[: len(stored_S)] |= stored_S
    return stored_C, int(np.count_nonzero(stored_C)) - int(np.count_nonzero(stored_S))


def _count_rows(members: Sequence[_Member], shared: Sequence[int]) -> int:
    """Return the rows that sorted examples take in one single unit."""
    total, stored_C = 0, np.zeros(0, dtype=np.bool_)
    for member, n_shared in zip(members, shared, strict=True):
        stored_C, n_new = _grow(stored_C[:n_shared], member.selected_C)
        total += n_new
    return total


def _pack(
    members: Sequence[_Member], shared: Sequence[int], unit_rows: int, max_nodes: int
) -> Iterator[tuple[int, int]]:
    """Yield [first, last) ranges of sorted examples that have at most `unit_rows` rows and, if there are several
    examples, at most `max_nodes` nodes."""
    first = n_rows = n_nodes = 0
    stored_C = np.zeros(0, dtype=np.bool_)
    for index, member in enumerate(members):
        n_shared = shared[index] if index > first else 0
        grown_C, new_rows = _grow(stored_C[:n_shared], member.selected_C)
        new_nodes = member.n_computed - n_shared
        if index > first and (n_rows + new_rows > unit_rows or n_nodes + new_nodes > max_nodes):
            yield first, index
            first, n_rows, n_nodes = index, 0, 0
            grown_C, new_rows = _grow(stored_C[:0], member.selected_C)
            new_nodes = member.n_computed
        stored_C, n_rows, n_nodes = grown_C, n_rows + new_rows, n_nodes + new_nodes
    if members:
        yield first, len(members)


def _build_unit(
    number: int,
    first: int,
    last: int,
    members: Sequence[_Member],
    shared: Sequence[int],
    digests: Sequence[str],
    unit_rows: int,
) -> Unit:
    row_start = number * unit_rows
    own = members[first:last]
    nodes = assign_rows([member.token_ids_C for member in own], [0, *shared[first + 1 : last]], 0)
    rows, n_rows = rows_of_selected(nodes, [member.selected_T for member in own], row_start)
    planned = tuple(
        PlannedExample(ordinal, number, members[ordinal].example, digests[ordinal], rows[ordinal - first])
        for ordinal in range(first, last)
    )
    return Unit(number, row_start, n_rows, 1 + max(int(nodes_C[-1]) for nodes_C in nodes), planned)


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
