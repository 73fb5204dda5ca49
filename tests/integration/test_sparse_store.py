"""A store that holds some positions only: everything downstream of extraction works on it, or says why it cannot.

The vectors are made up, no model runs: row r holds (r, 1, 0, 0), so a vector tells which row it was read from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from made_up import made_up_metrics
from plans import Plan, make_plan, planned_of
from told import Told

from cliffstore.errors import ProbeError
from cliffstore.plan.positions import parse_positions
from cliffstore.plan.sorting import NO_POSITION
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, Segment
from cliffstore.run.planned import write_plan
from cliffstore.run.store import Store
from cliffstore.schema import (
    ArrayIdentity,
    CaptureDocument,
    ModelIdentity,
    PassSettings,
    ProbeDocument,
    Receipt,
    ScoreReceipt,
)
from cliffstore.store import documents, layout
from cliffstore.store.arrays import open_arrays
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights, write_probe
from cliffstore.store.writer import UnitFacts, commit_unit, create_capture

WIDTH, UNIT_ROWS, N_EXAMPLES = 4, 256, 40
PROBE = "refusal"
CAPTURE = CaptureDocument(
    capture="capture-1",
    alias="main",
    model=ModelIdentity(
        name="made-up", revision=None, config_digest="0", weights_digest=None, model_type="llama",
        n_layers=1, d_model=WIDTH, n_heads=1, d_head=WIDTH,
    ),
    arrays=[ArrayIdentity(site="resid_post", layer=0, shape=[WIDTH])],
    dtype="float32",
    passes=PassSettings(kind="tree", tokens=256, products="native"),
    cliffstore_version="0",
)  # fmt: skip


def _example(number: int) -> RenderedExample:
    """`user` x2, then in odd examples 3 to 6 of `think` and a `think_close`, then the answer."""
    names = ["user", "header"]
    if number % 2:
        names += ["think"] * (3 + number % 4) + ["think_close"]
    decision = len(names) - 1
    segments = [SEGMENTS.index(Segment(name)) for name in [*names, "response", "response", "end"]]
    ids = np.array([1, 2 + number % 10, *(50 + number * 20 + n for n in range(len(segments) - 2))], dtype=np.int32)
    prompt = f"prompt {number}"
    row = CorpusRow(f"id-{number:02d}", prompt, (Message("user", prompt),), label=str(number // 2 % 2))
    return RenderedExample(row, ids, np.array(segments, dtype=np.uint8), decision, f"corpus.jsonl:{number}")


def _plan(positions: str) -> Plan:
    return make_plan(
        [_example(number) for number in range(N_EXAMPLES)],
        (),
        positions=parse_positions(positions),
        bytes_per_row=16,
        identity={"tokenizer": "t", "template": "u"},
        settings={},
        unit_rows=UNIT_ROWS,
    )


def _extract(objects: ObjectStore, plan: Plan) -> None:
    create_capture(objects, CAPTURE, n_units=len(plan.units), chunking=Store(objects.url).reader.manifest.chunking)
    for unit in plan.units:
        block = np.zeros((UNIT_ROWS, WIDTH), dtype=np.float32)
        block[: unit.n_rows, 0] = np.arange(unit.row_start, unit.row_start + unit.n_rows)
        block[: unit.n_rows, 1] = 1
        facts = UnitFacts(
            plan.name, unit.number, unit.row_start, unit.n_rows, len(unit.examples), unit.n_tokens, 1, "w"
        )
        commit_unit(objects, open_arrays(objects), CAPTURE, facts, {"resid_post/0": block}, 0.1)


def _add_probe(objects: ObjectStore) -> None:
    """A probe whose score is minus the row number."""
    weights = ProbeWeights(np.array([-1, 0, 0, 0], dtype=np.float32), 0.0)
    metrics = made_up_metrics(0)
    document = ProbeDocument(
        name=PROBE, kind="logistic", alias="main", capture=CAPTURE.capture, model=CAPTURE.model, dtype="float32",
        site="resid_post", layer=0,
        positions="decision", label="label", positive="1", where=None, test_where=None, seed=0, c=1.0,
        n_train=1, n_validation=1, n_test=0, shuffled_auroc=0.5, cells=[metrics], digest=weights.digest,
        file_digest=weights.file_digest,
        inputs="", cliffstore_version="0",
    )  # fmt: skip
    write_probe(objects, document, weights, replace=False)


@pytest.fixture
def make_store(tmp_path: Path):
    """Return a function: positions -> an open store, its plan, and what it has told."""
    opened: list[Store] = []

    def make(positions: str) -> tuple[Store, Plan, Told]:
        objects = ObjectStore(str(tmp_path / "store"))
        plan = _plan(positions)
        with planned_of(plan) as planned:
            write_plan(objects, planned)
        _extract(objects, plan)
        _add_probe(objects)
        told = Told()
        opened.append(Store(objects.url, reporter=told))
        return opened[-1], plan, told

    yield make
    for store in opened:
        store.close()


@pytest.mark.parametrize("positions", ["decision", "think", "last:2", "stride:4", "decision,think", "all"])
def test_vectors_are_there_for_stored_positions_only(make_store, positions: str) -> None:
    store, plan, _ = make_store(positions)
    found = store.sql(
        "SELECT example, position, row, resid_post(row, 0)[1] AS first, score('refusal', row) AS score "
        "FROM tokens ORDER BY example, position"
    ).fetchall()
    expected = []
    for unit in plan.units:
        for one in unit.examples:
            for position, row in enumerate(one.rows.tolist()):
                stored = (row, row, -row) if row >= 0 else (None, None, None)
                expected.append((one.ordinal, position, *stored))
    assert found == expected
    assert store.sql("SELECT unit, n_rows, n_tokens FROM units ORDER BY unit").fetchall() == [
        (unit.number, unit.n_rows, unit.n_tokens) for unit in plan.units
    ]


@pytest.mark.parametrize("positions", ["decision", "think", "stride:4"])
def test_sparse_store_verifies_and_is_scored_where_it_is_stored(make_store, positions: str) -> None:
    store, plan, _ = make_store(positions)
    report = store.verify()
    assert not report.findings
    assert report.units == len(plan.units)
    n_stored = sum(int((one.rows >= 0).sum()) for unit in plan.units for one in unit.examples)
    assert 0 < n_stored < plan.n_tokens
    assert store.score(PROBE).tokens == n_stored
    unlike = "SELECT count(*) FROM scores s JOIN tokens t USING (example, position) WHERE -t.row IS DISTINCT FROM score"
    assert store.sql(unlike).fetchall() == [(0,)]
    assert store.sql("SELECT count(*) FROM scores").fetchall() == [(n_stored,)]


def test_what_contradicts_a_receipt_is_found(make_store) -> None:
    """Each time with a seal that fits, or beside everything that has one."""
    store, plan, _ = make_store("all")
    store.score(PROBE)
    assert not store.verify().findings
    objects, unit = ObjectStore(store.reader.url), plan.units[0]
    scores = documents.read(objects, ScoreReceipt, layout.scores_receipt(PROBE, 0))
    receipt = documents.read(objects, Receipt, layout.receipt(CAPTURE.capture, 0))
    for document, change, said in (
        (scores, {"n_tokens": scores.n_tokens + 1}, "counts other tokens than its table or the plan has"),
        (scores, {"probe_digest": "0" * 64}, "is of other weights than the probe has"),
        (receipt, {"bytes": receipt.bytes + 1}, "counts other bytes than its rows have"),
        (receipt, {"n_tokens": receipt.n_tokens + 1}, "does not agree with the plan"),
        (receipt, {"digests": {}}, "does not cover the arrays of its capture"),
    ):
        documents.put(objects, document.model_copy(update=change))
        assert said in " ".join(one.problem for one in store.verify().findings)
        documents.put(objects, document)
    stray = layout.shard("activations/main/resid_post/0", 9, 2)
    objects.put(stray, b"vectors")
    assert [(one.key, one.problem) for one in store.verify().findings] == [
        (stray, "is a shard of a unit that is not planned")
    ]
    objects.delete(stray)
    assert not store.verify().findings
    array = zarr.open_array(f"{store.reader.url}/activations/main/resid_post/0", mode="r+")
    array[unit.row_start + unit.n_rows, 0] = 1.0
    (found,) = store.verify().findings
    assert "has vectors behind the last row of its unit" in found.problem


def test_examples_without_a_position_to_store_can_be_queried(make_store) -> None:
    store, plan, _ = make_store("think")
    assert plan.n_examples == N_EXAMPLES // 2
    assert store.sql("SELECT reason, count(*) FROM skipped GROUP BY 1").fetchall() == [(NO_POSITION, N_EXAMPLES // 2)]


def test_cliff_over_stored_thinking_and_decision(make_store) -> None:
    store, plan, _ = make_store("decision,think")
    store.score(PROBE)
    report = store.cliff(PROBE)
    assert (report.examples, report.without_thinking, report.without_decision, report.partial_thinking) == (
        40,
        20,
        0,
        0,
    )
    found = {row[0]: row[1:] for row in store.sql("SELECT example, plateau, final, n_think FROM cliffs").fetchall()}
    think = SEGMENTS.index(Segment.THINK)
    for one in (one for unit in plan.units for one in unit.examples):
        rows = one.rows[one.example.segments == think]
        plateau = -float(rows.mean()) if len(rows) else None
        assert found[one.ordinal] == (plateau, -int(one.rows[one.example.decision]), len(rows))


@pytest.mark.parametrize(
    ("positions", "without_thinking", "without_decision", "partial_thinking"),
    [("stride:4", 20, 30, 20), ("stride:7,decision", 30, 0, 10)],
)
def test_cliff_over_a_part_of_the_thinking_is_counted_as_such(
    make_store, positions: str, without_thinking: int, without_decision: int, partial_thinking: int
) -> None:
    """`stride:4` meets the thinking of all thinking examples and the decision of half of them; `stride:7` meets the
    thinking of half of them."""
    store, _, _ = make_store(positions)
    store.score(PROBE)
    report = store.cliff(PROBE)
    assert report.examples == N_EXAMPLES
    assert report.without_thinking == without_thinking
    assert report.without_decision == without_decision
    assert report.partial_thinking == partial_thinking
    assert store.sql("SELECT count(*) FROM cliffs WHERE cliff IS NOT NULL").fetchall() == [(10,)]


@pytest.mark.parametrize("positions", ["decision", "think", "last:1"])
def test_cliff_that_cannot_be_is_refused(make_store, positions: str) -> None:
    store, _, _ = make_store(positions)
    store.score(PROBE)
    with pytest.raises(ProbeError, match="--positions"):
        store.cliff(PROBE)
    assert store.sql("SELECT * FROM cliffs").fetchall() == []


def test_probe_is_fitted_on_stored_decision_positions(make_store) -> None:
    store, _, told = make_store("decision")
    document = store.fit_probe("fitted")
    assert document.n_train + document.n_validation == N_EXAMPLES
    assert told.notices == []


def test_probe_says_which_examples_have_no_decision_position(make_store) -> None:
    store, _, told = make_store("stride:2")
    document = store.fit_probe("fitted")
    assert document.n_train + document.n_validation == N_EXAMPLES // 2
    assert told.notices == ["20 examples have no vector at their decision position and are left out"]


def test_probe_without_any_decision_position_is_refused(make_store) -> None:
    store, _, _ = make_store("think")
    with pytest.raises(ProbeError, match="--positions"):
        store.fit_probe("fitted")
