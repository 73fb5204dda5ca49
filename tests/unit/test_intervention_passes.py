"""Interventions in passes over trees and in padded ones: what hooks on each sequence by itself give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, WIDTH, plain_sites
from hypothesis import given
from hypothesis import strategies as st
from test_pass_architectures import identity_of
from transformers import PreTrainedModel
from units_of import capture_rows, unit_of

from cliffstore.errors import ExtractionError
from cliffstore.extract.marks import Disagreement, find_disagreement
from cliffstore.extract.passes import Passes, plan_passes
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.extract.trial import as_tensors, disagreement
from cliffstore.model.capture import SiteCapture
from cliffstore.model.interventions import intervene
from cliffstore.model.pass_masks import positions_of_pass
from cliffstore.model.sites import arrays_of
from cliffstore.records import SITES
from cliffstore.schema import DirectionAblation, HeadFactors, HeadScaling, Interventions, Steering, vector_text

LIMIT = 1e-5
RANDOM = np.random.default_rng(11)
CHOICES = ("decision", "think")


def _vector() -> str:
    return vector_text(RANDOM.normal(size=WIDTH).astype(np.float32))


def _heads(layer: int, *heads: int, factor: float) -> list[HeadFactors]:
    return [HeadFactors(layer=layer, head=head, factors=[factor]) for head in heads]


STEPS = {
    "heads": HeadScaling(heads=_heads(1, 0, 2, factor=0.0) + _heads(2, 1, factor=2.0), positions="think"),
    "heads, norm kept": HeadScaling(heads=_heads(1, 0, 2, factor=0.0), positions="decision", keep_norm=True),
    "direction": DirectionAblation(vector=_vector(), sites=["resid_pre", "attn_out", "mlp_out"], layers=[0, 1, 2]),
    "direction at some": DirectionAblation(vector=_vector(), sites=["mlp_out"], layers=[1], positions="decision"),
    "vector": Steering(vector=_vector(), sites=["resid_post"], layers=[0], factor=-1.5, positions="think"),
}
WISHES = {name: Interventions.of([step]) for name, step in STEPS.items()}
WISHES["all together"] = Interventions.of(list(STEPS.values()))

KINDS: dict[str, Callable[[list[UnitExample]], list[Passes]]] = {
    "tree, small passes": lambda unit: plan_passes(unit, "tree", 8),
    "padded": lambda unit: plan_passes(unit, "padded", 48),
    "padded, long ones in pieces": lambda unit: plan_passes(unit, "padded", 20),
    "padded, as loaded": lambda unit: plan_passes(unit, "padded", 48, chunk=False),
}


def _tokens(n: int) -> list[int]:
    return RANDOM.integers(3, VOCABULARY, n).tolist()


STEM = _tokens(9)
SEQUENCES = [[*STEM, *_tokens(n)] for n in (5, 8, 0, 1)] + [_tokens(13), _tokens(2), _tokens(31)]


def marked(sequences: Iterable[list[int]]) -> list[UnitExample]:
    """Mark a unit: equal prefixes alike, and otherwise at random."""
    unit = unit_of(sequences)
    marks = np.random.default_rng(2).integers(0, 4, max(int(one.rows.max()) for one in unit) + 1)
    return [replace(one, marks=marks[one.rows]) for one in unit]


def with_marks(unit: list[UnitExample], wish: Interventions) -> list[UnitExample]:
    """Keep the bits of those choices that a wish knows, at its own places."""
    assert set(wish.choices) <= set(CHOICES)
    bits = [CHOICES.index(choice) for choice in wish.choices]
    return [
        replace(one, marks=sum(((one.marks >> bit & 1) << place for place, bit in enumerate(bits)), 0 * one.marks))
        for one in unit
    ]


def by_itself(model: PreTrainedModel, one: UnitExample, wish: Interventions) -> dict[str, torch.Tensor]:
    """Return the sites of one sequence alone, read by hooks under the architecture's own names."""
    masks = {choice: torch.tensor(one.marks >> bit & 1).bool()[None] for bit, choice in enumerate(wish.choices)}
    with torch.inference_mode(), intervene(model, wish), positions_of_pass(masks):
        return plain_sites(model, one.token_ids.tolist())


def worst_error(
    found: dict[str, dict[int, torch.Tensor]], unit: list[UnitExample], plain: list[dict[str, torch.Tensor]]
) -> dict[str, float]:
    """Return array name -> largest |captured - plain| / |plain| over all stored positions of all examples."""
    worst = dict.fromkeys(found, 0.0)
    for name, vectors in found.items():
        for one, expected in zip(unit, plain, strict=True):
            positions = np.flatnonzero(one.rows >= 0)
            if not len(positions):
                continue
            right = expected[name][positions].double().flatten(1)
            wrong = torch.stack([vectors[row] for row in one.rows[positions].tolist()]).double().flatten(1) - right
            # heads that are off are exact zeros
            errors = wrong.norm(dim=1) / right.norm(dim=1).clamp(min=1e-6)
            worst[name] = max(worst[name], float(errors.nan_to_num(nan=torch.inf).max()))
    return worst


def capture_of(model: PreTrainedModel, wish: Interventions, layers: Iterable[int] | None = None) -> SiteCapture:
    identity = identity_of(model)
    arrays = arrays_of(identity, SITES, list(range(identity.n_layers) if layers is None else layers))
    if layers is not None:
        arrays = [array for array in arrays if array.site != "final_norm"]
    with torch.inference_mode():
        return SiteCapture(model, arrays, identity.n_layers, identity.n_heads, interventions=wish)


