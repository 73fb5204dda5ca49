"""Everything that crosses a process pickles, and comes out as it went in."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import TypeVar

import pytest

from cliffstore import errors
from cliffstore.errors import CliffstoreError
from cliffstore.extract.unit import WorkerSpec
from cliffstore.model.identity import ModelSource
from cliffstore.run.executor import UnitOutcome
from cliffstore.schema import ArrayIdentity, CaptureDocument, ModelIdentity, Receipt, UnitError
from cliffstore.store.objects import ObjectStore

T = TypeVar("T")
ERRORS = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, CliffstoreError)]

IDENTITY = ModelIdentity(
    name="org/model",
    revision="abc",
    config_digest="0",
    weights_digest=None,
    model_type="llama",
    n_layers=2,
    d_model=8,
)
CAPTURE = CaptureDocument(
    capture="capture-1",
    alias="main",
    model=IDENTITY,
    arrays=[ArrayIdentity(site="resid_post", layer=0, shape=[8])],
    dtype="bfloat16",
    batch_tokens=512,
    cliffstore_version="0",
)
RECEIPT = Receipt(
    capture="capture-1",
    plan="plan-1",
    unit=3,
    row_start=3_072,
    n_rows=10,
    n_examples=2,
    n_tokens=12,
    digests={"resid_post/0": "00"},
    bytes=160,
    attempt=1,
    worker="host:1",
    seconds=0.5,
    cliffstore_version="0",
)
SPEC = WorkerSpec(
    store="s3://bucket/store",
    plan="plan-1",
    capture=CAPTURE,
    source=ModelSource("/models/m", None, IDENTITY, 2_048, "bfloat16"),
    device="auto",
    threads=2,
    allow_nonfinite=True,
    storage_options={"endpoint_url": "http://localhost:9000", "anon": False},
)


def _round_trip(value: T, protocol: int) -> T:
    loaded: T = pickle.loads(pickle.dumps(value, protocol))  # noqa: S301  (the point of the test)
    return loaded


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    "value",
    [
        SPEC,
        CAPTURE,
        RECEIPT,
        UnitOutcome(3, RECEIPT, None),
        UnitOutcome(3, None, "out of memory"),
        UnitError(capture="capture-1", unit=3, attempt=2, worker="host:1", error="NaN"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_comes_out_equal(value: object, protocol: int) -> None:
    found = _round_trip(value, protocol)
    assert found == value
    assert type(found) is type(value)


def test_worker_spec_is_small_enough_to_send_anywhere() -> None:
    assert len(pickle.dumps(SPEC)) < 10_000


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_error_keeps_its_message_and_meaning(kind: type[CliffstoreError]) -> None:
    found = _round_trip(kind("unit 3: out of memory"), pickle.HIGHEST_PROTOCOL)
    assert type(found) is kind
    assert str(found) == "unit 3: out of memory"
    assert (found.code, found.exit_code) == (kind.code, kind.exit_code)


def test_error_codes_are_distinct() -> None:
    assert len({kind.code for kind in ERRORS}) == len(ERRORS)


def test_object_store_reads_and_writes_in_another_process(tmp_path: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    store = ObjectStore(str(tmp_path), {"auto_mkdir": True})
    store.put("a.json", b"here")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(store.get, "a.json").result() == b"here"
        assert pool.submit(store.create, "a.json", b"there").result() is False
        assert pool.submit(store.create, "b.json", b"there").result() is True
    assert store.get("b.json") == b"there"


def test_object_store_keeps_its_options() -> None:
    store = ObjectStore("memory://pickled", {"skip_instance_cache": True})
    copy = _round_trip(store, pickle.HIGHEST_PROTOCOL)
    assert (copy.url, copy.root, copy.storage_options) == (store.url, store.root, store.storage_options)
