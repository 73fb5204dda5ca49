"""The prefix tree of one unit, node by node, as a worker computes it.

Nodes are numbered depth first, in the order of the plan's rows. Legend: N nodes of the unit, T tokens of an example.
Building costs O(tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.plan.prefix import shared_lengths

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UnitExample:
    """One example as a worker sees it: token_ids int32 [T], rows int64 [T], -1 where a position is not stored.

    It ends with its last stored position: nothing behind that is computed. `marks` int64 [T] say where interventions
    act (see `marks.py`), None where they need none.
    """

    example: int
    token_ids: npt.NDArray[np.int32]
    rows: Int64s
    marks: Int64s | None = None

    def up_to(self, length: int) -> UnitExample:
        """Return its first tokens."""
        marks = self.marks[:length] if self.marks is not None else None
        return UnitExample(self.example, self.token_ids[:length], self.rows[:length], marks)

    @property
    def keys_T(self) -> Int64s:
        """Return int64 [T]: equal for tokens that are the same and are changed alike."""
        token_ids_T = self.token_ids.astype(np.int64)
        return token_ids_T if self.marks is None else token_ids_T | (self.marks << 32)


@dataclass(frozen=True, slots=True)
class UnitTree:
    """Nodes of the prefix tree in depth-first order.

    Attributes
    ----------
    token_N, mark_N : int64
    depth_N : int64, 0 for a first token
    end_N : int64, first node behind the subtree of each
    row_N : int64, -1 where the node is not stored
    first_N : int64, index of the example that brought the node
    paths : for each example int64 [T], its nodes
    examples : ordinal of each example in the plan
    """

    token_N: Int64s
    mark_N: Int64s
    depth_N: Int64s
    end_N: Int64s
    row_N: Int64s
    first_N: Int64s
    paths: tuple[Int64s, ...]
    examples: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.token_N)

    def ancestors(self, node: int) -> Int64s:
        """Return the nodes above `node`, from the first token on."""
        return self.paths[int(self.first_N[node])][: int(self.depth_N[node])]


def build_tree(examples: Sequence[UnitExample]) -> UnitTree:
    """Return the tree of examples that are sorted as the plan sorts them.

    Tokens that interventions change in one example and not in another are nodes of their own, and so is what follows.

    Parameters
    ----------
    examples : at least one
    """
    sequences = [example.keys_T for example in examples]
    shared = shared_lengths(sequences)
    new = [len(sequence) - n_shared for sequence, n_shared in zip(sequences, shared, strict=True)]
    n_nodes = sum(new)
    token_N, mark_N, depth_N, end_N, first_N = (np.zeros(n_nodes, dtype=np.int64) for _ in range(5))
    row_N = np.full(n_nodes, -1, dtype=np.int64)
    paths: list[Int64s] = []
    begun = 0
    for index, (example, n_shared) in enumerate(zip(examples, shared, strict=True)):
        own = np.arange(begun, begun + new[index], dtype=np.int64)
        path_T = np.concatenate([paths[-1][:n_shared], own]) if n_shared else own
        token_N[own] = example.token_ids[n_shared:]
        if example.marks is not None:
            mark_N[own] = example.marks[n_shared:]
        depth_N[own] = np.arange(n_shared, n_shared + new[index])
        first_N[own] = index
        begun += new[index]
        end_N[path_T] = begun
        stored = example.rows >= 0
        row_N[path_T[stored]] = example.rows[stored]
        paths.append(path_T)
    return UnitTree(
        token_N, mark_N, depth_N, end_N, row_N, first_N, tuple(paths), tuple(one.example for one in examples)
    )
