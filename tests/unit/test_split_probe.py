"""Probes: the split never leaks a prompt, fits are scikit-learn's, controls are what they say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cliffstore.analyze import split as splits
from cliffstore.analyze.controls import shuffled_auroc
from cliffstore.analyze.fits import C_GRID, FitRule, Fitted, fit, fit_lda, fit_logistic, platt
from cliffstore.analyze.metrics import class_weights, log_loss
from cliffstore.analyze.split import VALIDATION, deal, grouped_folds, grouped_split, prompt_digests
from cliffstore.errors import ProbeError
from cliffstore.store.probes import ProbeWeights

N, D = 240, 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The threads of small products wait for each other where the machine is busy."""
    with threadpool_limits(1):
        yield


def _groups(prompts: list[str]) -> splits.Groups:
    return prompt_digests(prompts)


def _prompts(n: int) -> list[str]:
    return [f"prompt {i}" for i in range(n)]


SPACES = (" ", "  ", "\t", "\n ", "\u00a0")


@pytest.fixture(params=["scikit-learn", "dealt"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to deal groups, whatever their number."""
    if request.param == "dealt":
        monkeypatch.setattr(splits, "MOST_FOR_SCIKIT", 0)


@pytest.mark.usefixtures("either_way")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.sampled_from(SPACES)), min_size=20, max_size=150),
    seed=st.integers(0, 1_000),
)
def test_duplicated_prompts_have_one_fold(drawn: list[tuple[int, bool, str]], seed: int) -> None:
    """Training, validation and every fold of cross-validation: a prompt is in one of them, however it is spaced."""
    groups_N = _groups([f"{space}question{space}{number}{space}?" for number, _, space in drawn])
    assert len(np.unique(groups_N)) == len({number for number, _, _ in drawn})
    y_N = np.array([int(positive) for _, positive, _ in drawn])
    try:
        dealt = deal(y_N, groups_N, seed)
    except ProbeError:
        return
    fold_N = dealt.of(groups_N)
    folds_of = {}
    for (number, _, _), fold in zip(drawn, fold_N.tolist(), strict=True):
        folds_of.setdefault(number, set()).add(fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert set(fold_N.tolist()) <= {VALIDATION, *range(dealt.n_folds)}
    split = grouped_split(y_N, groups_N, seed)
    assert np.array_equal(np.flatnonzero(fold_N == VALIDATION), split.validation)
    assert np.array_equal(deal(y_N[::-1], groups_N[::-1], seed).of(groups_N), fold_N), "the order of examples matters"


def test_many_groups_are_dealt_whole_and_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_FOR_SCIKIT", 0)
    generator = np.random.default_rng(0)
    number_N = generator.integers(0, 40_000, 60_000)
    groups_N = _groups([f"prompt {number}" for number in range(40_000)])[number_N]
    y_N = (number_N % 10 == 0).astype(np.int64)
    fold_N = grouped_folds(y_N, groups_N, 5, 0)
    for fold in range(5):
        assert abs(np.mean(fold_N == fold) - 0.2) < 0.002
        assert abs(np.mean(y_N[fold_N == fold]) - y_N.mean()) < 0.002
    assert not np.array_equal(fold_N, grouped_folds(y_N, groups_N, 5, 1))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=20, max_size=120),
    seed=st.integers(0, 1_000),
)
def test_equal_prompts_never_part(groups: list[tuple[int, bool]], seed: int) -> None:
    prompts = [f"prompt  {group}" if i % 2 else f" prompt {group}\n" for i, (group, _) in enumerate(groups)]
    y_N = np.array([int(positive) for _, positive in groups])
    try:
        split = grouped_split(y_N, _groups(prompts), seed)
    except ProbeError:
        return
    numbers = np.array([group for group, _ in groups])
    assert not set(numbers[split.train]) & set(numbers[split.validation])
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(len(groups)))
    for side in (split.train, split.validation):
        assert set(y_N[side].tolist()) == {0, 1}


def test_a_fifth_validates_with_both_classes_in_proportion() -> None:
    y_N = np.array([0, 0, 0, 1] * 50)
    split = grouped_split(y_N, _groups(_prompts(200)), 0)
    assert len(split.validation) == 40
    assert y_N[split.validation].sum() == 10


def test_split_is_that_of_its_seed() -> None:
    y_N = np.arange(100) % 2
    first, again, other = (grouped_split(y_N, _groups(_prompts(100)), seed) for seed in (3, 3, 4))
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
        grouped_split(np.array(y), _groups(prompts), 0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1_000), c=st.sampled_from([0.01, 1.0, 100.0]))
def test_folded_weights_give_the_logits_of_the_pipeline(seed: int, c: float) -> None:
    generator = np.random.default_rng(seed)
    scale_D, shift_D = generator.uniform(0.1, 20, D), generator.normal(0, 10, D)
    h_ND = (generator.normal(size=(N, D)) * scale_D + shift_D).astype(np.float32)
    h_ND[:, 3] = 2.5  # a dimension that never varies must not divide by zero
    y_N = (generator.random(N) < 0.3).astype(np.int64)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", tol=1e-9, max_iter=9_000))
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


FITTED = Fitted(ProbeWeights(np.zeros(D, dtype=np.float32), 0.0), 1.0, 0.1)


@pytest.mark.parametrize("kind", ["logistic", "mean_difference", "lda"])
@pytest.mark.parametrize("planted", [0.0, 8.0], ids=["noise", "separable"])
def test_shuffled_labels_score_a_half(planted: float, kind: str) -> None:
    generator = np.random.default_rng(1)
    y_N = np.arange(N) % 2
    h_ND = generator.normal(size=(N, D)).astype(np.float32)
    h_ND[:, 0] += np.float32(planted) * y_N
    groups_N = _groups(_prompts(N))
    folds = deal(y_N, groups_N, 0).of(groups_N)
    found = shuffled_auroc(h_ND, y_N, groups_N, folds, FitRule(kind), FITTED, 0)
    assert abs(found - 0.5) < 0.1


def test_shuffled_control_sees_a_split_that_leaks() -> None:
    """Each vector is there twice, once on either side, as if prompts that are equal had parted."""
    generator = np.random.default_rng(2)
    half = np.arange(N) % 2
    h_ND = np.tile(generator.normal(size=(N, 4 * D)).astype(np.float32), (2, 1))
    y_N, folds = np.tile(half, 2), np.repeat(np.array([0, VALIDATION], dtype=np.int8), N)
    groups_N = np.tile(np.arange(N, dtype=np.uint64), 2)
    assert shuffled_auroc(h_ND, y_N, groups_N, folds, FitRule(), FITTED, 0) > 0.7


def test_tokens_of_one_prompt_are_shuffled_together() -> None:
    """Sixteen equal samples a prompt: labels that were shuffled one by one would not tell a leak from none."""
    generator = np.random.default_rng(5)
    group_N = np.repeat(np.arange(60, dtype=np.uint64), 16)
    h_ND = np.repeat(generator.normal(size=(60, 4 * D)), 16, axis=0).astype(np.float32)
    y_N = (group_N % 2).astype(np.int64)
    folds = np.where(np.arange(len(group_N)) % 4, 0, VALIDATION).astype(np.int8)  # parts every prompt
    assert shuffled_auroc(h_ND, y_N, group_N, folds, FitRule(), FITTED, 0) > 0.9


def test_planted_direction_is_found() -> None:
    generator = np.random.default_rng(3)
    y_N = np.arange(N) % 2
    direction_D = generator.choice([-1.0, 1.0], D) / np.sqrt(D)  # equal parts: standardising does not turn it
    h_ND = (generator.normal(size=(N, D)) + np.outer(np.where(y_N == 1, 6, -6), direction_D)).astype(np.float32)
    split = grouped_split(y_N, _groups(_prompts(N)), 0)
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


def _overlapping(n: int = 600, seed: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of loud and quiet dimensions and labels that no plane separates."""
    generator = np.random.default_rng(seed)
    h_ND = (generator.normal(size=(n, D)) * generator.uniform(0.1, 30, D) + generator.normal(0, 50, D)).astype(
        np.float32
    )
    z_N = (h_ND[:, 0] - h_ND[:, 0].mean()) / h_ND[:, 0].std() + (h_ND[:, 1] - h_ND[:, 1].mean()) / h_ND[:, 1].std()
    return h_ND, (generator.random(n) < 1 / (1 + np.exp(-z_N - 1))).astype(np.int64)


@pytest.mark.parametrize("c", [1e-4, 0.1, 100.0])
@pytest.mark.parametrize("class_weight", ["balanced", "none"])
def test_fit_is_at_the_optimum_of_scikit_learn(c: float, class_weight: str) -> None:
    """Against its second-order solver, run to the end."""
    h_ND, y_N = _overlapping()
    scaler = StandardScaler().fit(h_ND.astype(np.float64))
    weight = "balanced" if class_weight == "balanced" else None
    model = LogisticRegression(C=c, class_weight=weight, solver="newton-cholesky", tol=1e-12, max_iter=1_000)
    model.fit(scaler.transform(h_ND.astype(np.float64)), y_N)
    found = fit_logistic(h_ND, y_N, c, class_weight)
    expected_D = model.coef_[0] / scaler.scale_
    assert np.linalg.norm(found.w_D - expected_D) <= 1e-4 * np.linalg.norm(expected_D)
    assert found.b == pytest.approx(model.intercept_[0] - expected_D @ scaler.mean_, rel=1e-3, abs=1e-3)


def test_c_is_the_one_with_the_lowest_held_out_loss() -> None:
    """Found again by plain scikit-learn, fold by fold."""
    h_ND, y_N = _overlapping(200)
    fold_N = (np.arange(200) % 5).astype(np.int8)
    losses = []
    for c in C_GRID:
        parts = []
        for fold in range(5):
            out = fold_N == fold
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=c, class_weight="balanced", tol=1e-8, max_iter=5_000)
            )
            scores = model.fit(h_ND[~out].astype(float), y_N[~out]).decision_function(h_ND[out].astype(float))
            parts.append(log_loss(scores, y_N[out], class_weights(y_N[out], "balanced")))
        losses.append(np.mean(parts))
    found = fit(h_ND, y_N, fold_N, FitRule())
    assert found.c == C_GRID[int(np.argmin(losses))]
    assert found.c not in (C_GRID[0], C_GRID[-1]), "the data should have a best C within the grid"
    assert found.cv_auroc is not None
    assert 0.5 < found.cv_auroc < 1
    assert np.array_equal(found.weights.w_D, fit_logistic(h_ND, y_N, found.c).w_D)


