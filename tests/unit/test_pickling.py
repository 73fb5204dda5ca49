"""Everything that crosses a process pickles, and comes out as it went in."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from cliffstore import errors
from cliffstore.errors import CliffstoreError
from cliffstore.extract.calibration import CorpusShape, PassWish
from cliffstore.extract.job import Job, LiveProbe, Prepared, WorkerSpec
from cliffstore.model.identity import ModelSource
from cliffstore.records import UnitReport
from cliffstore.run.executor import UnitOutcome
from cliffstore.run.heads.knocking import Ability, KnockoutJob
from cliffstore.run.heads.parts import Part
from cliffstore.schema import (
    AdapterIdentity,
    ArrayIdentity,
    CaptureDocument,
    DirectionAblation,
    HeadFactors,
    HeadScaling,
    Interventions,
    ModelIdentity,
    PassSettings,
    Receipt,
    Steering,
    UnitError,
    vector_text,
)
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.scores import ProbeKey

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
    n_heads=2,
    d_head=4,
    adapter=AdapterIdentity(name="org/adapter", kind="LORA", digest="1"),
)
PASSES = PassSettings(kind="tree", tokens=512, products="float32")
CAPTURE = CaptureDocument(
    capture="capture-1",
    alias="main",
    model=IDENTITY,
    arrays=[ArrayIdentity(site="resid_post", layer=0, shape=[8])],
    dtype="bfloat16",
    passes=PASSES,
    cliffstore_version="0",
)
VECTOR = vector_text(np.arange(8, dtype=np.float32))
INTERVENTIONS = Interventions.of(
    [
        HeadScaling(heads=[HeadFactors(layer=1, head=0, factors=[0.5])], positions="decision", keep_norm=True),
        DirectionAblation(vector=VECTOR, sites=["mlp_out"], layers=[0, 1], origin="probe refusal"),
        Steering(vector=VECTOR, sites=["resid_pre"], layers=[1], factor=-2.0),
    ]
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
    source=ModelSource("/models/m", None, IDENTITY, 2_048, "bfloat16"),
    arrays=tuple(CAPTURE.arrays),
    dtype="bfloat16",
    device="auto",
    threads=2,
    gpus=4,
)
JOB = Job(
    store="s3://bucket/store",
    plans=("plan-1",),
    passes=PASSES,
    capture=CAPTURE,
    allow_nonfinite=True,
    storage_options={"endpoint_url": "http://localhost:9000", "anon": False},
)
PROBE = LiveProbe(ProbeKey("refusal", "0", "capture-1"), "resid_post/0", ProbeWeights(np.ones(8, np.float32), 0.5))
KNOCKOUTS = KnockoutJob(
    store="s3://bucket/store",
    name="effects",
    parts=(Part(3, ((12, 13), (14,))), Part(4, ((20,),))),
    positions="template",
    shared=True,
    facts={"probe": ["0"]},
    choices=(((1, 0),), ((1, 0), (0, 1))),
)
REPORT = UnitReport(3, 12, 10, 160, 0.5, "host:1", ("out of memory",))
SHAPE = CorpusShape(lengths=(3, 4), shared=(0, 2), n_nodes=5, n_padded=7)


def _round_trip(value: T, protocol: int) -> T:
    loaded: T = pickle.loads(pickle.dumps(value, protocol))  # noqa: S301  (the point of the test)
    return loaded


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    "value",
    [
        SPEC,
        JOB,
        CAPTURE,
        INTERVENTIONS,
        KNOCKOUTS,
        Ability(2_048, shared=True, whole_below=None),
        RECEIPT,
        PassWish("tree", 512, PASSES),
        SHAPE,
        Prepared(PASSES, 1.5, "passes of 512 nodes", ("slow",)),
        UnitOutcome(3, REPORT, None),
        UnitOutcome(3, None, "out of memory"),
        UnitError(capture="capture-1", unit=3, attempt=2, worker="host:1", error="NaN"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_comes_out_equal(value: object, protocol: int) -> None:
    found = _round_trip(value, protocol)
    assert found == value
    assert type(found) is type(value)


def test_what_travels_is_small() -> None:
    assert len(pickle.dumps(SPEC)) < 10_000
    assert len(pickle.dumps(JOB)) < 10_000


def test_a_probe_keeps_its_weights() -> None:
    found = _round_trip(replace(JOB, capture=None, probes=(PROBE,)), pickle.HIGHEST_PROTOCOL).probes[0]
    assert (found.key, found.array, found.weights.b) == (PROBE.key, PROBE.array, 0.5)
    np.testing.assert_array_equal(found.weights.w_D, PROBE.weights.w_D)


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
