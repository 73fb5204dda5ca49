"""The attention of a pass: who sees whom, in every form in which it is told to a kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from units_of import unit_of

from cliffstore.errors import ExtractionError
from cliffstore.extract.passes import TreePasses
from cliffstore.extract.tree import build_tree
from cliffstore.model.attention import PassAttention, attend, attending

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=20)


def attention_of(sequences: list[list[int]], tokens: int) -> list[tuple[PassAttention, np.ndarray, np.ndarray]]:
    """Return each pass over a tree, and by the tree's own paths: who sees whom, and how far apart they are [T, S]."""
    tree = build_tree(unit_of(sequences))
    found = []
    for one in TreePasses(tree, tokens):
        nodes_S = np.concatenate([tree.ancestors(one.first), np.arange(one.first, one.last)])
        sees_TS = np.array([np.isin(nodes_S, [*tree.ancestors(n), n]) for n in range(one.first, one.last)])
        apart_TS = tree.depth_N[one.first : one.last, None] - tree.depth_N[nodes_S][None, :]
        current = PassAttention(
            n_queries=one.last - one.first,
            depth_S=torch.from_numpy(tree.depth_N[nodes_S]),
            ends_S=torch.from_numpy(one.ends_S),
            past={},
            carry_C=None,
        )
        found.append((current, sees_TS, apart_TS))
    return found


@given(SEQUENCES, st.integers(1, 40), st.one_of(st.none(), st.integers(1, 6)))
def test_a_node_sees_its_ancestors_and_itself(sequences: list[list[int]], tokens: int, window: int | None) -> None:
    for current, sees_TS, apart_TS in attention_of(sequences, tokens):
        expected_TS = sees_TS if window is None else sees_TS & (apart_TS < window)
        np.testing.assert_array_equal(current.sees(window).numpy(), expected_TS)
        mask = current.mask(window, torch.zeros(1, 1, 1, 1))
        assert mask is not None
        np.testing.assert_array_equal(mask[0, 0].numpy(), np.where(expected_TS, 0.0, -np.inf))


@pytest.mark.parametrize("window", [None, 5, 90])
def test_flex_attention_is_told_the_same(window: int | None) -> None:
    """Block by block: no pair that is seen lies in a block that is skipped, and in blocks, pair by pair."""
    random = np.random.default_rng(0)
    stem = random.integers(0, 9, 150).tolist()
    sequences = [stem[: int(cut)] + random.integers(0, 9, 40).tolist() for cut in random.integers(0, 150, 12)]
    passes = attention_of(sequences, 300)
    assert len(passes) > 1
    for current, sees_TS, apart_TS in passes:
        expected_TS = sees_TS if window is None else sees_TS & (apart_TS < window)
        block_mask = current.block_mask(window)
        n_queries, n_keys = expected_TS.shape
        q, s = torch.meshgrid(torch.arange(n_queries), torch.arange(n_keys), indexing="ij")
        zero = torch.tensor(0)
        np.testing.assert_array_equal(block_mask.mask_mod(zero, zero, q, s).numpy(), expected_TS)
        dense = block_mask.to_dense()[0, 0].numpy().astype(bool)
        skipped_blocks = 0
        for row, line in enumerate(dense):
            for column, kept in enumerate(line):
                block = expected_TS[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
                assert kept == block.any()
                skipped_blocks += not kept
        assert skipped_blocks or window is None


def _heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class _Layer(nn.Module):
    layer_idx = 0


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sees: torch.Tensor,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one head and one query after the other, [T, H, D]."""
    out = torch.zeros(q.shape[2], q.shape[1], q.shape[3])
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        for t in range(q.shape[2]):
            logits = torch.stack([q[0, head, t] @ k[0, shared, s] / 4 for s in range(k.shape[2]) if sees[t, s]])
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            values = torch.stack([v[0, shared, s] for s in range(k.shape[2]) if sees[t, s]])
            top = logits.exp().sum() + (0 if sinks is None else sinks[head].exp())
            out[t, head] = (logits.exp() / top) @ values
    return out


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -1.0, 2.0, 0.0])], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3])
def test_kernels_do_what_is_written_out(window: int | None, softcap: float | None, sinks: torch.Tensor | None) -> None:
    """With the path of the pass before, grouped heads, a scale of 1/4."""
    first, second = attention_of([[1, 2, 3, 4, 1, 1], [1, 2, 3, 2, 2], [1, 2, 1, 3]], 6)[:2]
    current = second[0]
    n_keys, n_queries = len(current.depth_S), current.n_queries
    n_path = n_keys - n_queries
    assert n_path > 0
    assert first[0].n_queries > 0
    q, k, v = (_heads(1, heads, n, 16, seed=n + heads) for heads, n in ((4, n_queries), (2, n_keys), (2, n_keys)))
    v = v + 1
    current.past = {0: (k[:, :, :n_path], v[:, :, :n_path])}
    with attending(current):
        found, weights = attend(
            _Layer(), q, k[:, :, n_path:], v[:, :, n_path:], None, scaling=0.25, sliding_window=window,
            softcap=softcap, s_aux=sinks,
        )  # fmt: skip
    assert weights is None
    torch.testing.assert_close(found[0], _plain(q, k, v, current.sees(window), softcap, sinks), rtol=1e-5, atol=1e-5)


def test_what_the_next_pass_needs_is_carried() -> None:
    ((current, *_),) = attention_of([[1, 2, 3], [1, 3]], 10)
    current.carry_C = torch.tensor([0, 2])
    q, k, v = (_heads(1, 2, 4, 8, seed=n) for n in range(3))
    with attending(current):
        attend(_Layer(), q, k, v, None)
    torch.testing.assert_close(current.carried[0][0], k[:, :, [0, 2]])
    torch.testing.assert_close(current.carried[0][1], v[:, :, [0, 2]])


def test_a_bad_key_spoils_those_that_see_it_and_no_other() -> None:
    ((current, sees_TS, _),) = attention_of([[1, 2, 3], [1, 3, 3]], 10)
    q, k, v = (_heads(1, 2, 5, 8, seed=n) for n in range(3))
    clean = v.clone()
    v[0, 1, 3] = float("nan")
    found = {}
    for isolate, values in ((True, v), (False, clean)):
        current.isolate = isolate
        with attending(current):
            found[isolate], _ = attend(_Layer(), q, k, values, None)
    spoilt = found[True].isnan().any(-1).any(-1)[0]
    assert spoilt.tolist() == sees_TS[:, 3].tolist()
    torch.testing.assert_close(found[True][0, ~spoilt], found[False][0, ~spoilt])


@pytest.mark.parametrize("argument", ["position_bias", "cache", "head_mask", "block_mask"])
def test_what_is_not_done_is_refused(argument: str) -> None:
    ((current, *_),) = attention_of([[1, 2]], 10)
    x = _heads(1, 1, 2, 8)
    with attending(current), pytest.raises(ExtractionError, match=argument):
        attend(_Layer(), x, x, x, None, **{argument: x})


def test_a_mask_of_the_model_is_refused() -> None:
    ((current, *_),) = attention_of([[1, 2]], 10)
    x = _heads(1, 1, 2, 8)
    with attending(current), pytest.raises(ExtractionError, match="its own mask"):
        attend(_Layer(), x, x, x, torch.zeros(1, 1, 2, 2))
