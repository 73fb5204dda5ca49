"""Documents carry a seal, lie under their own key only, and those that matter most are kept twice."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from made_up import make_probe

from cliffstore.errors import DamagedStoreError, ProbeError
from cliffstore.schema import (
    DOCUMENTS,
    ArrayIdentity,
    CaptureDocument,
    Chunking,
    CliffsDocument,
    Document,
    Manifest,
    ModelIdentity,
    PassSettings,
    ProbeDocument,
    Receipt,
    ScoreReceipt,
    SelectionDocument,
    TokenizerIdentity,
    UnitError,
)
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe, write_probe

MODEL = ModelIdentity(
    name="made-up", revision=None, config_digest="0", weights_digest=None, model_type="llama",
    n_layers=1, d_model=4, n_heads=1, d_head=4,
)  # fmt: skip
CAPTURE = CaptureDocument(
    capture="capture-1", alias="main", model=MODEL,
    arrays=[ArrayIdentity(site="resid_post", layer=0, shape=[4])], dtype="float32",
    passes=PassSettings(kind="tree", tokens=256, products="native"), cliffstore_version="0",
)  # fmt: skip
RECEIPT = Receipt(
    capture="capture-1", plan="plan-1", unit=3, row_start=3_072, n_rows=10, n_examples=2, n_tokens=12,
    digests={"resid_post/0": "00"}, bytes=160, attempt=1, worker="höst:1", seconds=0.25, cliffstore_version="0",
)  # fmt: skip
SELECTION = SelectionDocument(
    name="s", strategy="cliff", top="1.7%", where=None, probe="p", probe_digest="0", capture="capture-1",
    quotas=["source=50%"], candidates=9, examples=2, left_out={"over_quota": 1}, digest="0",
    cliffstore_version="0",
)  # fmt: skip
MANIFEST = Manifest(
    cliffstore_version="0", created="2026-01-01T00:00:00+00:00", chunking=Chunking(chunk_rows=256, unit_rows=1_024),
    tokenizer=TokenizerIdentity(
        name="t", digest="0", template_digest="0", think_open="<think>", think_close="</think>", template_date="d"
    ),
)  # fmt: skip
SOME: tuple[Document, ...] = (
    MANIFEST,
    CAPTURE,
    RECEIPT,
    SELECTION,
    UnitError(capture="capture-1", unit=3, attempt=1, worker="w", error="NaN"),
    ScoreReceipt(
        probe="p",
        probe_digest="0",
        unit=3,
        n_tokens=4,
        digest="0",
        attempt=1,
        worker="w",
        seconds=0.5,
        cliffstore_version="0",
    ),
    make_probe(CAPTURE, "p")[0],
    CliffsDocument(
        probe="p",
        probe_digest="0",
        capture="capture-1",
        scores="0",
        examples=3,
        partial_thinking=0,
        digest="0",
        cliffstore_version="0",
    ),
)


@pytest.fixture(params=["local", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize("document", SOME, ids=lambda one: type(one).__name__)
def test_document_is_read_back_and_its_kind_is_known_by_its_key(document: Document) -> None:
    key = documents.key_of(document)
    assert DOCUMENTS[layout.kind_of(key)] is type(document)
    assert documents.parse(type(document), key, document.to_bytes()) == document


@pytest.mark.parametrize("document", SOME, ids=lambda one: type(one).__name__)
def test_no_bit_can_flip_and_no_byte_be_lost(document: Document) -> None:
    """Every single flipped bit and every shorter length is either refused, or gives other bytes when written again."""
    key, content = documents.key_of(document), document.to_bytes()
    changed = [content[:length] for length in range(len(content))]
    for index in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[index] ^= 1 << bit
            changed.append(bytes(flipped))
    for one in changed:
        try:
            found = documents.parse(type(document), key, one)
        except DamagedStoreError as error:
            said = str(error)
        else:
            assert found == document
            assert found.to_bytes() != one
            continue
        assert "\n" not in said
        assert said.startswith(f"{key} ")
        assert "cliffstore verify" in said


def test_changed_value_under_the_old_seal_is_refused() -> None:
    body = json.loads(RECEIPT.to_bytes())
    body["n_rows"] = 11
    with pytest.raises(DamagedStoreError, match="another seal"):
        documents.parse(Receipt, documents.key_of(RECEIPT), json.dumps(body).encode())


def test_document_under_another_key_is_refused() -> None:
    with pytest.raises(DamagedStoreError, match=r"unit-000004\.json holds what belongs under receipts/.*unit-000003"):
        documents.parse(Receipt, layout.receipt("capture-1", 4), RECEIPT.to_bytes())


def test_sealed_document_of_another_kind_is_refused() -> None:
    with pytest.raises(DamagedStoreError, match="is no CaptureDocument"):
        documents.parse(CaptureDocument, documents.key_of(CAPTURE), RECEIPT.to_bytes())


def test_created_document_is_kept_twice_a_receipt_once(objects: ObjectStore) -> None:
    key = documents.key_of(CAPTURE)
    assert documents.create(objects, CAPTURE) is True
    assert objects.get(layout.copy_of(key)) == objects.get(key)
    other = CAPTURE.model_copy(update={"cliffstore_version": "1"})
    assert documents.create(objects, other) is False
    assert documents.read(objects, CaptureDocument, key) == CAPTURE
    assert objects.get(layout.copy_of(key)) == CAPTURE.to_bytes()
    documents.create(objects, RECEIPT)
    assert objects.list(layout.COPIES) == [layout.copy_of(key)]


def test_replaced_document_replaces_its_copy(objects: ObjectStore) -> None:
    documents.put(objects, SELECTION)
    other = SELECTION.model_copy(update={"top": "3"})
    documents.put(objects, other)
    key = documents.key_of(SELECTION)
    assert objects.get(key) == objects.get(layout.copy_of(key)) == other.to_bytes()


def test_copies_that_a_crash_left_out_are_made_good(objects: ObjectStore) -> None:
    documents.create(objects, MANIFEST)
    documents.create(objects, CAPTURE)
    write_probe(objects, *make_probe(CAPTURE, "p"), replace=False)
    before = {key: objects.get(key) for key in objects.list(layout.COPIES)}
    assert len(before) == 4
    for key in before:
        objects.delete(key)
    objects.put(layout.MANIFEST, b"{}")
    with pytest.raises(DamagedStoreError, match=r"manifest\.json"):
        documents.keep_copies(objects)
    objects.put(layout.MANIFEST, MANIFEST.to_bytes())
    documents.keep_copies(objects)
    assert {key: objects.get(key) for key in objects.list(layout.COPIES)} == before


def test_replaced_probe_leaves_no_old_copy(objects: ObjectStore) -> None:
    write_probe(objects, *make_probe(CAPTURE, "p"), replace=False)
    documents.put(objects, SOME[-1])
    document, weights = make_probe(CAPTURE, "p", seed=1)
    write_probe(objects, document, weights, replace=True)
    kept = {key: objects.get(key) for key in objects.list(layout.COPIES)}
    assert sorted(kept) == [layout.copy_of(key) for key in objects.list(layout.PROBES)]
    assert all(content == objects.get(layout.original_of(key)) for key, content in kept.items())
    assert objects.list(layout.CLIFFS) == []


def test_a_replacement_that_was_cut_off_leaves_no_old_scores(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be shown as scores of the new weights."""
    old_scores, whole_delete = layout.scores_table("p", 0), ObjectStore.delete
    for n_removals in range(9):
        write_probe(objects, *make_probe(CAPTURE, "p"), replace=True)
        objects.put(old_scores, b"scores")
        objects.put(layout.scores_receipt("p", 0), b"receipt")
        rest = iter(range(n_removals))

        def delete(self: ObjectStore, key: str, rest: Iterator[int] = rest) -> None:
            if next(rest, None) is None:
                raise InterruptedError
            whole_delete(self, key)

        with monkeypatch.context() as patch, suppress(InterruptedError):
            patch.setattr(ObjectStore, "delete", delete)
            write_probe(objects, *make_probe(CAPTURE, "p", seed=1), replace=True)
        write_probe(objects, *make_probe(CAPTURE, "p", seed=1), replace=True)
        assert not objects.exists(old_scores), n_removals