@pytest.mark.parametrize("name", WISHES)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2"])
def test_any_pass_gives_what_a_sequence_gives_by_itself(architecture: str, name: str) -> None:
    wish = WISHES[name]
    unit = with_marks(marked(SEQUENCES), wish)
    reference = ARCHITECTURES[architecture]()
    plain = [by_itself(reference, one, wish) for one in unit]
    untouched = [plain_sites(reference, one.token_ids.tolist()) for one in unit]
    capture = capture_of(ARCHITECTURES[architecture](), wish)
    assert disagreement(capture, "float32") is None
    for kind, plan in KINDS.items():
        if kind == "padded, as loaded":
            capture.leave_trees()
        found = capture_rows(capture, plan(unit))
        worst = worst_error(found, unit, plain)
        assert max(worst.values()) <= LIMIT, (kind, max(worst, key=worst.__getitem__), worst)
    changed = worst_error(found, unit, untouched)
    last = capture.model.config.num_hidden_layers - 1
    assert changed[f"final_norm/{last}"] > 1e-3


def test_blocks_above_the_last_captured_layer_are_neither_changed_nor_computed() -> None:
    wish = WISHES["all together"]
    unit = with_marks(marked(SEQUENCES), wish)
    reference = ARCHITECTURES["llama"]()
    plain = [by_itself(reference, one, wish) for one in unit]
    capture = capture_of(ARCHITECTURES["llama"](), wish, layers=[0, 1])
    assert capture.n_blocks == 2
    assert max(worst_error(capture_rows(capture, plan_passes(unit, "tree", 8)), unit, plain).values()) <= LIMIT


def test_a_pass_without_marks_fails_where_they_are_needed() -> None:
    capture = capture_of(ARCHITECTURES["llama"](), WISHES["direction at some"])
    assert capture.choices == ("decision",)
    (one,) = next(iter(plan_passes(unit_of(SEQUENCES), "tree", 1_000)))
    with pytest.raises(ExtractionError, match="'decision'"):
        capture.run(replace(as_tensors(one), marks_BT=None), lambda _name, _vectors: None)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_that_share_tokens_only_are_each_changed_as_they_should_be(kind: str) -> None:
    """The stem is marked in one and not in the other, and no row of it is stored for both."""
    wish = WISHES["vector"]
    unit = unit_of([[*STEM, 7, 8], [*STEM, 9, 10, 11], [*STEM, 12]])
    on = np.arange(len(STEM)) % 3 == 0
    for index, one in enumerate(unit):
        marks = np.zeros(len(one.rows), dtype=np.int64)
        rows = one.rows.copy()
        if index == 1:
            marks[: len(STEM)] = on
            rows[: len(STEM)] = -1  # of the stem, only the others have rows
        unit[index] = replace(one, marks=marks, rows=rows)
    assert find_disagreement(unit, ("think",)) is None
    assert len(build_tree(unit)) == len(STEM) * 3 + 6  # the third does not stand beside the first
    reference = ARCHITECTURES["llama"]()
    plain = [by_itself(reference, one, wish) for one in unit]
    capture = capture_of(ARCHITECTURES["llama"](), wish)
    if kind == "padded, as loaded":
        capture.leave_trees()
    found = capture_rows(capture, KINDS[kind](unit))
    assert max(worst_error(found, unit, plain).values()) <= LIMIT


def test_examples_that_share_a_row_must_agree_on_its_whole_prefix() -> None:
    unit = [replace(one, marks=np.zeros(len(one.rows), dtype=np.int64)) for one in unit_of([[1, 2, 3, 4], [1, 2, 3]])]
    assert find_disagreement(unit, CHOICES) is None
    for position, stored, disagrees in ((0, 2, True), (2, 2, True), (1, 0, False), (3, 2, False)):
        longer = unit[1]
        marks = (np.arange(4) == position) * np.int64(2)
        changed = [
            replace(unit[0], rows=np.where(np.arange(3) <= stored, unit[0].rows, -1)),
            replace(longer, marks=marks),
        ]
        found = find_disagreement(changed, CHOICES)
        expected = Disagreement((10, 11), position, "think") if disagrees else None
        assert found == expected, (position, stored)
    assert "examples 10 and 11" in str(Disagreement((10, 11), 2, "think").error())


@given(
    st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), min_size=1, max_size=8),
    st.lists(st.integers(0, 3), min_size=48, max_size=48),
    st.sets(st.integers(0, 47)),
)
def test_disagreement_is_found_exactly_where_a_prefix_tells(
    sequences: list[list[int]], marks: list[int], dropped: set[int]
) -> None:
    """Against the rule itself: each row, by the prefixes of all examples that have it."""
    unit, places = [], iter(range(48))
    for one in unit_of(sequences):
        own = [next(places) for _ in one.rows]
        rows = np.where([place in dropped for place in own], -1, one.rows)
        if (rows >= 0).any():
            unit.append(replace(one, marks=np.array([marks[place] for place in own]), rows=rows))
    prefixes: dict[int, set[tuple[int, ...]]] = {}
    for one in unit:
        for position, row in enumerate(one.rows.tolist()):
            if row >= 0:
                prefixes.setdefault(row, set()).add(tuple(one.marks[: position + 1].tolist()))
    assert (find_disagreement(unit, CHOICES) is not None) == any(len(found) > 1 for found in prefixes.values())
