"""Examples to units: which rows exist, which unit holds them, how they are named. Pure and deterministic.

The result depends on the set of rendered examples and the settings alone: not on the order of files, not on the
number of workers, not on the machine. An example is computed up to the last of its stored positions, so examples are
sorted by that part of their tokens (`sorting` does it), neighbours share the longest prefixes, and they are packed in
that order into units of a fixed number of rows. The nodes of a unit's prefix tree are what must be computed; a node has
a row where one of the unit's examples stores a position there. With all positions stored, nodes and rows are the same.

Everything here takes sorted examples one after the other and keeps no more of them than one unit: a `Survey` finds how
large units should be, `pack` cuts the sequence, `build_unit` numbers rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.plan.positions import Positions, selected
from cliffstore.plan.prefix import assign_rows, common_prefix, rows_of_selected, shared_lengths
from cliffstore.records import PlannedUnit, RenderedExample, SkippedRow

CHUNK_ROWS = 256
MIN_UNIT_ROWS = 1_024
MAX_UNIT_ROWS = 65_536
MAX_UNIT_NODES = 1_048_576
"""Nodes of a unit whose rows are few: without a bound, one unit would be hours of work."""
UNIT_BYTES = 1 << 30
SMALL_CORPUS_UNITS = 16


@dataclass(frozen=True, slots=True)
class Member:
    """What planning needs of an example.

    Attributes
    ----------
    token_ids : int32 [T]
    segments : uint8 [T], indices into `SEGMENTS`
    decision : position of the last token before the answer
    n_computed : tokens up to the last stored one, at least 1
    digest : `example_digest` of it
    """

    id: str
    token_ids: npt.NDArray[np.int32]
    segments: npt.NDArray[np.uint8]
    decision: int
    n_computed: int
    digest: str

    @property
    def token_ids_C(self) -> npt.NDArray[np.int32]:
        """The tokens to compute, int32 [C]."""
        return self.token_ids[: self.n_computed]

    def selected(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Return which positions are stored, bool [T]."""
        return selected(positions, self.segments, self.decision)


@dataclass(frozen=True, slots=True)
class PlannedExample:
    """An example with its place: ordinal, unit, and the row of each of its positions (int64 [T], -1: not stored)."""

    ordinal: int
    unit: int
    example: Member
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

    def facts(self, plan: str, part: int, row_group: int) -> PlannedUnit:
        """Return what the table `units` says of it."""
        lengths = [_computed(planned.rows) for planned in self.examples]
        return PlannedUnit(
            unit=self.number,
            plan=plan,
            row_start=self.row_start,
            n_rows=self.n_rows,
            n_examples=len(self.examples),
            n_tokens=self.n_tokens,
            n_nodes=self.n_nodes,
            n_padded=sum(length for length, brings in zip(lengths, self._bring_a_row(), strict=True) if brings),
            longest=max(lengths),
            part=part,
            row_group=row_group,
        )

    def _bring_a_row(self) -> Iterator[bool]:
        """Yield for each example whether it has a row that none before it has."""
        seen = np.zeros(self.n_rows, dtype=np.bool_)
        for planned in self.examples:
            own = planned.rows[planned.rows >= 0] - self.row_start
            yield not seen[own].all()
            seen[own] = True


def _computed(rows_T: npt.NDArray[np.int64]) -> int:
    return int(np.flatnonzero(rows_T >= 0)[-1]) + 1


class Survey:
    """What a whole sequence of sorted examples takes, were it one single unit.

    Attributes
    ----------
    n_rows, n_nodes : rows and nodes of the prefix tree
    longest : stored positions of the example that has most, the least rows that a unit must have
    """

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._last_C = np.zeros(0, dtype=np.int32)
        self._stored_C = np.zeros(0, dtype=np.bool_)
        self.n_examples = self.n_rows = self.n_nodes = self.longest = 0

    def add(self, member: Member) -> None:
        """Add the next example."""
        token_ids_C, selected_C = member.token_ids_C, member.selected(self._positions)[: member.n_computed]
        n_shared = common_prefix(self._last_C, token_ids_C)
        self._stored_C, n_new = _grow(self._stored_C[:n_shared], selected_C)
        self._last_C = token_ids_C
        self.n_examples += 1
        self.n_rows += n_new
        self.n_nodes += member.n_computed - n_shared
        self.longest = max(self.longest, int(np.count_nonzero(selected_C)))

    def unit_rows(self, bytes_per_row: int) -> int:
        """Return the rows of a unit, see `choose_unit_rows`."""
        return choose_unit_rows(self.n_rows, self.longest, bytes_per_row, n_nodes=self.n_nodes)