def test_a_probe_of_equal_weights_and_other_inputs_is_another_one(objects: ObjectStore) -> None:
    """Such as a direction that is imported again at the right layer, or a fit with a test set."""
    document, weights = make_probe(CAPTURE, "p")
    write_probe(objects, document, weights, replace=False)
    write_probe(objects, document, weights, replace=False)
    other = document.model_copy(update={"layer": document.layer + 1, "inputs": "2" * 64})
    with pytest.raises(ProbeError, match="--replace"):
        write_probe(objects, other, weights, replace=False)
    assert read_probe(objects, "p")[0] == document
    write_probe(objects, other, weights, replace=True)
    assert read_probe(objects, "p")[0] == other


def test_damaged_weights_are_not_used(objects: ObjectStore) -> None:
    document, weights = make_probe(CAPTURE, "p")
    write_probe(objects, document, weights, replace=False)
    assert read_probe(objects, "p")[0] == document
    content = bytearray(objects.get(layout.probe_weights("p")))
    content[-1] ^= 64
    objects.put(layout.probe_weights("p"), bytes(content))
    with pytest.raises(DamagedStoreError, match=r"probe\.safetensors differs from its digest"):
        read_probe(objects, "p")
    assert documents.read(objects, ProbeDocument, layout.probe_document("p")) == document
