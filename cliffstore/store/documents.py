"""JSON documents of a store: read in one way, written in one way, those that matter most kept twice.

A document is believed where its seal fits its content and its content belongs to its key. Manifest, plans, captures,
probes and the settings of what was made from them cannot be computed again; the same bytes lie below `copies/`,
written right after the original. A crash between the two is made good by `keep_copies`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from cliffstore.errors import DamagedStoreError
from cliffstore.schema import (
    DOCUMENTS,
    CaptureDocument,
    CliffsDocument,
    Document,
    ExperimentDocument,
    GenerationDocument,
    GenerationReceipt,
    HeadsDocument,
    Manifest,
    PlanDocument,
    PlanPlace,
    ProbeDocument,
    Receipt,
    ScoreReceipt,
    SelectionDocument,
    UnitError,
    damaged,
)
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

D = TypeVar("D", bound=Document)


def key_of(document: Document) -> str:
    """Return the only key under which a document may lie."""
    match document:
        case Manifest():
            return layout.MANIFEST
        case PlanPlace():
            return layout.place(document.number)
        case PlanDocument():
            return layout.plan_document(document.plan)
        case CaptureDocument():
            return layout.capture_document(document.alias, document.capture)
        case Receipt():
            return layout.receipt(document.capture, document.unit)
        case UnitError():
            return layout.unit_error(document.capture, document.unit)
        case ScoreReceipt():
            return layout.scores_receipt(document.probe, document.unit)
        case ProbeDocument():
            return layout.probe_document(document.name)
        case CliffsDocument():
            return layout.cliffs_document(document.probe)
        case HeadsDocument():
            return layout.heads_document(document.name)
        case ExperimentDocument():
            return layout.experiment_document(document.name)
        case SelectionDocument():
            return layout.selection_document(document.name)
        case GenerationDocument():
            return layout.GENERATION
        case GenerationReceipt():
            return layout.GENERATION_RECEIPT
    raise TypeError(f"{type(document).__name__} has no key")


def parse(kind: type[D], key: str, content: bytes) -> D:
    """Return the document that `content` is.

    Raises
    ------
    DamagedStoreError
        It is not JSON, not such a document, its seal does not fit, or it belongs under another key.
    """
    document = kind.from_bytes(content, key)
    if (own := key_of(document)) != key:
        raise damaged(key, f"holds what belongs under {own}")
    return document


def read(objects: ObjectStore, kind: type[D], key: str) -> D:
    """Return a document. Raises FileNotFoundError where it is not, otherwise as `parse`."""
    return parse(kind, key, objects.get(key))


def read_many(objects: ObjectStore, kind: type[D], keys: Sequence[str], *, missing_ok: bool = False) -> Iterator[D]:
    """Yield the documents of one kind under many keys, in their order. Errors as for `read`, and `get_many`."""
    for key, content in objects.get_many(keys, missing_ok=missing_ok):
        yield parse(kind, key, content)


def create(objects: ObjectStore, document: Document) -> bool:
    """Write a document where there is none, and its copy. Return whether this call wrote it."""
    key = key_of(document)
    created = objects.create(key, document.to_bytes())
    if layout.kind_of(key) in layout.COPIED:
        keep_copy(objects, key)
    return created


def put(objects: ObjectStore, document: Document) -> None:
    """Write a document in the place of what was there, and its copy."""
    put_bytes(objects, key_of(document), document.to_bytes())


def put_bytes(objects: ObjectStore, key: str, content: bytes) -> None:
    """Write an object in the place of what was there, and its copy if it is of a kind that is kept twice."""
    objects.put(key, content)
    if layout.kind_of(key) in layout.COPIED:
        objects.put(layout.copy_of(key), content)


def delete(objects: ObjectStore, key: str) -> None:
    """Remove an object and its copy; the copy first, so that what a crash leaves is no lost original."""
    objects.delete(layout.copy_of(key))
    objects.delete(key)


def keep_copy(objects: ObjectStore, key: str) -> None:
    """Copy an object that has no copy yet. Raises `DamagedStoreError` where it is not worth one."""
    copy = layout.copy_of(key)
    if not objects.exists(copy):
        content = objects.get(key)
        check(objects, key, content)
        objects.create(copy, content)


def keep_copies(objects: ObjectStore) -> None:
    """Copy whatever was left without a copy by a run that ended early."""
    folders = (layout.PLANS, layout.CAPTURES, layout.PROBES, layout.CLIFFS, layout.HEADS, layout.EXPERIMENTS,
               layout.SELECTIONS)  # fmt: skip
    keys = [layout.MANIFEST, *(key for folder in folders for key in objects.list(folder))]
    copied = set(objects.list(layout.COPIES))
    for key in keys:
        if layout.kind_of(key) in layout.COPIED and layout.copy_of(key) not in copied:
            keep_copy(objects, key)


def copy_is_intact(objects: ObjectStore, key: str) -> bool:
    """Return whether there is a copy of an object that can be believed."""
    try:
        check(objects, key, objects.get(layout.copy_of(key)))
    except (DamagedStoreError, FileNotFoundError):
        return False
    return True


def check(objects: ObjectStore, key: str, content: bytes) -> Document | None:
    """Check an object of a kind that is kept twice, or any document, apart from where it lies.

    Parameters
    ----------
    content : of the object under `key`, or of its copy

    Returns
    -------
    The document; None for the weights of a probe.

    Raises
    ------
    DamagedStoreError
        It cannot be believed.
    """
    kind = layout.kind_of(key)
    if kind != "weights":
        return parse(DOCUMENTS[str(kind)], key, content)
    document = layout.probe_document(key.split("/")[1])
    digest = read(objects, ProbeDocument, document).file_digest
    if hashlib.sha256(content).hexdigest() != digest:
        raise damaged(key, f"differs from its digest in {document}")
    return None
