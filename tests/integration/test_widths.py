"""A store whose sites are of different widths, one of them per head, and labels that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_up_store import made_up_capture, made_up_manifest
from vector_store import VectorStore

from cliffstore.errors import ProbeError, QueryError, StoreError
from cliffstore.run.store import Store
from cliffstore.store import writer
from cliffstore.store.arrays import open_arrays
from cliffstore.store.objects import ObjectStore

MADE = VectorStore(n_units=2, unit_rows=256, tokens=2)
HEADS = (3, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    objects = ObjectStore(str(tmp_path_factory.mktemp("widths") / "store"))
    MADE.make(objects)
    capture = made_up_capture("capture-of-heads", 1, 12, "float32", "main")
    arrays = [one.model_copy(update={"site": "z", "shape": list(HEADS)}) for one in capture.arrays]
    capture = capture.model_copy(update={"arrays": arrays})
    capture = writer.create_capture(objects, capture, n_units=2, chunking=made_up_manifest(MADE.unit_rows).chunking)
    (spec,) = writer.capture_specs(capture)
    for unit in range(MADE.n_units):
        block = np.random.default_rng(unit).normal(size=(MADE.unit_rows, *HEADS)).astype(np.float32)
        facts = MADE._facts("plan-of-vectors", unit)
        writer.commit_unit(objects, open_arrays(objects), capture, facts, {spec.name: block}, 1.0)
    with Store(str(objects.url)) as opened:
        opened.fit_probe(name="stream", layers="0")
        opened.fit_probe(name="heads", site="z", layers="0")
        yield opened


def test_weights_of_the_stream_beside_a_wider_site(store: Store) -> None:
    ((weights, product, score),) = store.sql(
        "SELECT probe_weight('stream'), array_inner_product(resid_post(1, 0), probe_weight('stream')), "
        "score('stream', 1) - score('stream', 3) + array_inner_product(resid_post(3, 0), probe_weight('stream'))"
    ).fetchall()
    assert len(weights) == MADE.width
    assert product == pytest.approx(score, abs=1e-4)


def test_weights_of_another_width_are_an_error(store: Store) -> None:
    with pytest.raises(ProbeError, match=r"probe 'heads' has 12 weights, .* gives 8: use score\('heads', row\)"):
        store.sql("SELECT probe_weight(probe) FROM probes")
    assert store.sql("SELECT count(score('heads', row)) FROM tokens").fetchall() == [(512,)]


def test_nothing_and_comments_in_conditions(store: Store) -> None:
    with pytest.raises(ProbeError, match="no extracted example where false has a label"):
        store.fit_probe(name="none", where="false")
    with pytest.raises(QueryError):
        store.fit_probe(name="none", where="no_such_column")
    probe = store.fit_probe(name="noted", layers="0", where="true -- all", label="label -- as it is")
    assert probe.n_train + probe.n_validation == MADE.n_examples


def test_a_label_of_nan_is_none(store: Store) -> None:
    label = "CASE WHEN example % 4 = 0 THEN 'nan'::DOUBLE ELSE label::DOUBLE END"
    probe = store.fit_probe(name="nan", layers="0", label=label, positive="1.0")
    assert probe.n_train + probe.n_validation == MADE.n_examples * 3 // 4


def test_models_of_different_widths(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "store"))
    MADE.make(objects)
    VectorStore(n_units=2, unit_rows=256, tokens=2, width=4, alias="small").add_capture(objects)
    with Store(str(objects.url)) as store:
        ((vector,),) = store.sql("SELECT resid_post(1, 0)").fetchall()
        assert np.array_equal(vector, MADE.vectors_of(0, 0)[1])
        with pytest.raises(StoreError, match=r"model 'small', layer 0, has vectors of 4 numbers, .* gives 8"):
            store.sql("SELECT resid_post(row, 0, 'small') FROM tokens")


def test_a_budget_for_no_whole_prompt(tmp_path: Path) -> None:
    made = VectorStore(n_units=4, unit_rows=256, tokens=8, width=4096, distinct_prompts=16, n_layers=1)
    made.make(ObjectStore(str(tmp_path / "store")))
    with (
        Store(str(tmp_path / "store")) as store,
        pytest.raises(ProbeError, match=r"0 samples at think .* a memory budget of 1,000,000 bytes .* lack a class"),
    ):
        store.fit_probe(name="p", label="example % 2 = 0", positions="think", out_of_core=True, memory_budget=1_000_000)
