"""Fits over a store without a design matrix: scikit-learn's optimum, whatever the blocks, workers and order of rows."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from vector_store import VectorStore

from cliffstore.analyze import streams
from cliffstore.analyze.fits import FitRule, fit
from cliffstore.analyze.mapping import InTurn
from cliffstore.analyze.objective import Curvature, Objective, Part, PointTask, Standard
from cliffstore.analyze.out_of_core import fit_out_of_core
from cliffstore.analyze.second_order import fit_logistic
from cliffstore.analyze.streams import StoredArray, blocks, cut, scores, stored_array
from cliffstore.errors import DamagedStoreError, ProbeError, StoreError
from cliffstore.run.tasks import open_tasks
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

WIDTH = 32
Vectors = npt.NDArray[np.float32]


class Case:
    """A store, and samples of it in random order: three quarters of as many as it has rows, some of them twice."""

    def __init__(
        self, folder: Path, dtype: str = "float32", n_units: int = 6, kind: type[VectorStore] = VectorStore
    ) -> None:
        self.made = kind(n_units=n_units, unit_rows=1_024, width=WIDTH, n_layers=2, tokens=1, dtype=dtype)
        self.made.make(ObjectStore(str(folder)))
        self.reader = StoreReader(str(folder))
        rows_N, y_N = self.made.rows_and_labels()
        chosen = np.random.default_rng(5).choice(len(rows_N), size=3 * len(rows_N) // 4)
        self.rows_N, self.y_N = rows_N[chosen], y_N[chosen]
        self.source = self.of(self.rows_N)

    def of(self, rows_N: npt.NDArray[np.int64]) -> StoredArray:
        return stored_array(self.reader, "resid_post", 1, None, rows_N)

    def vectors(self, rows_N: npt.NDArray[np.int64]) -> Vectors:
        whole = np.concatenate([self.made.vectors_of(1, unit) for unit in range(self.made.n_units)])
        return whole[rows_N]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK_BYTES", 300 * 4 * WIDTH)
    monkeypatch.setattr(streams, "_TILE_BYTES", 70 * 8 * WIDTH)
    monkeypatch.setattr(streams, "_BLOCKS_OF_A_SHARE", 3)


def reference(h_ND: Vectors, y_N: npt.NDArray[np.int64], c: float, class_weight: str) -> tuple[npt.NDArray, float]:
    """Return scikit-learn's w and b on vectors as they are stored."""
    scaler = StandardScaler().fit(h_ND.astype(np.float64))
    model = LogisticRegression(
        C=c,
        class_weight="balanced" if class_weight == "balanced" else None,
        solver="newton-cholesky",
        tol=1e-12,
        max_iter=1_000,
    )
    model.fit(scaler.transform(h_ND.astype(np.float64)), y_N)
    w_D = model.coef_[0] / scaler.scale_
    return w_D, float(model.intercept_[0] - w_D @ scaler.mean_)


def assert_same(
    weights: ProbeWeights, h_ND: Vectors, y_N: npt.NDArray[np.int64], c: float, class_weight: str = "balanced"
) -> None:
    w_D, b = reference(h_ND, y_N, c, class_weight)
    h_ND = h_ND.astype(np.float64)
    scale_D = h_ND.std(axis=0)
    error_D = (weights.w_D - w_D) * np.where(scale_D > 0, scale_D, 1)
    assert np.linalg.norm(error_D) <= 1e-5 * np.linalg.norm(w_D * scale_D)
    assert np.linalg.norm(weights.w_D - w_D) <= 1e-4 * np.linalg.norm(w_D)
    assert abs(weights.b - b) <= 1e-4 * max(abs(b), 1)
    ours, theirs = (roc_auc_score(y_N, h_ND @ w + at) for w, at in ((weights.w_D, weights.b), (w_D, b)))
    assert abs(ours - theirs) <= 1e-6


@pytest.mark.parametrize(("c", "class_weight"), [(1.0, "balanced"), (1.0, "none"), (1e-4, "balanced"), (1e3, "none")])
def test_optimum_is_that_of_scikit_learn(case: Case, c: float, class_weight: str) -> None:
    weights, report = fit_logistic(case.source, case.rows_N, case.y_N, c, class_weight, InTurn())
    assert_same(weights, case.vectors(case.rows_N), case.y_N, c, class_weight)
    assert report.n_rows == len(case.rows_N)
    assert report.error <= 1e-6
    assert report.gradient_norm < 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_any_stored_dtype(tmp_path: Path, dtype: str) -> None:
    case = Case(tmp_path, dtype, n_units=2)
    weights, _ = fit_logistic(case.source, case.rows_N, case.y_N, 1.0, "balanced", InTurn())
    assert_same(weights, case.vectors(case.rows_N), case.y_N, 1.0)


