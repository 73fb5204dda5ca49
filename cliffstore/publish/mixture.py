"""Which rows a training set has, in which order, and which of them validate: from values to values.

Everything is dealt by hashes of a seed and of ids, so it is the same in any order of input and on any machine. Groups
go whole to one side: rows of equal prompts, and of an equal value of the column that groups. Cost: O(N log N).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cliffstore.errors import SelectionError

SELECTED, MIXED = "selected", "mixed"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An example of the training set.

    Attributes
    ----------
    part : `selected` or `mixed`
    prompt : digest of the words of its prompt
    group : value of the column that groups; None where there is none
    """

    example: int
    id: str
    part: str
    prompt: bytes
    group: str | None = None
    rank: int | None = None
    strategy: str | None = None
    value: float | None = None


def prompt_digest(prompt: str | None) -> bytes:
    """Return a digest that is equal where prompts are, whatever their space and case."""
    return hashlib.blake2b(" ".join((prompt or "").split()).casefold().encode(), digest_size=16).digest()


def count_mixed(n_selected: int, share: float) -> int:
    """Return how many rows to mix in so that they are `share` of all: at least one."""
    return max(round(n_selected * share / (1 - share)), 1)


def shuffled(rows: Sequence[Chosen], seed: int) -> list[Chosen]:
    """Return rows in the order of a hash of seed and id."""
    return sorted(rows, key=lambda row: (_hash(seed, "order", row.id), row.id, row.example))


def split(rows: Sequence[Chosen], share: float, seed: int) -> list[str]:
    """Return `train` or `validation` for each row, whole groups on one side.

    Groups are taken in the order of a hash while they fit; both parts, selected and mixed, are drawn from in their
    proportion, as far as groups allow. Where none fits, the smallest group validates.

    Raises
    ------
    SelectionError
        All rows are of one group.
    """
    group_of = groups(rows)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(group_of):
        members.setdefault(group, []).append(index)
    if len(members) < 2:
        raise SelectionError(
            "a validation part needs two groups, and all rows are of one: leave out --validation or --group-by"
        )
    parts = sorted({row.part for row in rows})
    room = {part: round(share * sum(row.part == part for row in rows)) for part in parts}
    order = sorted(members, key=lambda group: _hash(seed, "split", min(rows[index].id for index in members[group])))
    held_out: set[int] = set()
    for group in order:
        sizes = {part: sum(rows[index].part == part for index in members[group]) for part in parts}
        if len(held_out) < len(members) - 1 and all(sizes[part] <= room[part] for part in parts):
            room = {part: room[part] - sizes[part] for part in parts}
            held_out.add(group)
    held_out = held_out or {min(order, key=lambda group: len(members[group]))}
    return [VALIDATION if group in held_out else TRAIN for group in group_of]


def groups(rows: Sequence[Chosen]) -> list[int]:
    """Return the group of each row: rows of an equal prompt, or of an equal group that is not None, are in one."""
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[object, int] = {}
    for index, row in enumerate(rows):
        for key in (row.prompt, row.group):
            if key is not None:
                one, other = sorted((root(first.setdefault(key, index)), root(index)))
                parent[other] = one
    return [root(index) for index in range(len(rows))]


def _hash(seed: int, purpose: str, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{purpose}\0{text}".encode(), digest_size=16).digest()
