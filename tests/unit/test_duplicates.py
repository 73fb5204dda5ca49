"""Near-duplicates are those that a comparison of all pairs would find, in whatever blocks vectors are read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.publish import duplicates
from cliffstore.publish.choice import Gate, choose
from cliffstore.publish.duplicates import ActivationGate, PromptGate, jaccard, shingles, spread

WORDS = st.lists(st.sampled_from(["tell", "me", "about", "bees", "and", "bread"]), max_size=9).map(" ".join)


def kept(gate: Gate, n: int) -> list[int]:
    return choose(n, n, [gate]).index_N.tolist()


@given(st.lists(WORDS, max_size=30), st.sampled_from([0.1, 1 / 3, 0.5, 0.6, 0.8, 1.0]))
def test_prompts_as_all_pairs_say(prompts: list[str], threshold: float) -> None:
    expected: list[int] = []
    sets = [shingles(prompt) for prompt in prompts]
    for index, one in enumerate(sets):
        if all(jaccard(one, sets[other]) < threshold for other in expected):
            expected.append(index)
    assert kept(PromptGate(pa.array(prompts, pa.large_string()), threshold), len(prompts)) == expected


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ("How do I bake bread?", "  how do\n I BAKE  bread ", 1.0),
        ("Hi", "hi!", 1.0),
        ("one two three four five", "one two three four six", 0.5),
        ("one two three", "four five six", 0.0),
        ("如何烤面包", "如何烤面条", 0.5),
        ("???", "!!!", 0.0),
        ("a b", "a b c", 0.0),
    ],
)
def test_likeness_of_prompts(a: str, b: str, alike: float) -> None:
    assert jaccard(shingles(a), shingles(b)) == alike


def test_better_ranked_stays_and_chains_do_not_spread() -> None:
    """What is like an example that was left out, and like none that was chosen, may be chosen."""
    prompts = ["a b c d e f", "b c d e f g", "c d e f g h"]
    assert jaccard(*map(shingles, prompts[:2])) == jaccard(*map(shingles, prompts[1:])) == 0.6
    assert kept(PromptGate(pa.array(prompts), 0.5), 3) == [0, 2]


def vectors(n: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return vectors as residual streams are: one dimension is loud, and the same in all."""
    h_ND = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    h_ND[:, 0] += 1_000
    return h_ND


def gate_over(h_ND: npt.NDArray[np.float32], threshold: float = 0.98, wanted: int = 10_000) -> ActivationGate:
    return ActivationGate(len(h_ND), lambda index_N: h_ND[index_N], threshold, wanted, spread(len(h_ND)))


def all_pairs(h_ND: npt.NDArray[np.float32], threshold: float) -> list[int]:
    centred = h_ND.astype(np.float64) - h_ND.mean(axis=0, dtype=np.float64)
    unit = centred / np.linalg.norm(centred, axis=1)[:, None]
    chosen: list[int] = []
    for index in range(len(unit)):
        if not (unit[chosen] @ unit[index] >= threshold).any():
            chosen.append(index)
    return chosen


@pytest.mark.parametrize("block", [256, 300, 4_096])
def test_planted_copies_are_left_out_and_nothing_else(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK_MOST", block)
    h_ND = vectors(1_500, 32)
    h_ND[700:1_200] = h_ND[:500] + np.random.default_rng(1).standard_normal((500, 32)).astype(np.float32) * 0.01
    assert kept(gate_over(h_ND), 1_500) == [*range(700), *range(1_200, 1_500)]


@pytest.mark.parametrize("block", [256, 4_096])
def test_vectors_as_all_pairs_say(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK_MOST", block)
    h_ND = vectors(900, 6, seed=3)
    chosen = kept(gate_over(h_ND, 0.9), 900)
    assert chosen == all_pairs(h_ND, 0.9)
    assert 50 < len(chosen) < 850


def test_blocks_do_not_decide_at_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal vectors have a cosine of 1 within rounding, wherever they lie in a block."""
    h_ND = np.repeat(vectors(400, 48), 2, axis=0)
    for block in (256, 333, 4_096):
        monkeypatch.setattr(duplicates, "_BLOCK_MOST", block)
        assert kept(gate_over(h_ND, 1.0), 800) == list(range(0, 800, 2))


def test_without_centring_all_would_be_alike() -> None:
    h_ND = vectors(50, 16)
    unit = h_ND / np.linalg.norm(h_ND, axis=1)[:, None]
    assert (unit @ unit.T).min() > 0.99
    assert len(kept(gate_over(h_ND), 50)) == 50


def test_vectors_that_are_all_equal_are_alike() -> None:
    assert kept(gate_over(np.full((5, 4), 0.1, dtype=np.float32)), 5) == [0]


def test_no_more_is_read_than_may_be_needed() -> None:
    h_ND, read = vectors(5_000, 8), []

    def count(index_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        read.append(len(index_N))
        return h_ND[index_N]

    gate = ActivationGate(5_000, count, 0.98, 10, np.arange(100))
    assert choose(5_000, 10, [gate]).index_N.tolist() == list(range(10))
    assert read == [100, 256]


@pytest.mark.parametrize(("n", "expected"), [(0, []), (1, [0]), (3, [0, 1, 2])])
def test_sample_of_few_is_all(n: int, expected: list[int]) -> None:
    assert spread(n).tolist() == expected


def test_sample_of_many_is_spread() -> None:
    found = spread(100_000)
    assert len(found) == duplicates.SAMPLED
    assert (found[0], found[-1]) == (0, 99_999)
    assert np.diff(found).max() <= 25
