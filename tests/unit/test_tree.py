"""The prefix tree of a unit is that of a trie which knows nothing of depth-first intervals."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from units_of import unit_of, without

from cliffstore.extract.tree import build_tree

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=20)


@given(SEQUENCES)
def test_every_prefix_is_one_node(sequences: list[list[int]]) -> None:
    unit = unit_of(sequences)
    tree = build_tree(unit)
    prefixes = {tuple(tokens[: n + 1]) for tokens in sequences for n in range(len(tokens))}
    spelt = [tuple(tree.token_N[[*tree.ancestors(node), node]].tolist()) for node in range(len(tree))]
    assert len(tree) == len(prefixes)
    assert set(spelt) == prefixes
    assert spelt == sorted(prefixes), "depth first, as rows are"
    assert tree.depth_N.tolist() == [len(prefix) - 1 for prefix in spelt]


@given(SEQUENCES)
def test_a_subtree_is_the_interval_up_to_its_end(sequences: list[list[int]]) -> None:
    tree = build_tree(unit_of(sequences))
    above = [set(tree.ancestors(node).tolist()) for node in range(len(tree))]
    for node in range(len(tree)):
        below = [other for other in range(len(tree)) if node in above[other]]
        assert below == list(range(node + 1, int(tree.end_N[node])))


@given(SEQUENCES)
def test_nodes_have_the_rows_of_their_examples(sequences: list[list[int]]) -> None:
    unit = unit_of(sequences)
    tree = build_tree(unit)
    for path_T, one in zip(tree.paths, unit, strict=True):
        np.testing.assert_array_equal(tree.row_N[path_T], one.rows)
        np.testing.assert_array_equal(tree.token_N[path_T], one.token_ids)
    firsts = [tree.examples[index] for index in tree.first_N]
    assert all(node in tree.paths[tree.examples.index(first)] for node, first in enumerate(firsts))


@given(SEQUENCES, st.sets(st.integers(48, 90)))
def test_a_position_that_is_not_stored_has_a_node_without_row(sequences: list[list[int]], dropped: set[int]) -> None:
    unit = without(unit_of(sequences), dropped)
    if not unit:
        return
    tree = build_tree(unit)
    stored = sorted({int(row) for one in unit for row in one.rows} - {-1})
    assert sorted(tree.row_N[tree.row_N >= 0].tolist()) == stored
    assert len(tree) == len({tuple(one.token_ids[: n + 1]) for one in unit for n in range(len(one.token_ids))})