def test_unbalanced_classes(case: Case) -> None:
    keep = (case.y_N == 0) | (np.random.default_rng(0).random(len(case.y_N)) < 0.03)
    rows_N, y_N = case.rows_N[keep], case.y_N[keep]
    assert y_N.mean() < 0.05
    for class_weight in ("balanced", "none"):
        weights, _ = fit_logistic(case.source, rows_N, y_N, 0.5, class_weight, InTurn())
        assert_same(weights, case.vectors(rows_N), y_N, 0.5, class_weight)


def test_separable_classes_and_a_large_c(case: Case) -> None:
    h_ND = case.vectors(case.rows_N)
    y_N = (h_ND @ np.random.default_rng(3).normal(size=WIDTH) > 0).astype(np.int64)
    weights, report = fit_logistic(case.source, case.rows_N, y_N, 1e4, "balanced", InTurn())
    assert_same(weights, h_ND, y_N, 1e4)
    assert report.steps < 40


def test_workers_and_blocks_do_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = []
    for workers in (1, 2):
        with open_tasks("local", workers) as tasks:
            weights, _ = fit_logistic(case.source, case.rows_N, case.y_N, 1.0, "balanced", tasks)
            found.append((weights, scores(case.source, case.rows_N, weights, tasks)))
    monkeypatch.setattr(streams, "BLOCK_BYTES", 16 << 20)
    weights, _ = fit_logistic(case.source, case.rows_N, case.y_N, 1.0, "balanced", InTurn())
    found.append((weights, scores(case.source, case.rows_N, weights, InTurn())))
    for weights, scores_N in found:
        np.testing.assert_allclose(weights.w_D, found[0][0].w_D, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(scores_N, found[0][1], rtol=1e-4, atol=1e-4)


def test_products_end_where_the_hessian_does(case: Case) -> None:
    passes: list[str] = []
    hessian_passes: list[str] = []
    by_products, report = fit_logistic(
        case.source, case.rows_N, case.y_N, 1.0, "balanced", InTurn(), most_width=WIDTH - 1, on_pass=passes.append
    )
    assert "curvature product" in passes
    by_hessian, _ = fit_logistic(
        case.source, case.rows_N, case.y_N, 1.0, "balanced", InTurn(), most_width=WIDTH, on_pass=hessian_passes.append
    )
    assert "curvature product" not in hessian_passes
    np.testing.assert_allclose(by_products.w_D, by_hessian.w_D, rtol=1e-4, atol=1e-6)
    assert_same(by_products, case.vectors(case.rows_N), case.y_N, 1.0)
    assert report.passes > 1


class Loud(VectorStore):
    """A massive dimension that hardly varies, a constant one, and one that is huge and varies as much."""

    def stored_of(self, layer: int, unit: int) -> npt.NDArray[np.generic]:
        h_RD = super().stored_of(layer, unit).copy()
        h_RD[:, 1] = 6_000 + h_RD[:, 1] / 8
        h_RD[:, 2] = 77.7
        h_RD[:, 3] *= 5_000
        return h_RD


class NotFinite(VectorStore):
    """One vector holds NaN."""

    def stored_of(self, layer: int, unit: int) -> npt.NDArray[np.generic]:
        h_RD = super().stored_of(layer, unit).copy()
        if unit == 1:
            h_RD[7, 3] = np.nan
        return h_RD


def test_massive_and_constant_dimensions(tmp_path: Path) -> None:
    case = Case(tmp_path, n_units=3, kind=Loud)
    h_ND = case.vectors(case.rows_N)
    y_N = (np.random.default_rng(1).random(len(h_ND)) < 1 / (1 + np.exp(-4 * (h_ND[:, 1] - 6_000)))).astype(np.int64)
    weights, _ = fit_logistic(case.source, case.rows_N, y_N, 1.0, "balanced", InTurn())
    assert_same(weights, h_ND, y_N, 1.0)
    assert weights.w_D[2] == 0


def test_nan_is_named(tmp_path: Path) -> None:
    case = Case(tmp_path, n_units=2, kind=NotFinite)
    with pytest.raises(ProbeError, match="resid_post/1 holds NaN or Inf among the 2048 rows"):
        fit_logistic(case.source, np.arange(2_048), np.arange(2_048) % 2, 1.0, "balanced", InTurn())


def test_one_class_is_refused(case: Case) -> None:
    with pytest.raises(ProbeError, match="two classes"):
        fit_logistic(case.source, case.rows_N, np.ones_like(case.y_N), 1.0, "balanced", InTurn())


def test_what_is_not_extracted_is_told_before_anything_is_read(tmp_path: Path) -> None:
    case = Case(tmp_path, n_units=3)
    objects = ObjectStore(str(tmp_path))
    objects.delete(layout.receipt("capture-of-main", 1))
    reader = StoreReader(str(tmp_path))
    with pytest.raises(StoreError, match=r"row \d+ of resid_post/1 is not extracted \(1024 of 3072 rows are missing\)"):
        stored_array(reader, "resid_post", 1, None, np.arange(3 * 1_024))
    held = case.rows_N[case.rows_N // 1_024 != 1]
    y_N = case.y_N[case.rows_N // 1_024 != 1]
    weights, _ = fit_logistic(stored_array(reader, "resid_post", 1, None, held), held, y_N, 1.0, "balanced", InTurn())
    assert_same(weights, case.vectors(held), y_N, 1.0)


def test_a_lost_shard_is_damage(tmp_path: Path) -> None:
    case = Case(tmp_path, n_units=2)
    ObjectStore(str(tmp_path)).delete(layout.shard(case.source.spec.key, 1, 2))
    with pytest.raises(DamagedStoreError, match="is missing or empty"):
        fit_logistic(case.source, case.rows_N, case.y_N, 1.0, "balanced", InTurn())


def test_a_second_fit_sees_what_came_meanwhile(case: Case) -> None:
    assert case.of(case.rows_N).opened != case.source.opened
    again = pickle.loads(pickle.dumps(case.source))  # noqa: S301  (it crosses processes)
    assert again == case.source


@pytest.mark.parametrize("every", [1, 2, 7])
def test_blocks_are_the_rows_asked_for(case: Case, every: int) -> None:
    rows_N = np.sort(np.concatenate([np.arange(5, 5_000, every), [5, 5, 1_500, 4_999]]))
    found = np.zeros((len(rows_N), WIDTH), dtype=np.float32)
    for piece, h_ND in blocks(case.source, rows_N):
        assert len(h_ND) <= case.source.block_rows
        assert len(set((rows_N[piece] // 1_024).tolist())) == 1
        found[piece] = h_ND
    np.testing.assert_array_equal(found, case.vectors(rows_N))


def test_scores_come_in_the_order_of_the_rows(case: Case) -> None:
    weights = ProbeWeights(np.random.default_rng(0).normal(size=WIDTH).astype(np.float32), 0.25)
    found = scores(case.source, case.rows_N, weights, InTurn())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weights.scores(case.vectors(case.rows_N)), rtol=1e-5, atol=1e-4)
    assert len(scores(case.source, case.rows_N[:0], weights, InTurn())) == 0


@settings(max_examples=200)
@given(
    rows=st.lists(st.integers(0, 300), min_size=0, max_size=120),
    most=st.integers(1, 40),
    chunk_rows=st.sampled_from([4, 8, 16]),
    unit_chunks=st.sampled_from([None, 1, 4]),
)
def test_cuts_cover_rows_once(rows: list[int], most: int, chunk_rows: int, unit_chunks: int | None) -> None:
    rows_N = np.sort(np.array(rows, dtype=np.int64))
    unit_rows = unit_chunks and unit_chunks * chunk_rows
    pieces = cut(rows_N, most, chunk_rows, unit_rows)
    assert [number for piece in pieces for number in range(piece.start, piece.stop)] == list(range(len(rows)))
    for piece, following in zip(pieces, [*pieces[1:], None], strict=False):
        part = rows_N[piece]
        assert 0 < len(part) <= most
        if unit_rows:
            assert part[0] // unit_rows == part[-1] // unit_rows
        if following is not None and part[-1] // chunk_rows == rows_N[following.start] // chunk_rows:
            assert part[0] // chunk_rows == part[-1] // chunk_rows, "a chunk is cut only where it fills a piece alone"


@pytest.mark.parametrize("class_weight", ["balanced", "none"])
def test_derivatives_are_those_of_the_loss(case: Case, class_weight: str) -> None:
    rows_N, order = np.sort(case.rows_N), np.argsort(case.rows_N, kind="stable")
    y_N, h_ND = case.y_N[order], case.vectors(np.sort(case.rows_N)).astype(np.float64)
    weights_C = len(y_N) / (2 * np.bincount(y_N)) if class_weight == "balanced" else np.ones(2)
    standard = Standard(h_ND.mean(axis=0), h_ND.std(axis=0), (weights_C[0], weights_C[1]))
    objective = Objective(Part(case.source, rows_N, y_N), standard, 0.7, InTurn())
    point_E, direction_E = np.random.default_rng(2).normal(size=(2, WIDTH + 1)) * 0.3

    def at(step: float) -> tuple[float, npt.NDArray[np.float64]]:
        found = objective.at(point_E + step * direction_E, Curvature.NONE)
        return found.loss, found.gradient_E

    z_ND = np.column_stack([(h_ND - standard.mean_D) / standard.scale_D, np.ones(len(h_ND))])
    m_N = (2 * y_N - 1) * (z_ND @ point_E)
    loss = 0.5 * point_E[:-1] @ point_E[:-1] + 0.7 * (weights_C[y_N] @ np.log1p(np.exp(-m_N)))
    here = objective.at(point_E, Curvature.FLOAT64)
    assert here.loss == pytest.approx(loss, rel=1e-12)
    slope = (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5
    assert here.gradient_E @ direction_E == pytest.approx(slope, rel=1e-6)
    bend_E = (at(1e-5)[1] - at(-1e-5)[1]) / 2e-5
    product_E = objective.product(point_E, direction_E)
    np.testing.assert_allclose(product_E, bend_E, rtol=1e-5, atol=1e-4 * np.abs(bend_E).max())
    assert here.curvature is not None
    whole_EE = np.triu(here.curvature) + np.triu(here.curvature, 1).T
    np.testing.assert_allclose(whole_EE @ direction_E, product_E, rtol=1e-9, atol=1e-7)
    coarse, diagonal = (objective.at(point_E, kind).curvature for kind in (Curvature.FLOAT32, Curvature.DIAGONAL))
    assert coarse is not None
    assert diagonal is not None
    np.testing.assert_allclose(np.triu(coarse), np.triu(whole_EE), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(diagonal, np.diag(whole_EE), rtol=1e-9)


def test_what_travels_is_rows_labels_and_a_point(case: Case) -> None:
    part = Part(case.source, case.rows_N, case.y_N.astype(np.int8))
    standard = Standard(np.zeros(WIDTH), np.ones(WIDTH), (1.0, 1.0))
    task = PointTask(part, standard, np.zeros(WIDTH + 1), Curvature.FLOAT32)
    assert len(pickle.dumps(task)) < 9 * len(case.rows_N) + 3_000


@pytest.mark.parametrize("kind", ["logistic", "mean_difference", "lda"])
@pytest.mark.parametrize("class_weight", ["balanced", "none"])
def test_every_kind_is_what_it_is_in_memory(case: Case, kind: str, class_weight: str) -> None:
    rule = FitRule(kind, c=0.3, shrinkage=0.05, class_weight=class_weight)
    fold_N = (case.rows_N % 5).astype(np.int8)
    h_ND = case.vectors(case.rows_N)
    in_memory = fit(h_ND, case.y_N, fold_N, rule).weights
    found = fit_out_of_core(case.source, case.rows_N, case.y_N, fold_N, rule, InTurn(), lambda _text: None)
    scale_D = h_ND.std(axis=0)
    np.testing.assert_allclose(found.w_D * scale_D, in_memory.w_D * scale_D, rtol=1e-4, atol=1e-5)
    assert found.b == pytest.approx(in_memory.b, rel=1e-4, abs=1e-4)


def test_a_fold_without_one_class_is_no_part_of_the_scale(case: Case) -> None:
    """All of a class in one fold: without it there is no direction, in memory as out of core."""
    rule = FitRule("mean_difference")
    fold_N = np.where(case.y_N == 1, 0, 1 + case.rows_N % 2).astype(np.int8)
    in_memory = fit(case.vectors(case.rows_N), case.y_N, fold_N, rule).weights
    found = fit_out_of_core(case.source, case.rows_N, case.y_N, fold_N, rule, InTurn(), lambda _text: None)
    np.testing.assert_allclose(found.w_D, in_memory.w_D, rtol=1e-3, atol=1e-6)


def test_vectors_come_in_the_order_of_the_rows(case: Case) -> None:
    np.testing.assert_array_equal(streams.vectors(case.source, case.rows_N), case.vectors(case.rows_N))
