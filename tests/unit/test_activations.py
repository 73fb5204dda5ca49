"""`Store.activations`: the pairs that a condition chooses, each with its vector, as NumPy, torch or batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from vector_store import VectorStore

from cliffstore import Store
from cliffstore.errors import QueryError, StoreError
from cliffstore.run.progress import Reporter
from cliffstore.store import activations as module
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

STORE = VectorStore(n_units=4, unit_rows=512, width=8, n_layers=2, tokens=4, dtype="bfloat16")
ROWS = STORE.n_units * STORE.n_rows
WHOLE = np.concatenate([STORE.vectors_of(1, unit) for unit in range(STORE.n_units)])


class Heard(Reporter):
    """Keeps notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("activations") / "store")
    STORE.make(ObjectStore(url))
    return url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(Path(url), reporter=Heard()) as store:
        yield store


def test_every_position_of_the_store(store: Store) -> None:
    found = store.activations("resid_post", 1)
    assert len(found) == ROWS
    assert found.shape == (ROWS, 8)
    assert found.dtype == "bfloat16"
    assert found.nbytes == ROWS * 16
    assert found.table.column_names == ["example", "id", "position", "to_decision", "segment", "row", "label"]
    assert found.rows.dtype == np.int64
    np.testing.assert_array_equal(found.numpy(), WHOLE[found.rows])
    assert found.numpy().dtype == np.float32


def test_a_condition_over_both_tables(store: Store) -> None:
    found = store.activations("resid_post", 1, where="to_decision = 0 AND label = '1'", columns=("label", "source"))
    rows, labels = STORE.rows_and_labels()
    chosen = np.flatnonzero(labels)
    assert found.table["example"].to_pylist() == chosen.tolist()
    assert found.rows.tolist() == rows[chosen].tolist()
    assert found.table["id"].to_pylist() == [f"e{example}" for example in chosen]
    assert set(found.table["label"].to_pylist()) == {"1"}
    assert set(found.table["segment"].to_pylist()) == {"think_close"}
    np.testing.assert_array_equal(found.numpy(), WHOLE[rows[chosen]])


def test_torch_keeps_what_is_stored(store: Store) -> None:
    found = store.activations("resid_post", 1, where="position = 1")
    native = found.torch()
    assert native.dtype == torch.bfloat16
    assert torch.equal(native.float(), torch.from_numpy(found.numpy()))
    assert torch.equal(found.torch(torch.float32), native.float())


@pytest.mark.parametrize("order", ["example, position", "row DESC", "hash(t.row)", "e.label, position"])
def test_vectors_follow_any_order(store: Store, order: str) -> None:
    found = store.activations("resid_post", 1, where="position < 3", order=order)
    np.testing.assert_array_equal(found.numpy(), WHOLE[found.rows])
    batches = list(found.batches(rows=100))
    assert [len(batch) for batch in batches] == [100] * 15 + [36]
    assert pa.concat_tables([batch.table for batch in batches]).equals(found.table)
    np.testing.assert_array_equal(np.concatenate([batch.numpy() for batch in batches]), found.numpy())
    assert torch.equal(torch.cat([batch.torch() for batch in batches]), found.torch())
    assert np.concatenate([batch.rows for batch in batches]).tolist() == found.rows.tolist()


def test_order_and_limit(store: Store) -> None:
    found = store.activations("resid_post", 0, order="t.row DESC", limit=5)
    assert found.rows.tolist() == [ROWS - 1 - place for place in range(5)]
    assert store.activations("resid_post", 0, limit=3).table["position"].to_pylist() == [0, 1, 2]


def test_batches_are_read_one_ahead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    batch = module.Activations._batch

    def counted(self: module.Activations, start: int, rows: int) -> module.ActivationBatch:
        begun.append(start)
        return batch(self, start, rows)

    monkeypatch.setattr(module.Activations, "_batch", counted)
    batches = store.activations("resid_post", 0).batches(rows=64)
    for number in range(1, 4):
        next(batches)
        assert len(begun) <= number + 1
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("activations") for thread in threading.enumerate())


def test_texts_are_kept_once(store: Store) -> None:
    table = store.activations("resid_post", 0).table
    assert pa.types.is_dictionary(table.schema.field("id").type)
    assert pa.types.is_dictionary(table.schema.field("segment").type)
    assert table.nbytes < 45 * len(table)


def test_what_is_not_extracted_is_left_out_and_counted(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "store"))
    STORE.make(objects)
    objects.delete(layout.receipt("capture-of-main", 0))
    heard = Heard()
    with Store(objects.url, reporter=heard) as store:
        found = store.activations("resid_post", 1, where="to_decision = 0")
        np.testing.assert_array_equal(found.numpy(), WHOLE[found.rows])
        assert found.rows.min() >= 512
        assert heard.notices == ["128 of 512 positions asked for are not extracted yet and are left out"]
        assert store.activations("resid_post", 1, limit=3).rows.tolist() == [512, 513, 514]
        with pytest.raises(StoreError, match="has no extracted position where example < 3"):
            store.activations("resid_post", 1, where="example < 3")


def test_more_than_memory_is_refused_before_it_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.activations("resid_post", 1)
    monkeypatch.setattr(module, "available_memory", lambda: found.nbytes + 1)
    assert found.torch().shape == found.shape
    with pytest.raises(StoreError, match=r"read them with \.batches\(\)"):
        found.numpy()


def test_mistakes_are_told(store: Store) -> None:
    with pytest.raises(StoreError, match="no layer 9"):
        store.activations("resid_post", 9)
    with pytest.raises(QueryError, match="nowhere"):
        store.activations("resid_post", 1, where="nowhere = 1")
    with pytest.raises(QueryError, match="nothing"):
        store.activations("resid_post", 1, columns=("nothing",))
    with pytest.raises(StoreError, match="limit 0"):
        store.activations("resid_post", 1, limit=0)
    with pytest.raises(StoreError, match="batches of 0 rows"):
        next(store.activations("resid_post", 1).batches(0))
