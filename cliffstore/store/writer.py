"""Writing a store: manifest, plan, capture, units. The order of writes is the guarantee.

A plan's tables are there before its `plan.json`, a unit's arrays before its receipt; so what a reader can see is
complete. Each of these commits is create-only, which makes two writers of the same thing harmless.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cliffstore import __version__
from cliffstore.errors import StoreError
from cliffstore.schema import CaptureDocument, Chunking, Manifest, PlanDocument, Receipt
from cliffstore.store import documents, layout, receipts
from cliffstore.store.arrays import ArrayIO, ArraySpec, Vectors, create_arrays
from cliffstore.store.objects import ObjectStore

_WRITERS = min(os.cpu_count() or 1, 8)
"""Threads that write and digest a unit."""
_WRITERS_NICE = 10
"""How far writing stands back from computing the next unit. A pass on the CPU waits for its slowest thread, so
compressing at the same priority costs it about twice the time that compressing takes."""


def capture_specs(capture: CaptureDocument) -> list[ArraySpec]:
    """Return the arrays of a capture."""
    return [
        ArraySpec(capture.alias, identity.site, identity.layer, tuple(identity.shape), capture.dtype)
        for identity in capture.arrays
    ]


def create_manifest(objects: ObjectStore, manifest: Manifest) -> Manifest:
    """Begin a store, and return its manifest: that of another process, where one began the same store meanwhile.

    Raises
    ------
    StoreError
        Another process began a store with another tokenizer, template or size of units.
    """
    if documents.create(objects, manifest):
        return manifest
    held = documents.read(objects, Manifest, layout.MANIFEST)
    if (held.tokenizer, held.chunking) != (manifest.tokenizer, manifest.chunking):
        raise StoreError(
            f"store {objects.url}: another process began a store here just now, with another tokenizer or other units: "
            "give another --store"
        )
    return held


def commit_plan(objects: ObjectStore, document: PlanDocument) -> None:
    """Make a plan visible; its tables must be there."""
    documents.create(objects, document)


def create_capture(
    objects: ObjectStore, capture: CaptureDocument, *, n_units: int, chunking: Chunking
) -> CaptureDocument:
    """Create a capture's arrays and document, or return the document that is there already.

    Parameters
    ----------
    n_units : units that the arrays must have room for; arrays that are there already grow, and never shrink
    """
    create_arrays(
        objects,
        capture_specs(capture),
        n_rows=n_units * chunking.unit_rows,
        chunk_rows=chunking.chunk_rows,
        unit_rows=chunking.unit_rows,
    )
    documents.create(objects, capture)
    return documents.read(objects, CaptureDocument, documents.key_of(capture))


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What a receipt says of a unit apart from its vectors."""

    plan: str
    unit: int
    row_start: int
    n_rows: int
    n_examples: int
    n_tokens: int
    attempt: int
    worker: str


def commit_unit(
    objects: ObjectStore,
    arrays: ArrayIO,
    capture: CaptureDocument,
    facts: UnitFacts,
    blocks: Mapping[str, Vectors],
    seconds: float,
) -> Receipt:
    """Write a unit's vectors, then its receipt.

    Parameters
    ----------
    blocks : array name ('<site>/<layer>') -> stored vectors [unit_rows, ...], zero behind the unit's last row.
        Whole shards, so that writing a unit again replaces objects instead of merging with a torn one.
    seconds : time that computing took
    """

    def digest(name: str) -> str:
        return rows_digest(blocks[name][: facts.n_rows])

    specs = capture_specs(capture)
    names = [spec.name for spec in specs]
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="write", initializer=_stand_back) as pool:
        written = pool.submit(arrays.write, facts.row_start, {spec.key: blocks[spec.name] for spec in specs})
        digests = dict(zip(names, pool.map(digest, names), strict=True))
        written.result()
    receipt = Receipt(
        capture=capture.capture,
        plan=facts.plan,
        unit=facts.unit,
        row_start=facts.row_start,
        n_rows=facts.n_rows,
        n_examples=facts.n_examples,
        n_tokens=facts.n_tokens,
        digests=digests,
        bytes=sum(block[: facts.n_rows].nbytes for block in blocks.values()),
        attempt=facts.attempt,
        worker=facts.worker,
        seconds=round(seconds, 3),
        cliffstore_version=__version__,
    )
    if not receipts.commit(objects, receipt):
        return receipts.read_one(objects, capture.capture, facts.unit)
    return receipt


def _stand_back() -> None:
    """Lower this thread's priority; only Linux has one for each thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WRITERS_NICE)


def rows_digest(rows: Vectors) -> str:
    """Return the sha256 of the stored bytes of rows."""
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
