"""Which tokens share a forward pass: nodes of the prefix tree, or examples side by side. Pure.

`tree`: consecutive nodes, after a path whose keys and values are held from the passes before. In depth-first order the
ancestors of later nodes that lie before a pass are all ancestors of its first node, so one path is enough, and every
node of the unit is computed exactly once. A long example is a long path: it is computed piece by piece (chunked
prefill), and memory grows with the pass, not with the example.

`padded`: examples of like length side by side, padded on the right; a shared prefix is computed again in each line,
and its row kept from the first. It asks nothing of the model.

A plan of passes is a function of the unit and the settings alone, so a resumed run makes the same ones.

Legend: B lines, T positions a line, P path nodes, S = P + T, N kept positions, C carried keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from cliffstore.extract.tree import Int64s, UnitExample, UnitTree, build_tree


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes
    ----------
    input_ids_BT : int64, zero where padded
    positions_BT : int64, depth of each token in its sequence
    lengths_B : int64, tokens of each line that are not padding
    kept_N : int64, flattened positions whose vectors are stored
    rows_N : int64, the row of each
    examples_N : int64, ordinal of an example that has it
    ends_S : int64, first position of the pass behind the subtree of each key; None where lines are plain sequences
    carry_C : int64, keys that the next pass needs as its path; None where it needs none
    marks_BT : int64, where interventions act (see `marks.py`), zero where padded
    first, last : what of the unit it covers: nodes, or lines in order of length
    """

    input_ids_BT: Int64s
    positions_BT: Int64s
    lengths_B: Int64s
    kept_N: Int64s
    rows_N: Int64s
    examples_N: Int64s
    ends_S: Int64s | None
    carry_C: Int64s | None
    marks_BT: Int64s
    first: int
    last: int

    @property
    def n_past(self) -> int:
        """Nodes of the path before the pass."""
        return 0 if self.ends_S is None else len(self.ends_S) - self.input_ids_BT.shape[1]


class Passes(Protocol):
    """The passes over a unit, in the order in which they must run."""

    def __iter__(self) -> Iterator[Pass]:
        """Give each pass once."""

    def halve(self, one: Pass) -> tuple[Pass, Pass] | None:
        """Return two passes that do what `one` does, None where it cannot be divided."""

    def in_pieces(self, one: Pass) -> Passes | None:
        """Return passes that compute the one example of `one` piece by piece, None where that cannot be done."""


