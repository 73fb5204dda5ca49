"""Keys of a store, and the receipts that commit its units."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.schema import Receipt, UnitError
from cliffstore.store import layout, receipts
from cliffstore.store.objects import ObjectStore

CAPTURE = "capture-0123"


@pytest.fixture(params=["local", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def _receipt(unit: int, worker: str = "host:1", capture: str = CAPTURE) -> Receipt:
    return Receipt(
        capture=capture,
        plan="plan-1",
        unit=unit,
        row_start=unit * 1_024,
        n_rows=10,
        n_examples=2,
        n_tokens=12,
        digests={"resid_post/0": "00"},
        bytes=100,
        attempt=1,
        worker=worker,
        seconds=0.5,
        cliffstore_version="0",
    )


def _error(unit: int, attempt: int = 1, error: str = "out of memory") -> UnitError:
    return UnitError(capture=CAPTURE, unit=unit, attempt=attempt, worker="host:1", error=error)


@given(st.integers(0, 10**9))
def test_unit_is_read_back_from_every_key_of_a_unit(unit: int) -> None:
    for key in (
        layout.receipt(CAPTURE, unit),
        layout.scores_table("refusal", unit),
        layout.scores_receipt("refusal", unit),
    ):
        assert layout.unit_of(key) == unit
        assert layout.unit_of_error(key) is None
    assert layout.unit_of_error(layout.unit_error(CAPTURE, unit)) == unit
    assert layout.unit_of(layout.unit_error(CAPTURE, unit)) is None


@pytest.mark.parametrize(
    "key",
    [
        layout.MANIFEST,
        layout.plan_document("plan-1"),
        layout.units_table("plan-1"),
        layout.probe_document("unit-1"),
        layout.cliffs_table("refusal"),
        "receipts/c/unit-.json",
        "receipts/c/unit-1.json.bak",
        "receipts/c/my-unit-1.json",
        "receipts/c/unit-1x.json",
    ],
)
def test_other_keys_have_no_unit(key: str) -> None:
    assert layout.unit_of(key) is None
    assert layout.unit_of_error(key) is None


@given(st.lists(st.integers(0, 999_999), unique=True, min_size=2))
def test_keys_sort_as_units_do(units: list[int]) -> None:
    keys = sorted(layout.receipt(CAPTURE, unit) for unit in units)
    assert [layout.unit_of(key) for key in keys] == sorted(units)


def test_stem_names_the_object() -> None:
    assert layout.stem(layout.selection_table("top.v1-a")) == "top.v1-a"
    assert layout.stem(layout.capture_document("main", CAPTURE)) == CAPTURE


def test_committing_twice_leaves_one_receipt(objects: ObjectStore) -> None:
    assert receipts.commit(objects, _receipt(3, "first")) is True
    assert receipts.commit(objects, _receipt(3, "second")) is False
    (only,) = receipts.read_all(objects, CAPTURE)
    assert only == _receipt(3, "first")
    assert receipts.read_one(objects, CAPTURE, 3) == only
    assert receipts.committed(objects, CAPTURE) == {3}


def test_one_of_many_workers_commits(tmp_path: Path) -> None:
    n_workers = 8
    barrier = threading.Barrier(n_workers)

    def race(number: int) -> bool:
        barrier.wait()
        return receipts.commit(ObjectStore(str(tmp_path)), _receipt(0, f"worker {number}"))

    with ThreadPoolExecutor(n_workers) as pool:
        won = list(pool.map(race, range(n_workers)))
    assert won.count(True) == 1
    assert receipts.read_one(ObjectStore(str(tmp_path)), CAPTURE, 0).worker == f"worker {won.index(True)}"


def test_receipts_come_in_the_order_of_units_and_of_one_capture_only(objects: ObjectStore) -> None:
    for unit in (1_000_001, 7, 0, 999_999):
        receipts.commit(objects, _receipt(unit))
    receipts.commit(objects, _receipt(5, capture=f"{CAPTURE}4"))
    assert [receipt.unit for receipt in receipts.read_all(objects, CAPTURE)] == [0, 7, 999_999, 1_000_001]
    assert receipts.committed(objects, CAPTURE) == {0, 7, 999_999, 1_000_001}
    assert receipts.committed(objects, f"{CAPTURE}4") == {5}


def test_nothing_is_extracted_at_the_beginning(objects: ObjectStore) -> None:
    assert receipts.committed(objects, CAPTURE) == set()
    assert receipts.read_all(objects, CAPTURE) == []
    assert receipts.read_errors(objects, CAPTURE) == []
    with pytest.raises(FileNotFoundError):
        receipts.read_one(objects, CAPTURE, 0)


def test_error_is_no_commit_and_the_last_attempt_is_kept(objects: ObjectStore) -> None:
    receipts.record_error(objects, _error(2))
    receipts.record_error(objects, _error(2, attempt=2, error="NaN"))
    assert receipts.committed(objects, CAPTURE) == set()
    assert receipts.read_all(objects, CAPTURE) == []
    assert receipts.read_errors(objects, CAPTURE) == [_error(2, attempt=2, error="NaN")]


def test_commit_removes_the_error(objects: ObjectStore) -> None:
    receipts.record_error(objects, _error(2))
    receipts.record_error(objects, _error(4))
    receipts.commit(objects, _receipt(2))
    assert receipts.read_errors(objects, CAPTURE) == [_error(4)]
    assert objects.list(layout.receipts_of(CAPTURE)) == [layout.receipt(CAPTURE, 2), layout.unit_error(CAPTURE, 4)]


def test_late_error_of_a_slower_worker_does_not_show(objects: ObjectStore) -> None:
    receipts.commit(objects, _receipt(2))
    receipts.record_error(objects, _error(2))
    assert receipts.read_errors(objects, CAPTURE) == []
    assert receipts.committed(objects, CAPTURE) == {2}


def test_temporary_receipt_of_a_killed_worker_commits_nothing(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    store.put(f"{layout.receipts_of(CAPTURE)}/.tmp-{uuid.uuid4().hex}", _receipt(0).to_bytes()[:50])
    assert receipts.committed(store, CAPTURE) == set()
    assert receipts.read_all(store, CAPTURE) == []


def test_equal_receipts_are_equal_bytes() -> None:
    digests = {"resid_post/1": "01", "resid_post/0": "00"}
    swapped = dict(reversed(digests.items()))
    one, other = (_receipt(0).model_copy(update={"digests": value}) for value in (digests, swapped))
    assert one.to_bytes() == other.to_bytes()
    assert Receipt.from_bytes(one.to_bytes(), "x") == one
