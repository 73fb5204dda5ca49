"""Checking a store against itself: documents, plans, receipts, vectors, and what was made of them.

Documents and receipts are always read; vectors, scores and the insides of the plan's tables of all units, or of a
sample. A vector is read through its checksum (crc32c of each chunk) and compared with the digest in its receipt.
Reading takes as long as storage and decompression do; nothing is kept but what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from cliffstore.errors import DamagedStoreError, StoreError
from cliffstore.schema import CaptureDocument, Manifest, ProbeDocument
from cliffstore.store import layout
from cliffstore.store.arrays import open_arrays
from cliffstore.store.checks import derived, plans, vectors
from cliffstore.store.checks.examples import ExampleDigest
from cliffstore.store.checks.findings import Action, Finding
from cliffstore.store.checks.inventory import Inventory, take_inventory
from cliffstore.store.checks.plans import Planned
from cliffstore.store.checks.readers import Readers
from cliffstore.store.checks.sample import Sample
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import read_manifest


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How much was looked at and what is wrong with it.

    Attributes
    ----------
    units : of captures, whose vectors were read
    units_unread : of captures, that are extracted and were not in the sample
    units_missing : of captures, that are planned and not extracted
    seed : of the sample; None where everything was read
    """

    documents: int = 0
    tables: int = 0
    arrays: int = 0
    units: int = 0
    units_unread: int = 0
    units_missing: int = 0
    scores: int = 0
    seed: int | None = None
    findings: tuple[Finding, ...] = ()


def verify_store(
    objects: ObjectStore,
    digest: ExampleDigest,
    begin: Callable[[int], None],
    advance: Callable[[], None],
    *,
    sample: Sample | None = None,
    only_documents: bool = False,
) -> VerifyReport:
    """Look at a store; nothing is changed.

    Parameters
    ----------
    digest : how an example's digest is made
    sample : read the vectors and scores of some units only
    only_documents : read those of no unit, and no table of scores, cliffs or selections

    Raises
    ------
    StoreError
        There is no store, or it is of a newer format.
    """
    try:
        if read_manifest(objects) is None:
            raise StoreError(f"there is no store at {objects.url}: give the path or URL of one")
    except DamagedStoreError:
        pass  # it is among the findings
    with Readers() as readers:
        inventory, findings = take_inventory(objects)
        manifest = inventory.documents.get(layout.MANIFEST)
        if not isinstance(manifest, Manifest):
            return VerifyReport(documents=inventory.n_documents, findings=_in_order(findings))
        planned, wrong = plans.check_units(inventory, manifest.chunking.unit_rows)
        findings += wrong
        chosen = set() if only_documents else sample.choose(planned.units) if sample else set(planned.units)
        findings += plans.check_tables(inventory, planned, chosen, digest, readers)
        readable, wrong = vectors.check_metadata(inventory, planned, manifest.chunking, readers)
        findings += wrong
        receipts, wrong = vectors.check_receipts(inventory, planned)
        findings += [*wrong, *vectors.check_shards(inventory, planned)]
        read = [receipt for receipt in receipts if receipt.unit in chosen]
        n_shards = n_scores = 0
        if not only_documents:
            begin(len(read))
            n_shards, wrong = vectors.check_vectors(
                inventory, read, open_arrays(objects), readable, manifest.chunking, readers, advance
            )
            findings += wrong
            n_scores, wrong = derived.check_scores(inventory, planned, chosen, readers)
            findings += [*wrong, *derived.check_cliffs(inventory), *derived.check_heads(inventory)]
            findings += derived.check_experiments(inventory)
            findings += derived.check_selections(inventory)
    return VerifyReport(
        documents=inventory.n_documents,
        tables=planned.n_tables,
        arrays=n_shards,
        units=len(read),
        units_unread=len(receipts) - len(read),
        units_missing=_count_missing(inventory, planned),
        scores=n_scores,
        seed=sample.seed if sample else None,
        findings=_in_order(_settled(findings, inventory, planned)),
    )


def _count_missing(inventory: Inventory, planned: Planned) -> int:
    """Return how many units are planned and not extracted, over all captures."""
    there = set(inventory.of_kind("receipt"))
    captures = [capture.capture for capture in inventory.all(CaptureDocument)]
    return sum(layout.receipt(capture, unit) not in there for capture in captures for unit in planned.units)


def _settled(findings: Iterable[Finding], inventory: Inventory, planned: Planned) -> Iterable[Finding]:
    """Leave out repairs of what is not planned, or cannot be made again because its document is lost.

    What belongs to a lost document is not removed: a backup may bring the document back.
    """
    probes = {probe.name for probe in inventory.all(ProbeDocument)}
    captures = {capture.capture for capture in inventory.all(CaptureDocument)}
    known = {Action.EXTRACT: captures, Action.SCORE: probes, Action.RANK: probes}
    for one in findings:
        if one.action in known and one.target not in known[one.action]:
            yield replace(one, action=Action.NONE)
        elif one.action in (Action.EXTRACT, Action.SCORE) and one.unit not in planned.units:
            yield replace(one, action=Action.NONE if planned.blind else Action.REMOVE)
        else:
            yield one


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda one: (one.key, one.problem)))
