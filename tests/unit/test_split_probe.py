"""Probes: the split never leaks a prompt, folded weights are the fitted ones, controls are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cliffstore.analyze.probe import fit_logistic, shuffled_auroc
from cliffstore.analyze.split import Split, grouped_split
from cliffstore.errors import ProbeError

N, D = 240, 16


def _prompts(n: int) -> list[str]:
    return [f"prompt {i}" for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=20, max_size=120),
    seed=st.integers(0, 1_000),
)
def test_equal_prompts_never_part(groups: list[tuple[int, bool]], seed: int) -> None:
    prompts = [f"prompt  {group}" if i % 2 else f" prompt {group}\n" for i, (group, _) in enumerate(groups)]
    y_N = np.array([int(positive) for _, positive in groups])
    try:
        split = grouped_split(y_N, prompts, seed)
    except ProbeError:
        return
    numbers = np.array([group for group, _ in groups])
    assert not set(numbers[split.train]) & set(numbers[split.validation])
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(len(groups)))
    for side in (split.train, split.validation):
        assert set(y_N[side].tolist()) == {0, 1}


def test_a_fifth_validates_with_both_classes_in_proportion() -> None:
    y_N = np.array([0, 0, 0, 1] * 50)
    split = grouped_split(y_N, _prompts(200), 0)
    assert len(split.validation) == 40
    assert y_N[split.validation].sum() == 10


def test_split_is_that_of_its_seed() -> None:
    y_N = np.arange(100) % 2
    first, again, other = (grouped_split(y_N, _prompts(100), seed) for seed in (3, 3, 4))
    assert np.array_equal(first.validation, again.validation)
    assert np.array_equal(first.train, again.train)
    assert not np.array_equal(first.validation, other.validation)


@pytest.mark.parametrize(
    ("y", "prompts"),
    [
        ([1] * 4 + [0] * 40, _prompts(44)),
        ([1] * 40 + [0] * 4, _prompts(44)),
        ([1] * 40 + [0] * 40, ["same"] * 40 + _prompts(40)),
        ([1] * 40 + [0] * 40, [f"a{' ' * (i + 1)}b" for i in range(40)] + _prompts(40)),
    ],
    ids=["few positive", "few negative", "one prompt", "one prompt but for spaces"],
)
def test_too_few_prompts_of_a_class_are_refused(y: list[int], prompts: list[str]) -> None:
    with pytest.raises(ProbeError, match="distinct prompts"):
        grouped_split(np.array(y), prompts, 0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1_000), c=st.sampled_from([0.01, 1.0, 100.0]))
def test_folded_weights_give_the_logits_of_the_pipeline(seed: int, c: float) -> None:
    generator = np.random.default_rng(seed)
    scale_D, shift_D = generator.uniform(0.1, 20, D), generator.normal(0, 10, D)
    h_ND = (generator.normal(size=(N, D)) * scale_D + shift_D).astype(np.float32)
    h_ND[:, 3] = 2.5  # a dimension that never varies must not divide by zero
    y_N = (generator.random(N) < 0.3).astype(np.int64)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=2_000))
    expected_N = model.fit(h_ND.astype(np.float64), y_N).decision_function(h_ND.astype(np.float64))
    found_N = fit_logistic(h_ND, y_N, c).scores(h_ND)
    assert found_N.dtype == np.float32
    terms_N = (np.abs(h_ND) @ np.abs(fit_logistic(h_ND, y_N, c).w_D)) + 1
    assert np.all(np.abs(found_N - expected_N) <= 1e-5 * np.maximum(np.abs(expected_N), terms_N / 10))


def test_massive_dimension_does_not_spoil_the_logits() -> None:
    """Residual streams have dimensions in the thousands that hardly vary (RESEARCH, criticism)."""
    generator = np.random.default_rng(0)
    h_ND = generator.normal(size=(N, D)).astype(np.float32)
    h_ND[:, 0] += 3_000
    y_N = (h_ND[:, 1] > 0).astype(np.int64)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2_000))
    expected_N = model.fit(h_ND.astype(np.float64), y_N).decision_function(h_ND.astype(np.float64))
    assert np.allclose(fit_logistic(h_ND, y_N, 1.0).scores(h_ND), expected_N, atol=0.01)


@pytest.mark.parametrize("planted", [0.0, 8.0], ids=["noise", "separable"])
def test_shuffled_labels_score_a_half(planted: float) -> None:
    generator = np.random.default_rng(1)
    y_N = np.arange(N) % 2
    h_ND = generator.normal(size=(N, D)).astype(np.float32)
    h_ND[:, 0] += np.float32(planted) * y_N
    found = shuffled_auroc(h_ND, y_N, grouped_split(y_N, _prompts(N), 0), 1.0, 0)
    assert abs(found - 0.5) < 0.1


def test_shuffled_control_sees_a_split_that_leaks() -> None:
    generator = np.random.default_rng(2)
    y_N = np.arange(N) % 2
    h_ND = generator.normal(size=(N, 4 * D)).astype(np.float32)
    everything = np.arange(N)
    assert shuffled_auroc(h_ND, y_N, Split(everything, everything), 1.0, 0) > 0.7


def test_planted_direction_is_found() -> None:
    generator = np.random.default_rng(3)
    y_N = np.arange(N) % 2
    direction_D = generator.choice([-1.0, 1.0], D) / np.sqrt(D)  # equal parts: standardising does not turn it
    h_ND = (generator.normal(size=(N, D)) + np.outer(np.where(y_N == 1, 6, -6), direction_D)).astype(np.float32)
    split = grouped_split(y_N, _prompts(N), 0)
    weights = fit_logistic(h_ND[split.train], y_N[split.train], 1.0)
    scores_N = weights.scores(h_ND[split.validation])
    assert roc_auc_score(y_N[split.validation], scores_N) == 1.0
    assert np.array_equal(scores_N > 0, y_N[split.validation] == 1)
    assert weights.w_D @ direction_D / np.linalg.norm(weights.w_D) > 0.95


def test_unequal_classes_do_not_shift_the_boundary() -> None:
    generator = np.random.default_rng(4)
    y_N = (np.arange(2_000) % 20 == 0).astype(np.int64)
    h_ND = generator.normal(size=(len(y_N), 2)).astype(np.float32)
    h_ND[:, 0] += np.where(y_N == 1, 1.0, -1.0)
    scores_N = fit_logistic(h_ND, y_N, 1.0).scores(h_ND)
    recalls = [float(np.mean((scores_N > 0)[y_N == label] == label)) for label in (0, 1)]
    assert min(recalls) > 0.75
    assert abs(recalls[0] - recalls[1]) < 0.1