def test_labels_of_the_held_out_fold_have_no_part_in_its_scores() -> None:
    """Labels that a probe cannot learn but a peep would give away."""
    generator = np.random.default_rng(7)
    h_ND = generator.normal(size=(100, 200)).astype(np.float32)
    y_N = generator.integers(0, 2, 100)
    fold_N = (np.arange(100) % 5).astype(np.int8)
    for kind in ("logistic", "mean_difference", "lda"):
        found = fit(h_ND, y_N, fold_N, FitRule(kind))
        assert found.cv_auroc is not None
        assert abs(found.cv_auroc - 0.5) < 0.2, kind


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("class_weight", ["balanced", "none"])
def test_lda_is_that_of_scikit_learn(shrinkage: float, class_weight: str) -> None:
    """Which shrinks towards a multiple of the identity: the same where all dimensions vary by 1 within classes."""
    h_ND, y_N = _overlapping()
    x_ND = h_ND.astype(np.float64)
    share = np.bincount(y_N) / len(y_N) if class_weight == "none" else np.array([0.5, 0.5])
    within_D = np.sqrt(sum(share[k] * x_ND[y_N == k].var(axis=0) for k in (0, 1)))
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=share).fit(x_ND / within_D, y_N)
    expected_N = model.decision_function(x_ND / within_D)
    found_N = fit_lda(h_ND, y_N, shrinkage, class_weight).scores(h_ND)
    assert np.allclose(found_N, expected_N, atol=2e-3)


