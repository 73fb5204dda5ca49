"""Which passes are chosen: the fastest of those that were timed, or by counting where timing would not pay.

Time is made up: a pass takes what a table says for its kind and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import ExtractionError
from cliffstore.extract import calibration
from cliffstore.extract.calibration import SIZES, CorpusShape, PassWish, calibrate
from cliffstore.extract.passes import PaddedPasses, Pass, first_owners
from cliffstore.extract.tree import build_tree
from cliffstore.extract.trial import make_examples
from cliffstore.model.capture import SiteCapture
from cliffstore.schema import ArrayIdentity

CANDIDATES = [(kind, tokens) for kind, sizes in SIZES["cpu"].items() for tokens in sizes]
LENGTHS, SHARED = (64,) * 200, (0, *(40,) * 199)
N_NODES = sum(LENGTHS) - sum(SHARED)
FACTOR = 50
"""The job is as many samples: 248,000 nodes."""
LARGE = CorpusShape(LENGTHS, SHARED, FACTOR * N_NODES, FACTOR * sum(LENGTHS))
SMALL = CorpusShape(LENGTHS, SHARED, N_NODES, sum(LENGTHS))


def kind_of(one: Pass) -> str:
    return "padded" if one.ends_S is None else "tree"


class Clock:
    """Stands in for `time_passes`: `cost` gives the seconds of a pass, or raises."""

    def __init__(self, cost: Callable[[Pass], float]) -> None:
        self.cost = cost
        self.timed: list[Pass] = []

    def __call__(self, _capture: SiteCapture, passes: Sequence[Pass]) -> float:
        self.timed += passes
        return sum(self.cost(one) for one in passes)

    @property
    def computed(self) -> int:
        """Positions of all passes but the small ones that measure the rate."""
        return sum(one.input_ids_BT.size for one in self.timed[2:])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Pass], float]], Clock]:
    def install(cost: Callable[[Pass], float]) -> Clock:
        made = Clock(cost)
        monkeypatch.setattr(calibration, "time_passes", made)
        return made

    return install


def fake(*, over_trees: bool = True, device: str = "cpu") -> SiteCapture:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=50_000))
    return SimpleNamespace(  # type: ignore[return-value]
        device=torch.device(device), over_trees=over_trees, model=SimpleNamespace(config=config), choices=()
    )


def by_table(a_position: dict[tuple[str, int], float]) -> Callable[[Pass], float]:
    """Return the cost of a pass by the smallest size of its kind that holds it."""

    def cost(one: Pass) -> float:
        size = min(tokens for kind, tokens in a_position if kind == kind_of(one) and one.input_ids_BT.size <= tokens)
        return one.input_ids_BT.size * a_position[kind_of(one), size]

    return cost


def all_but(fastest: Iterable[tuple[str, int]], slow: float = 1e-3, fast: float = 1e-4) -> dict[tuple[str, int], float]:
    return {candidate: fast if candidate in fastest else slow for candidate in CANDIDATES}


@pytest.mark.parametrize("fastest", CANDIDATES)
def test_fastest_is_chosen_and_all_are_shown(clock, fastest: tuple[str, int]) -> None:
    clock(by_table(all_but([fastest])))
    found = calibrate(fake(), PassWish(), LARGE)
    assert (found.kind, found.tokens) == fastest
    assert [(one.kind, one.tokens) for one in found.tried] == CANDIDATES
    (chosen,) = [one for one in found.tried if (one.kind, one.tokens) == fastest]
    assert found.seconds == chosen.seconds == min(one.seconds for one in found.tried)
    text = found.describe(LARGE)
    assert text.startswith(f"passes of {fastest[1]:,} ")
    assert ("prefix tree" in text) is (fastest[0] == "tree")
    for one in found.tried:
        assert f"{one.kind} {one.tokens:,}: {one.seconds:,.1f} s" in text


def test_time_is_that_of_the_job_and_not_of_a_token(clock) -> None:
    """Padded positions are half as dear here, but there are more than twice as many."""
    clock(by_table({one: 1e-3 if one[0] == "tree" else 0.5e-3 for one in CANDIDATES}))
    found = calibrate(fake(), PassWish(), LARGE)
    assert found.kind == "tree"
    assert found.seconds == pytest.approx(LARGE.n_nodes * 1e-3)
    clock(by_table({one: 1e-3 if one[0] == "tree" else 0.3e-3 for one in CANDIDATES}))
    found = calibrate(fake(), PassWish(), LARGE)
    assert found.kind == "padded"
    assert found.seconds == pytest.approx(LARGE.n_padded * 0.3e-3)


def test_padding_counts(clock) -> None:
    """Lines of one pass are as long as its longest: computed positions are more than tokens."""
    lengths = tuple(20 + 37 * number % 200 for number in range(150))
    shape = CorpusShape(lengths, (0,) * 150, 100 * sum(lengths), 100 * sum(lengths))
    clock(by_table(all_but([])))
    found = calibrate(fake(), PassWish(kind="padded"), shape)
    for one in found.tried:
        owners = first_owners(make_examples(shape.lengths, shape.shared, 50_000))
        positions = sum(made.input_ids_BT.size for made in PaddedPasses(owners, one.tokens))
        assert positions > sum(lengths)
        assert one.seconds == pytest.approx(100 * positions * 1e-3)


@pytest.mark.parametrize("times", [1, 2, 7])
def test_seconds_grow_with_the_job(clock, times: int) -> None:
    clock(by_table(all_but([])))
    shape = CorpusShape(LENGTHS, SHARED, times * LARGE.n_nodes, times * LARGE.n_padded)
    one, several = (calibrate(fake(), PassWish(), each) for each in (LARGE, shape))
    for single, multiple in zip(one.tried, several.tried, strict=True):
        assert multiple.seconds == pytest.approx(times * single.seconds)
    few, more = (calibrate(fake(), PassWish(kind="tree", tokens=100), each).seconds for each in (LARGE, shape))
    assert more == pytest.approx(times * few)


def test_small_job_is_counted_and_says_so(clock) -> None:
    seen = clock(lambda one: one.input_ids_BT.size * 1e-3)
    found = calibrate(fake(), PassWish(), SMALL)
    assert (found.kind, found.tokens, found.tried) == ("tree", SIZES["cpu"]["tree"][-1], ())
    assert found.seconds == pytest.approx(SMALL.n_nodes * 1e-3)
    assert seen.computed == 0
    text = found.describe(SMALL)
    for part in ("not timed", f"{SMALL.n_nodes:,} nodes", f"{SMALL.n_padded:,} tokens side by side"):
        assert part in text


def test_small_job_without_shared_prefixes_is_padded(clock) -> None:
    clock(lambda one: one.input_ids_BT.size * 1e-3)
    shape = CorpusShape((50,) * 20, (0,) * 20, 1_000, 1_000)
    found = calibrate(fake(), PassWish(), shape)
    assert (found.kind, found.tokens) == ("padded", SIZES["cpu"]["padded"][-1])
    assert found.seconds == pytest.approx(1.0)


def test_timing_takes_a_small_part_of_the_job(clock) -> None:
    """From the size on from which candidates are timed, timing computes 3% of the job's nodes at most."""
    timed = []
    for n_nodes in range(20_000, 400_000, 20_000):
        seen = clock(lambda one: one.input_ids_BT.size * 1e-3)
        found = calibrate(fake(), PassWish(), CorpusShape(LENGTHS, SHARED, n_nodes, 2 * n_nodes))
        timed.append(bool(found.tried))
        assert bool(found.tried) is (seen.computed > 0)
        assert seen.computed <= 0.03 * n_nodes
    assert not timed[0]
    assert timed[-1]
    assert timed == sorted(timed)


