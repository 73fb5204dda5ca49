"""The vector functions of SQL, on columns that mix layers, models and probes, and on rows that are not there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from vector_store import VectorStore

from cliffstore.errors import StoreError
from cliffstore.run.store import Store
from cliffstore.store import layout, vector_columns
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

MODELS = {
    alias: VectorStore(2, 512, 6, 2, tokens=4, dtype="bfloat16", alias=alias, seed=seed)
    for seed, alias in enumerate(("main", "tuned"))
}
N_ROWS = 1_024


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of two models; the second unit of `tuned` is not extracted."""
    objects = ObjectStore(str(tmp_path_factory.mktemp("columns") / "store"))
    MODELS["main"].make(objects)
    MODELS["tuned"].add_capture(objects)
    objects.delete(layout.receipt("capture-of-tuned", 1))
    return objects.url


@pytest.fixture
def reader(url: str) -> StoreReader:
    return StoreReader(url)


@pytest.fixture(scope="module")
def vectors() -> dict[tuple[str, int], np.ndarray]:
    return {
        (alias, layer): np.concatenate([store.vectors_of(layer, unit) for unit in range(2)])
        for alias, store in MODELS.items()
        for layer in range(2)
    }


@pytest.fixture(scope="module")
def calls() -> list[tuple[int | None, int | None, str | None]]:
    """Rows, layers and models, with nulls and rows that are not extracted or not there, for several calls of DuckDB."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(5_000):
        row, layer = int(generator.integers(-5, N_ROWS + 5)), int(generator.integers(2))
        alias = ("main", "tuned")[generator.integers(2)]
        missing = generator.random(3) < 0.05
        found.append(tuple(None if no else one for no, one in zip(missing, (row, layer, alias), strict=True)))
    return found


def answer_to(
    call: tuple[int | None, int | None, str | None], vectors: dict[tuple[str, int], np.ndarray]
) -> np.ndarray | None:
    row, layer, alias = call
    if row is None or layer is None or alias is None or not 0 <= row < (N_ROWS if alias == "main" else 512):
        return None
    return vectors[alias, layer][row]


def test_mixed_columns(url: str, calls: list, vectors: dict[tuple[str, int], np.ndarray]) -> None:
    listed = ", ".join(
        f"({number}, {', '.join('NULL' if one is None else repr(one) for one in call)})"
        for number, call in enumerate(calls)
    )
    with Store(url) as store:
        found = store.sql(f"SELECT resid_post(r, l, m) FROM (VALUES {listed}) v(i, r, l, m) ORDER BY i").fetchall()
    expected = [answer_to(call, vectors) for call in calls]
    assert sum(one is None for one in expected) > 100
    for (vector,), wanted in zip(found, expected, strict=True):
        assert (vector is None) is (wanted is None)
        assert wanted is None or np.array_equal(np.array(vector, dtype=np.float32), wanted)


@pytest.mark.parametrize("threads", [1, 4])
def test_whole_columns(threads: int, url: str, vectors: dict[tuple[str, int], np.ndarray]) -> None:
    """All rows, in an order that has nothing to do with chunks, on threads of DuckDB."""
    with Store(url) as store:
        table = store.sql("SELECT row, resid_post(row, 1, 'main') AS h FROM tokens ORDER BY hash(row)").fetchnumpy()
    assert len(table["row"]) == N_ROWS
    np.testing.assert_array_equal(np.stack(table["h"]), vectors["main", 1][table["row"]])


def test_empty_columns(reader: StoreReader) -> None:
    empty = [pa.array([], type=kind) for kind in (pa.int64(), pa.int32(), pa.string())]
    found = vector_columns.gather(reader, "resid_post", 6)(*empty)
    assert found.type == pa.list_(pa.float32(), 6)
    assert len(found) == 0


def test_a_layer_that_is_not_there_is_an_error(reader: StoreReader) -> None:
    gather = vector_columns.gather(reader, "resid_post", 6)
    with pytest.raises(StoreError, match="no layer 7"):
        gather(pa.array([1, 2]), pa.array([1, 7], pa.int32()), pa.array(["main", "main"]))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[SimpleNamespace, ProbeWeights]]:
    """Two probes, on different layers and models, as if they were in the store."""
    generator = np.random.default_rng(5)
    known = {
        name: (
            SimpleNamespace(site="resid_post", layer=layer, alias=alias),
            ProbeWeights(generator.normal(size=6).astype(np.float32), 0.5 + layer),
        )
        for name, layer, alias in (("a", 0, "main"), ("b", 1, "tuned"))
    }
    monkeypatch.setattr(vector_columns, "read_probe", lambda objects, name: known[name])
    return known


@pytest.mark.parametrize("names", [["a"] * 6, ["a", "b", None, "b", "a", "b"], [None] * 6])
def test_scores_and_weights_of_several_probes(
    names: list[str | None],
    reader: StoreReader,
    probes: dict[str, tuple[SimpleNamespace, ProbeWeights]],
    vectors: dict[tuple[str, int], np.ndarray],
) -> None:
    rows = [3, 700, 5, 511, None, 512]
    scores = vector_columns.score(reader)(pa.array(names, pa.string()), pa.array(rows, pa.int64()))
    weights = vector_columns.probe_weight(reader, 6)(pa.array(names, pa.string()))
    assert scores.type == pa.float32()
    for name, row, score, weight in zip(names, rows, scores.to_pylist(), weights.to_pylist(), strict=True):
        if name is None:
            assert weight is None
            assert score is None
            continue
        document, own = probes[name]
        assert weight == own.w_D.tolist()
        h_D = None if row is None else answer_to((row, document.layer, document.alias), vectors)
        assert (score is None) is (h_D is None)
        assert h_D is None or score == pytest.approx(float(own.scores(h_D[None])[0]), rel=1e-6)
