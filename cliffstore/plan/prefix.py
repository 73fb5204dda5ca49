"""The prefix tree of a sorted list of token sequences.

In a causal model, equal token prefixes have equal activations, so a tree node (a distinct prefix) needs one vector,
whichever examples pass through it. Sorted lexicographically, a sequence shares with *all* earlier ones exactly what
it shares with its predecessor; the tree is therefore just one number a sequence, the length of that common prefix.
Sorting costs O(tokens · log examples) byte comparisons, everything else O(tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int32] | npt.NDArray[np.int64]
"""Token ids, or numbers that tell more than tokens apart."""


def sort_key(token_ids_T: TokenIds) -> bytes:
    """Return bytes whose order is the lexicographic order of the token sequences."""
    return token_ids_T.astype(">u4").tobytes()


def common_prefix(left_T: Keys, right_T: Keys) -> int:
    """Return the length of the longest common prefix of two token sequences."""
    n = min(len(left_T), len(right_T))
    differs = np.flatnonzero(left_T[:n] != right_T[:n])
    return int(differs[0]) if len(differs) else n


def shared_lengths(sequences: Sequence[Keys]) -> list[int]:
    """Return for each sequence of a sorted list how many leading tokens its predecessor has too (0 for the first)."""
    shared = [0] * len(sequences)
    for index in range(1, len(sequences)):
        shared[index] = common_prefix(sequences[index - 1], sequences[index])
    return shared


def assign_rows(sequences: Sequence[TokenIds], shared: Sequence[int], row_start: int) -> list[npt.NDArray[np.int64]]:
    """Number the nodes of the prefix tree and map each position of each sequence to its node.

    Parameters
    ----------
    sequences : sorted token sequences of one unit
    shared : `shared_lengths` of them, with 0 for the first of the unit
    row_start : number of the first node

    Returns
    -------
    For each sequence, int64 [T]: the row of every position. Rows are dense from `row_start`.
    """
    rows: list[npt.NDArray[np.int64]] = []
    next_row = row_start
    for sequence, n_shared in zip(sequences, shared, strict=True):
        n_new = len(sequence) - n_shared
        own = np.arange(next_row, next_row + n_new, dtype=np.int64)
        rows.append(np.concatenate([rows[-1][:n_shared], own]) if n_shared else own)
        next_row += n_new
    return rows


def rows_of_selected(
    nodes: Sequence[npt.NDArray[np.int64]], selected: Sequence[npt.NDArray[np.bool_]], row_start: int
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Give a row to each node that at least one sequence selects, in the order of the nodes.

    Parameters
    ----------
    nodes : for each sequence, int64 [C]: the node of every position, numbered from 0 (`assign_rows`)
    selected : for each sequence, bool [T], T >= C; nothing is selected from C on
    row_start : the first row

    Returns
    -------
    For each sequence, int64 [T]: the row of every selected position, -1 elsewhere, even where the node has a row
    because another sequence selects it. And how many rows there are; they are dense from `row_start`.
    """
    has_row = np.zeros(1 + max(int(nodes_C[-1]) for nodes_C in nodes), dtype=np.bool_)
    for nodes_C, selected_T in zip(nodes, selected, strict=True):
        has_row[nodes_C[selected_T[: len(nodes_C)]]] = True
    row_of_node = row_start - 1 + np.cumsum(has_row, dtype=np.int64)
    rows: list[npt.NDArray[np.int64]] = []
    for nodes_C, selected_T in zip(nodes, selected, strict=True):
        rows_T = np.full(len(selected_T), -1, dtype=np.int64)
        rows_T[selected_T] = row_of_node[nodes_C[selected_T[: len(nodes_C)]]]
        rows.append(rows_T)
    return rows, int(has_row.sum())