@pytest.mark.parametrize("kind", ["tree", "padded"])
def test_forced_kind_is_kept(clock, kind: str) -> None:
    other = [one for one in CANDIDATES if one[0] != kind]
    clock(by_table(all_but(other)))
    found = calibrate(fake(), PassWish(kind=kind), LARGE)
    assert {one.kind for one in found.tried} == {found.kind} == {kind}
    assert calibrate(fake(), PassWish(kind=kind), SMALL).kind == kind


def test_forced_size_is_kept(clock) -> None:
    clock(lambda one: one.input_ids_BT.size * (1e-3 if kind_of(one) == "tree" else 1e-4))
    found = calibrate(fake(), PassWish(tokens=77), LARGE)
    assert [(one.kind, one.tokens) for one in found.tried] == [("tree", 77), ("padded", 77)]
    assert (found.kind, found.tokens) == ("padded", 77)
    assert calibrate(fake(), PassWish(tokens=77), SMALL).tokens == 77


def test_nothing_is_timed_where_nothing_is_to_be_chosen(clock) -> None:
    seen = clock(lambda one: one.input_ids_BT.size * 1e-3)
    found = calibrate(fake(), PassWish(kind="padded", tokens=300), LARGE)
    assert (found.kind, found.tokens, found.tried) == ("padded", 300, ())
    assert found.seconds == pytest.approx(LARGE.n_padded * 1e-3)
    assert seen.computed == 0


