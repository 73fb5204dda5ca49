"""Moments: merged from any partition they are those of the whole; what is fitted from them is the closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from vector_store import VectorStore

from cliffstore.analyze import streams
from cliffstore.analyze.mapping import InTurn
from cliffstore.analyze.moments import (
    Moments,
    difference_from_moments,
    lda_from_moments,
    merge,
    moments_of,
    nothing,
    stream_moments,
)
from cliffstore.analyze.streams import stored_array
from cliffstore.errors import ProbeError
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

WIDTH = 6


def vectors(n: int, seed: int) -> npt.NDArray[np.float64]:
    """Return vectors that are far from 0 in one dimension, where they hardly vary, and correlated."""
    generator = np.random.default_rng(seed)
    h_ND = generator.normal(size=(n, WIDTH)) @ generator.normal(size=(WIDTH, WIDTH))
    h_ND[:, 2] = 5_000 + 0.01 * h_ND[:, 2]
    return h_ND


def assert_equal(found: Moments, expected: Moments) -> None:
    assert found.n == expected.n
    error_D = np.abs(found.mean_D - expected.mean_D)
    assert (error_D <= 1e-13 * (np.abs(expected.mean_D) + np.sqrt(expected.square_D))).all()
    np.testing.assert_allclose(found.square_D, expected.square_D, rtol=1e-7, atol=1e-12)
    assert (found.scatter_DD is None) == (expected.scatter_DD is None)
    if found.scatter_DD is not None and expected.scatter_DD is not None:
        scale_D = np.sqrt(expected.square_D) + 1e-12
        error_DD = (found.scatter_DD - expected.scatter_DD) / np.outer(scale_D, scale_D)
        assert np.abs(error_DD).max() < 1e-7


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 1),
    seed=st.integers(0, 1_000),
    scatter=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_partition_merges_to_the_whole(sizes: list[int], seed: int, scatter: bool, order: object) -> None:
    h_ND = vectors(sum(sizes), seed)
    borders = np.cumsum(sizes)[:-1]
    parts = [
        moments_of(part, np.zeros(len(part), dtype=int), 1, scatter=scatter)[0] for part in np.split(h_ND, borders)
    ]
    order.shuffle(parts)  # type: ignore[attr-defined]
    while len(parts) > 1:  # pairs first, as a tree would
        parts = [merge(parts[first : first + 2]) for first in range(0, len(parts), 2)]
    mean_D = h_ND.mean(axis=0)
    deviation_ND = h_ND - mean_D
    expected = Moments(
        len(h_ND), mean_D, (deviation_ND**2).sum(axis=0), deviation_ND.T @ deviation_ND if scatter else None
    )
    assert_equal(parts[0], expected)


def test_nothing_changes_nothing() -> None:
    found = moments_of(vectors(5, 0), np.zeros(5, dtype=int), 1, scatter=True)[0]
    empty = nothing(WIDTH, scatter=True)
    assert found.merged(empty) is found
    assert empty.merged(found) is found


@pytest.mark.parametrize("scatter", [False, True])
def test_one_pass_over_a_store_has_the_moments_of_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scatter: bool
) -> None:
    made = VectorStore(n_units=3, unit_rows=512, width=WIDTH, tokens=2, dtype="bfloat16")
    made.make(ObjectStore(str(tmp_path)))
    monkeypatch.setattr(streams, "BLOCK_BYTES", 200 * 4 * WIDTH)
    monkeypatch.setattr(streams, "_TILE_BYTES", 30 * 8 * WIDTH)
    monkeypatch.setattr(streams, "_BLOCKS_OF_A_SHARE", 2)
    rows_N, y_N = made.rows_and_labels()
    chosen = np.random.default_rng(0).permutation(len(rows_N))[:500]
    rows_N, part_N = rows_N[chosen], y_N[chosen] + 2 * (chosen % 2)
    source = stored_array(StoreReader(str(tmp_path)), "resid_post", 0, None, rows_N)
    found = stream_moments(source, rows_N, part_N, 5, InTurn(), scatter=scatter)
    h_ND = np.concatenate([made.vectors_of(0, unit) for unit in range(3)])[rows_N]
    expected = moments_of(h_ND, part_N, 5, scatter=scatter)
    assert [one.n for one in found] == [*np.bincount(part_N, minlength=4), 0]
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def _classes(seed: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], list[Moments]]:
    h_ND = vectors(400, seed)
    y_N = (np.random.default_rng(seed).random(400) < 0.2).astype(np.int64)
    h_ND[y_N == 1] += np.array([1.0, 0, 0.02, 0, -1, 0])
    return h_ND, y_N, moments_of(h_ND, y_N, 2, scatter=True)


@pytest.mark.parametrize("class_weight", ["balanced", "none"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_lda_is_the_closed_form(class_weight: str, shrinkage: float) -> None:
    h_ND, y_N, classes = _classes()
    mean_CD = np.stack([h_ND[y_N == label].mean(axis=0) for label in (0, 1)])
    covariance_CDD = np.stack([np.cov(h_ND[y_N == label].T, bias=True) for label in (0, 1)])
    share_C = np.array([0.5, 0.5]) if class_weight == "balanced" else np.bincount(y_N) / len(y_N)
    pooled_DD = np.tensordot(share_C, covariance_CDD, 1)
    shrunk_DD = (1 - shrinkage) * pooled_DD + shrinkage * np.diag(np.diag(pooled_DD))
    w_D = np.linalg.solve(shrunk_DD, mean_CD[1] - mean_CD[0])
    b = np.log(share_C[1] / share_C[0]) - mean_CD.sum(axis=0) @ w_D / 2
    found = lda_from_moments(classes, shrinkage, class_weight)
    np.testing.assert_allclose(found.w_D, w_D, rtol=1e-5)
    assert found.b == pytest.approx(b, rel=1e-5)


def test_lda_without_shrinkage_is_that_of_scikit_learn() -> None:
    h_ND, y_N, classes = _classes(1)
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(h_ND, y_N)
    found = lda_from_moments(classes, 0.0, "none")
    np.testing.assert_allclose(found.w_D, model.coef_[0], rtol=1e-4)
    assert found.b == pytest.approx(float(model.intercept_[0]), rel=1e-4)


def test_lda_of_fewer_examples_than_dimensions_needs_shrinkage() -> None:
    h_ND, y_N = np.random.default_rng(0).normal(size=(4, WIDTH)), np.array([0, 1, 0, 1])
    classes = moments_of(h_ND, y_N, 2, scatter=True)
    with pytest.raises(ProbeError, match="the covariance of 4 examples is singular; choose a larger one"):
        lda_from_moments(classes, 0.0, "balanced")
    assert np.isfinite(lda_from_moments(classes, 0.1, "balanced").w_D).all()


def test_difference_of_means() -> None:
    h_ND, y_N, classes = _classes()
    found = difference_from_moments(classes)
    zero_D, one_D = (h_ND[y_N == label].mean(axis=0) for label in (0, 1))
    np.testing.assert_allclose(found.w_D, one_D - zero_D, rtol=1e-5)
    assert found.b == pytest.approx(-(one_D @ one_D - zero_D @ zero_D) / 2, rel=1e-5)


def test_two_classes_are_needed() -> None:
    classes = moments_of(vectors(5, 0), np.zeros(5, dtype=int), 2, scatter=True)
    with pytest.raises(ProbeError, match="two classes"):
        lda_from_moments(classes, 0.1, "balanced")
    with pytest.raises(ProbeError, match="two classes"):
        difference_from_moments(classes)


def test_scale_of_a_constant_dimension_is_one() -> None:
    h_ND = np.full((50, 2), 3_000.7)
    h_ND[:, 1] += np.arange(50) * 1e-3
    found = moments_of(h_ND, np.zeros(50, dtype=int), 1, scatter=False)[0]
    assert found.scale_D[0] == 1
    assert found.scale_D[1] == pytest.approx(h_ND[:, 1].std(), rel=1e-9)
