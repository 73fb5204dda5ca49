"""What was made of vectors: scores, cliffs, figures of heads and selections, each table against its document."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.schema import (
    CliffsDocument,
    Document,
    ExperimentDocument,
    HeadsDocument,
    ProbeDocument,
    ScoreReceipt,
    SelectionDocument,
)
from cliffstore.store import documents, layout
from cliffstore.store.checks.findings import Action, Finding, Kind
from cliffstore.store.checks.inventory import Inventory
from cliffstore.store.checks.plans import Planned
from cliffstore.store.checks.readers import Readers

_NO_PROBE = "is of a probe whose document is lost: bring it from a backup, fit the probe again, or remove this"


def check_scores(
    inventory: Inventory, planned: Planned, chosen: Collection[int], readers: Readers
) -> tuple[int, list[Finding]]:
    """Check the score receipts of all units, and the tables of those that are chosen. Return how many tables."""
    probes = {probe.name: probe for probe in inventory.all(ProbeDocument)}
    unknown = {key.split("/")[1] for key in inventory.lost("probe")}
    findings: list[Finding] = []
    good: list[ScoreReceipt] = []
    for receipt in inventory.all(ScoreReceipt):
        key, probe = documents.key_of(receipt), probes.get(receipt.probe)
        if receipt.unit not in planned.units and not planned.blind:
            findings.append(Finding(key, Kind.ORPHAN, "is of a unit that is not planned", Action.REMOVE))
        elif probe is None and receipt.probe not in unknown:
            findings.append(Finding(key, Kind.ORPHAN, _NO_PROBE))
        elif probe is not None and receipt.probe_digest != probe.digest:
            text = "is of other weights than the probe has"
            findings.append(Finding(key, Kind.DISAGREES, text, Action.SCORE, receipt.probe, receipt.unit))
        else:
            good.append(receipt)
    findings += _tables_without_receipt(inventory, planned)
    looked_at = [receipt for receipt in good if receipt.unit in chosen]

    def check(receipt: ScoreReceipt) -> Finding | None:
        return _scores(inventory, planned, receipt)

    findings += [finding for finding in readers.each(check, looked_at) if finding is not None]
    return len(looked_at), findings


def _scores(inventory: Inventory, planned: Planned, receipt: ScoreReceipt) -> Finding | None:
    key, vouches = layout.scores_table(receipt.probe, receipt.unit), documents.key_of(receipt)

    def finding(kind: Kind, at: str, problem: str) -> Finding:
        return Finding(at, kind, problem, Action.SCORE, receipt.probe, receipt.unit)

    try:
        content = inventory.objects.get(key)
    except FileNotFoundError:
        return finding(Kind.MISSING, key, f"is missing; {vouches} vouches for it")
    if hashlib.sha256(content).hexdigest() != receipt.digest:
        return finding(Kind.DAMAGED, key, f"differs from its digest in {vouches}")
    n_tokens = pq.read_metadata(pa.BufferReader(content)).num_rows
    if not receipt.n_tokens == n_tokens == planned.stored.get(receipt.unit, n_tokens):
        return finding(Kind.DISAGREES, vouches, "counts other tokens than its table or the plan has")
    return None


def _tables_without_receipt(inventory: Inventory, planned: Planned) -> list[Finding]:
    there = set(inventory.of_kind("score_receipt"))
    findings = []
    for key in inventory.of_kind("scores"):
        probe, unit = key.split("/")[1], layout.unit_of(key)
        assert unit is not None
        receipt = layout.scores_receipt(probe, unit)
        if receipt not in there:
            problem = f"is missing, but {key} is there, as an interrupted run leaves it; scoring again settles it"
            findings.append(Finding(receipt, Kind.ORPHAN, problem, Action.SCORE, probe, unit))
    return findings


def check_cliffs(inventory: Inventory) -> list[Finding]:
    """Check every table of cliffs, and that it is of the probe that is there."""

    def owner(document: CliffsDocument) -> Finding | None:
        return _probe_of(inventory, document, document.probe, document.probe_digest, Action.RANK, document.probe)

    return _pairs(inventory, CliffsDocument, "cliffs", layout.cliffs_table, Action.RANK, owner)


def check_selections(inventory: Inventory) -> list[Finding]:
    """Check every selection."""

    def owner(document: SelectionDocument) -> Finding | None:
        return None  # a selection outlives its probe: it says which weights it was made with

    return _pairs(inventory, SelectionDocument, "selection", layout.selection_table, Action.SELECT, owner)


def check_heads(inventory: Inventory) -> list[Finding]:
    """Check every table of figures of heads; tell what a measurement that was cut off has left.

    Making one again takes a model: the user is told, nothing is repaired.
    """

    def owner(document: HeadsDocument) -> Finding | None:
        return None  # figures outlive their probe: they say which weights they were made with

    findings = _pairs(inventory, HeadsDocument, "heads", layout.heads_table, Action.NONE, owner)
    again = "measure it again with `cliffstore heads trace` or `heads ablate`, and `--replace`"
    left = (
        "is of a measurement that has not ended: run the same `cliffstore heads ablate` again to go on (with "
        "`--replace` where its figures are there), or remove this"
    )
    return [
        *(replace(finding, problem=f"{finding.problem}: {again}", target="") for finding in findings),
        *(Finding(key, Kind.ORPHAN, left) for key in inventory.of_kind("heads_piece")),
    ]


def check_experiments(inventory: Inventory) -> list[Finding]:
    """Check every experiment and its pieces; tell what one that was cut off has left. Nothing is repaired here."""

    def owner(document: ExperimentDocument) -> Finding | None:
        return None  # an experiment outlives its probe: it says which weights it was made with

    findings = _pairs(inventory, ExperimentDocument, "experiment", layout.experiment_table, Action.NONE, owner)
    again = "run `cliffstore heads experiment` again, with `--replace`"
    found = [replace(finding, problem=f"{finding.problem}: {again}", target="") for finding in findings]
    vouched = {
        layout.experiment_piece(document.name, piece): digest
        for document in inventory.all(ExperimentDocument)
        for piece, digest in document.pieces.items()
    }
    there = set(inventory.of_kind("experiment_piece"))
    for key, digest in vouched.items():
        if key not in there:
            found.append(Finding(key, Kind.MISSING, f"is missing: {again}"))
        elif hashlib.sha256(inventory.objects.get(key)).hexdigest() != digest:
            found.append(Finding(key, Kind.DAMAGED, f"differs from its digest in its experiment's document: {again}"))
    left = "is of an experiment that has not ended: run it again to go on, or remove this"
    return found + [Finding(key, Kind.ORPHAN, left) for key in sorted(there - set(vouched))]


def _probe_of(
    inventory: Inventory, document: Document, probe: str, digest: str, action: Action, target: str
) -> Finding | None:
    key = documents.key_of(document)
    found = inventory.documents.get(layout.probe_document(probe))
    if isinstance(found, ProbeDocument) and found.digest != digest:
        return Finding(key, Kind.DISAGREES, "is of other weights than the probe has", action, target)
    if found is None and layout.probe_document(probe) not in inventory.keys:
        return Finding(key, Kind.ORPHAN, _NO_PROBE)
    return None


def _pairs(
    inventory: Inventory,
    kind: type[CliffsDocument] | type[HeadsDocument] | type[ExperimentDocument] | type[SelectionDocument],
    name: str,
    table_of: Callable[[str], str],
    action: Action,
    owner: Callable[..., Finding | None],
) -> list[Finding]:
    """Check tables that have a document each."""
    findings: list[Finding] = []
    for document in inventory.all(kind):
        own = layout.stem(documents.key_of(document))
        key = table_of(own)
        if (wrong := owner(document)) is not None:
            findings.append(wrong)
        elif key not in inventory.keys:
            findings.append(Finding(key, Kind.MISSING, "is missing", action, own))
        elif hashlib.sha256(inventory.objects.get(key)).hexdigest() != document.digest:
            text = f"differs from its digest in {documents.key_of(document)}"
            findings.append(Finding(key, Kind.DAMAGED, text, action, own))
    documented = {*inventory.of_kind(name), *(key for key in inventory.documents if layout.kind_of(key) == name)}
    known = {table_of(layout.stem(key)) for key in documented}
    for key in inventory.of_kind(f"{name}_table"):
        if key not in known:
            findings.append(_without_document(key, action))
    return findings


def _without_document(key: str, action: Action) -> Finding:
    own = layout.stem(key)
    if action is Action.RANK:
        return Finding(key, Kind.ORPHAN, f"has no {layout.cliffs_document(own)}", action, own)
    if layout.kind_of(key) == "heads_table":
        return Finding(key, Kind.ORPHAN, f"has no {layout.heads_document(own)}")
    if layout.kind_of(key) == "experiment_table":
        return Finding(key, Kind.ORPHAN, f"has no {layout.experiment_document(own)}")
    problem = f"has no {layout.selection_document(own)}: choose it again with `cliffstore select --replace`"
    return Finding(key, Kind.ORPHAN, problem)