@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_model_without_trees_is_padded(clock, shape: CorpusShape) -> None:
    clock(by_table(all_but([("tree", 256), ("tree", 512)])))
    found = calibrate(fake(over_trees=False), PassWish(), shape)
    assert found.kind == "padded"
    assert {one.kind for one in found.tried} <= {"padded"}


def test_accelerator_is_given_larger_passes(clock) -> None:
    shape = CorpusShape((64,) * 3_000, (0, *(40,) * 2_999), 10**8, 3 * 10**8)
    clock(lambda one: one.input_ids_BT.size * 1e-6)
    found = calibrate(fake(device="cuda"), PassWish(), shape)
    expected = [(kind, tokens) for kind, sizes in SIZES["accelerator"].items() for tokens in sizes]
    assert [(one.kind, one.tokens) for one in found.tried] == expected
    assert min(tokens for _, tokens in expected) > max(tokens for _, tokens in CANDIDATES)


def fails_above(tokens: int, error: Exception | None = None) -> Callable[[Pass], float]:
    def cost(one: Pass) -> float:
        if one.input_ids_BT.size > tokens:
            raise error or torch.OutOfMemoryError("CUDA out of memory.")
        return one.input_ids_BT.size * 1e-3

    return cost


def test_what_does_not_fit_is_not_chosen(clock) -> None:
    clock(fails_above(300))
    found = calibrate(fake(), PassWish(), LARGE)
    assert (found.kind, found.tokens) == ("tree", 256)
    assert [one.seconds is None for one in found.tried] == [tokens > 300 for _, tokens in CANDIDATES]
    assert "tree 512: out of memory" in found.describe(LARGE)


def test_where_no_candidate_fits_a_unit_finds_out_what_does(clock) -> None:
    """Units divide passes that do not fit; the expected time comes from a pass that did."""
    clock(fails_above(50))
    found = calibrate(fake(), PassWish(), LARGE)
    assert (found.kind, found.tried) == ("tree", ())
    assert found.seconds == pytest.approx(LARGE.n_nodes * 1e-3)


def test_device_that_holds_no_token_is_an_error(clock) -> None:
    clock(fails_above(0))
    with pytest.raises(ExtractionError, match="one token"):
        calibrate(fake(), PassWish(), LARGE)


def test_another_error_is_not_taken_for_too_little_memory(clock) -> None:
    clock(fails_above(300, RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        calibrate(fake(), PassWish(), LARGE)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=20))
def test_sample_has_the_shape_that_it_is_made_for(drawn: list[tuple[int, int]]) -> None:
    lengths = [length for length, _ in drawn]
    shared = [0] + [min(most, lengths[number], lengths[number - 1]) for number, (_, most) in enumerate(drawn) if number]
    examples = make_examples(lengths, shared, vocabulary=3)
    tree = build_tree(examples)
    assert [len(one.token_ids) for one in examples] == lengths
    assert len(tree) == sum(lengths) - sum(shared)
    np.testing.assert_array_equal(tree.row_N, np.arange(len(tree)))


@pytest.fixture(scope="module")
def tiny_capture() -> SiteCapture:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=100
    )
    arrays = [ArrayIdentity(site="resid_post", layer=layer, shape=[16]) for layer in range(2)]
    return SiteCapture(LlamaModel(config).eval(), arrays, n_layers=2, n_heads=2)


def test_real_passes_are_timed(tiny_capture: SiteCapture) -> None:
    found = calibrate(tiny_capture, PassWish(), LARGE)
    assert [(one.kind, one.tokens) for one in found.tried] == CANDIDATES
    assert all(one.seconds > 0 for one in found.tried)
    assert found.seconds == min(one.seconds for one in found.tried)


def test_real_passes_without_trees(tiny_capture: SiteCapture) -> None:
    with tiny_capture.as_loaded():
        found = calibrate(tiny_capture, PassWish(), LARGE)
    assert {one.kind for one in found.tried} == {"padded"}
    assert found.seconds > 0