class TreePasses:
    """Passes of at most `tokens` nodes."""

    def __init__(self, tree: UnitTree, tokens: int) -> None:
        self._tree, self._tokens = tree, tokens

    def __iter__(self) -> Iterator[Pass]:
        n_passes = -(-len(self._tree) // self._tokens)
        bounds = [len(self._tree) * part // n_passes for part in range(n_passes + 1)]
        for first, last in pairwise(bounds):
            yield self._pass(first, last)

    def halve(self, one: Pass) -> tuple[Pass, Pass] | None:
        middle = (one.first + one.last) // 2
        if middle == one.first:
            return None
        return self._pass(one.first, middle), self._pass(middle, one.last)

    def in_pieces(self, one: Pass) -> Passes | None:
        return None

    def _pass(self, first: int, last: int) -> Pass:
        tree = self._tree
        nodes_S = np.concatenate([tree.ancestors(first), np.arange(first, last)])
        kept_N = np.flatnonzero(tree.row_N[first:last] >= 0)
        owners_N = np.asarray(tree.examples, dtype=np.int64)[tree.first_N[first:last][kept_N]]
        return Pass(
            input_ids_BT=tree.token_N[None, first:last],
            positions_BT=tree.depth_N[None, first:last],
            lengths_B=np.array([last - first]),
            kept_N=kept_N,
            rows_N=tree.row_N[first:last][kept_N],
            examples_N=owners_N,
            ends_S=np.clip(tree.end_N[nodes_S] - first, 0, last - first),
            carry_C=self._carry(nodes_S, last),
            marks_BT=tree.mark_N[None, first:last],
            first=first,
            last=last,
        )

    def _carry(self, nodes_S: Int64s, last: int) -> Int64s | None:
        if last == len(self._tree):
            return None
        path_C = self._tree.ancestors(last)
        return np.searchsorted(nodes_S, path_C) if len(path_C) else None


class PaddedPasses:
    """Passes of at most `tokens` padded tokens, one example at the least.

    Parameters
    ----------
    chunk : whether an example that does not fit into memory may go piece by piece
    """

    def __init__(self, lines: Sequence[UnitExample], tokens: int, *, chunk: bool = False) -> None:
        cut = [_up_to_last_row(line) for line in lines]
        self._lines = sorted(cut, key=lambda line: (len(line.token_ids), line.example))
        self._tokens, self._chunk = tokens, chunk

    def __iter__(self) -> Iterator[Pass]:
        first = 0
        for index, line in enumerate(self._lines):
            if index > first and (index - first + 1) * len(line.token_ids) > self._tokens:
                yield self._pass(first, index)
                first = index
        if self._lines:
            yield self._pass(first, len(self._lines))

    def halve(self, one: Pass) -> tuple[Pass, Pass] | None:
        middle = (one.first + one.last) // 2
        if middle == one.first:
            return None
        return self._pass(one.first, middle), self._pass(middle, one.last)

    def in_pieces(self, one: Pass) -> Passes | None:
        width = one.input_ids_BT.shape[1]
        if not self._chunk or one.last - one.first > 1 or width == 1:
            return None
        return TreePasses(build_tree(self._lines[one.first : one.last]), width // 2)

    def _pass(self, first: int, last: int) -> Pass:
        lines = self._lines[first:last]
        width = max(len(line.token_ids) for line in lines)
        input_ids_BT, marks_BT = (np.zeros((len(lines), width), dtype=np.int64) for _ in range(2))
        for number, line in enumerate(lines):
            input_ids_BT[number, : len(line.token_ids)] = line.token_ids
            if line.marks is not None:
                marks_BT[number, : len(line.marks)] = line.marks
        stored = [np.flatnonzero(line.rows >= 0) for line in lines]
        return Pass(
            input_ids_BT=input_ids_BT,
            positions_BT=np.broadcast_to(np.arange(width, dtype=np.int64), input_ids_BT.shape),
            lengths_B=np.array([len(line.token_ids) for line in lines]),
            kept_N=np.concatenate([number * width + kept for number, kept in enumerate(stored)]),
            rows_N=np.concatenate([line.rows[kept] for line, kept in zip(lines, stored, strict=True)]),
            examples_N=np.repeat([line.example for line in lines], [len(kept) for kept in stored]),
            ends_S=None,
            carry_C=None,
            marks_BT=marks_BT,
            first=first,
            last=last,
        )


def plan_passes(
    examples: Sequence[UnitExample], kind: str, tokens: int, *, chunk: bool = True, whole_above: int | None = None
) -> list[Passes]:
    """Return the passes of a unit, in groups that run one after the other.

    Parameters
    ----------
    examples : sorted as the plan sorts them
    kind : `tree` or `padded`
    tokens : nodes or padded tokens of one pass
    chunk : whether padded examples longer than a pass may go piece by piece instead; needs what `tree` needs
    whole_above : examples longer than this are computed whole and by themselves, since what the model computes for
        a token then depends on the length of the example (some scaled rotary embeddings); None where it never does
    """

    def is_whole(one: UnitExample) -> bool:
        return whole_above is not None and len(one.token_ids) > whole_above

    def in_pieces(one: UnitExample) -> bool:
        return kind == "tree" or (chunk and len(one.token_ids) > tokens)

    own = first_owners(examples)
    side_by_side = [one for one in own if not is_whole(one) and not in_pieces(one)]
    pieces = [one for one in own if not is_whole(one) and in_pieces(one)]
    groups: list[Passes] = []
    if side_by_side:
        groups.append(PaddedPasses(side_by_side, tokens, chunk=chunk))
    if pieces:
        groups.append(TreePasses(build_tree(pieces), tokens))
    groups.extend(PaddedPasses([one], len(one.token_ids)) for one in own if is_whole(one))
    return groups


def first_owners(examples: Sequence[UnitExample]) -> list[UnitExample]:
    """Return the examples that bring a row, each with only the rows that no example before it has."""
    highest = max((int(example.rows.max(initial=-1)) for example in examples), default=-1)
    seen = np.zeros(highest + 2, dtype=bool)  # the last place stands for -1
    owners: list[UnitExample] = []
    for example in examples:
        brings = (example.rows >= 0) & ~seen[example.rows]
        if brings.any():
            owners.append(replace(example, rows=np.where(brings, example.rows, -1)))
            seen[example.rows[brings]] = True
    return owners


def _up_to_last_row(line: UnitExample) -> UnitExample:
    return line.up_to(int(np.flatnonzero(line.rows >= 0)[-1]) + 1)