def whole_chunks(rows: int) -> int:
    """Return `rows`, rounded up to whole chunks."""
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS


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


def pack(
    members: Iterable[Member], positions: Positions, unit_rows: int, *, max_nodes: int | None = None
) -> Iterator[list[Member]]:
    """Cut sorted examples into units: at most `unit_rows` rows and, if there are several examples, `max_nodes` nodes.

    With all positions stored a unit has as many nodes as rows, so its rows bound both.

    Raises
    ------
    ValueError
        An example has more positions to store than `unit_rows`.
    """
    if max_nodes is None:
        max_nodes = unit_rows if positions.everything else MAX_UNIT_NODES
    unit: list[Member] = []
    n_rows = n_nodes = 0
    stored_C = np.zeros(0, dtype=np.bool_)
    for member in members:
        selected_C = member.selected(positions)[: member.n_computed]
        n_shared = common_prefix(unit[-1].token_ids_C, member.token_ids_C) if unit else 0
        grown_C, new_rows = _grow(stored_C[:n_shared], selected_C)
        new_nodes = member.n_computed - n_shared
        if unit and (n_rows + new_rows > unit_rows or n_nodes + new_nodes > max_nodes):
            yield unit
            unit, n_rows, n_nodes = [], 0, 0
            grown_C, new_rows = _grow(stored_C[:0], selected_C)
            new_nodes = member.n_computed
        if new_rows > unit_rows:
            raise ValueError(f"an example stores {new_rows} tokens, which do not fit into a unit of {unit_rows} rows")
        unit.append(member)
        stored_C, n_rows, n_nodes = grown_C, n_rows + new_rows, n_nodes + new_nodes
    if unit:
        yield unit


def build_unit(
    number: int, first_ordinal: int, members: Sequence[Member], positions: Positions, unit_rows: int
) -> Unit:
    """Give the examples of a unit their ordinals, from `first_ordinal` on, and their rows."""
    row_start = number * unit_rows
    token_ids = [member.token_ids_C for member in members]
    nodes = assign_rows(token_ids, shared_lengths(token_ids), 0)
    rows, n_rows = rows_of_selected(nodes, [member.selected(positions) for member in members], row_start)
    planned = tuple(
        PlannedExample(first_ordinal + index, number, member, rows[index]) for index, member in enumerate(members)
    )
    return Unit(number, row_start, n_rows, 1 + max(int(nodes_C[-1]) for nodes_C in nodes), planned)


def _grow(stored_S: npt.NDArray[np.bool_], selected_C: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], int]:
    """Add a sequence to a tree: `stored_S` says which nodes of the S that it shares with its predecessor have rows.

    Return the same for all its C nodes, and how many rows it adds: a shared node may get its row only now.
    """
    stored_C = selected_C.copy()
    stored_C[: len(stored_S)] |= stored_S
    return stored_C, int(np.count_nonzero(stored_C)) - int(np.count_nonzero(stored_S))


def example_digest(example: RenderedExample) -> str:
    """Return the sha256 over everything that the store keeps of an example, whichever file it came from.

    Nulls among the further columns are left out: a corpus that has a column more says the same of other rows.
    """
    row = example.row
    fields = [row.id, row.prompt, row.system, row.thinking, row.response, row.label]
    extra = {name: value for name, value in row.extra.items() if value is not None}
    text = json.dumps([fields, extra, example.decision], default=str, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(example.token_ids.astype("<i4").tobytes())
    digest.update(example.segments.tobytes())
    return digest.hexdigest()


def plan_digest(
    digests: Iterable[str],
    skipped: Iterable[SkippedRow],
    identity: Mapping[str, str],
    settings: Mapping[str, str | int | None],
    unit_rows: int,
) -> str:
    """Return what names a plan: sha256 over everything that it holds.

    Parameters
    ----------
    digests : of the examples, in their order
    skipped : rows that are left out, in the order of `skipped_key`
    identity : digests of tokenizer and template
    """
    head = json.dumps([dict(sorted(identity.items())), dict(sorted(settings.items())), unit_rows], sort_keys=True)
    digest = hashlib.sha256(f"{head[:-1]}, [".encode())
    for index, row in enumerate(skipped):
        fields = json.dumps([row.id, row.source, row.location, row.reason, row.detail])
        digest.update(f"{', ' if index else ''}{fields}".encode())
    digest.update(b"]]")
    for one in digests:
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()


def skipped_key(row: SkippedRow) -> tuple[str, ...]:
    """Return what rows that are left out are sorted by."""
    return (row.location, row.source or "", row.id or "", row.reason, row.detail)