def test_mean_difference_points_from_mean_to_mean() -> None:
    h_ND, y_N = _overlapping()
    fold_N = (np.arange(len(y_N)) % 5).astype(np.int8)
    found = fit(h_ND, y_N, fold_N, FitRule("mean_difference")).weights
    difference_D = h_ND[y_N == 1].mean(axis=0) - h_ND[y_N == 0].mean(axis=0)
    cosine = found.w_D @ difference_D / np.linalg.norm(found.w_D) / np.linalg.norm(difference_D)
    assert cosine == pytest.approx(1, abs=1e-5)


def test_logit_of_a_mean_difference_is_calibrated_in_spite_of_a_massive_dimension() -> None:
    """Its mean is in the thousands, so the difference of means of each fold moves all its scores."""
    generator = np.random.default_rng(8)
    h_ND = generator.normal(size=(1_000, 40)).astype(np.float32)
    h_ND[:, 0] += 3_000
    y_N = (h_ND[:, 1] + generator.normal(size=1_000) > 0).astype(np.int64)
    fold_N = (np.arange(1_000) % 5).astype(np.int8)
    scores_N = fit(h_ND[:800], y_N[:800], fold_N[:800], FitRule("mean_difference")).weights.scores(h_ND[800:])
    loss = log_loss(scores_N.astype(np.float64), y_N[800:], np.ones(200))
    z_N = h_ND[800:, 1] * 1.7  # about the logit that made the labels
    best = log_loss(z_N.astype(np.float64), y_N[800:], np.ones(200))
    assert loss < best + 0.06


def test_platt_is_finite_where_scores_separate_the_classes() -> None:
    y_N = np.arange(100) % 2
    a, b = platt(np.where(y_N == 1, 3.0, -3.0), y_N, "balanced")
    assert 0 < a < 10
    assert 3 * a + b == pytest.approx(np.log(51 / 52 / (1 / 52)), rel=1e-3)


@pytest.mark.parametrize("folds", ["one", "positives in one"])
def test_a_mean_difference_of_too_few_samples_for_folds(folds: str) -> None:
    generator = np.random.default_rng(0)
    y_N = np.repeat([1, 0], 20)
    h_ND = generator.normal(size=(40, 5)).astype(np.float32)
    h_ND[y_N == 1, 0] += 4
    fold_N = np.zeros(40, dtype=np.int8)
    if folds != "one":
        fold_N[20:] = np.arange(20) % 5
    weights = fit(h_ND, y_N, fold_N, FitRule("mean_difference")).weights
    assert np.mean((weights.scores(h_ND) > 0) == y_N) > 0.9


def test_labels_that_cannot_be_shuffled_have_no_figure() -> None:
    y_N, groups_N = np.zeros(10, dtype=np.int64), np.arange(10, dtype=np.uint64)
    fold_N = np.zeros(10, dtype=np.int8)
    rule, fitted = FitRule(), Fitted(ProbeWeights(np.zeros(2, dtype=np.float32), 0.0), c=1.0)
    assert shuffled_auroc(np.zeros((10, 2), dtype=np.float32), y_N, groups_N, fold_N, rule, fitted, 0) is None
