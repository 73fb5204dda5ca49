"""Everything that lies in a store, and every document of it that can be believed.

All keys come from one listing. Each document is read and compared, byte by byte, with what cliffstore would write for
its content; those that are kept twice are compared with their copy, and where the original is damaged and the copy is
not, the checks that follow go by the copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cliffstore.errors import DamagedStoreError
from cliffstore.schema import DOCUMENTS, Document, ProbeDocument, canonical, damaged
from cliffstore.store import documents, layout
from cliffstore.store.checks.findings import Action, Finding, Kind
from cliffstore.store.objects import ObjectStore

D = TypeVar("D", bound=Document)

_REPLACED = ("probe", "weights", "cliffs", "heads", "experiment", "selection")
"""Kinds that may be written anew. The original is written first, so where the two differ, it is the newer one."""
_ACTIONS = {"score_receipt": Action.SCORE, "unit_error": Action.REMOVE}


@dataclass(frozen=True, slots=True)
class Inventory:
    """What lies in a store.

    Attributes
    ----------
    keys : of all whole objects, copies apart
    kinds : the same by their kinds, sorted
    documents : key -> document, of those that can be believed or whose copy can
    n_documents : documents and copies that were looked at
    """

    objects: ObjectStore
    keys: frozenset[str]
    kinds: Mapping[str, Sequence[str]]
    documents: dict[str, Document]
    n_documents: int

    def all(self, kind: type[D]) -> list[D]:
        """Return the believable documents of a kind, in the order of their keys."""
        return [document for document in self.documents.values() if isinstance(document, kind)]

    def of_kind(self, kind: str) -> Sequence[str]:
        """Return the keys of a kind."""
        return self.kinds.get(kind, ())

    def lost(self, kind: str) -> list[str]:
        """Return the keys of documents that are there and cannot be believed, nor their copies."""
        return [key for key in self.of_kind(kind) if key not in self.documents]


@dataclass(frozen=True, slots=True)
class _Look:
    """One object: its bytes where they are to be compared, and what is wrong with it (None: nothing)."""

    content: bytes = b""
    document: Document | None = None
    kind: Kind | None = None
    problem: str = ""


def take_inventory(objects: ObjectStore) -> tuple[Inventory, list[Finding]]:
    """List a store and read its documents."""
    listed = objects.list("", temporary=True)
    whole = [key for key in listed if not layout.is_temporary(key)]
    originals = [key for key in whole if layout.original_of(key) is None]
    copied = {original: layout.copy_of(original) for key in whole if (original := layout.original_of(key)) is not None}
    findings = [_temporary(key) for key in listed if layout.is_temporary(key)]
    kinds: dict[str, list[str]] = {}
    for key in originals:
        kinds.setdefault(layout.kind_of(key) or "", []).append(key)
    findings += [_unknown(key) for key in kinds.get("", ())]
    findings += [_unknown(copy) for key, copy in copied.items() if layout.kind_of(key) not in layout.COPIED]
    there = frozenset(originals)
    keys = _documents_of(kinds, copied)
    places = [*(key for key in keys if key in there), *(copied[key] for key in keys if key in copied)]
    looks = {place: _look(place, content) for place, content in objects.get_many(places, missing_ok=True)}
    believed: dict[str, Document] = {}
    for key in keys:
        own, copy = looks.get(key, _MISSING), looks.get(layout.copy_of(key), _MISSING)
        is_pair = layout.kind_of(key) in layout.COPIED
        findings += _pair(key, own, copy) if is_pair else _single(key, own)
        document = copy.document if is_pair and own.kind is not None else own.document
        if document is not None:
            believed[key] = document
    inventory = Inventory(objects, there, kinds, believed, len(places))
    weights = sorted({*kinds.get("weights", ()), *(key for key in copied if layout.kind_of(key) == "weights")})
    for key in weights:
        findings += _weights(inventory, key, key in there, key in copied)
    return inventory, findings


def _documents_of(kinds: Mapping[str, Sequence[str]], copied: Iterable[str]) -> list[str]:
    originals = {key for kind in DOCUMENTS for key in kinds.get(kind, ())}
    return sorted(originals | {key for key in copied if layout.kind_of(key) in DOCUMENTS})


_MISSING = _Look(kind=Kind.MISSING, problem="is missing")


def _look(place: str, content: bytes) -> _Look:
    """Judge a document, or a copy, by itself."""
    key = layout.original_of(place) or place
    kind = str(layout.kind_of(key))
    try:
        document = documents.parse(DOCUMENTS[kind], key, content)
        if canonical(json.loads(content)) != content:
            raise damaged(key, "is not written as cliffstore writes it")
    except DamagedStoreError as error:
        return _Look(kind=Kind.DAMAGED, problem=error.problem)
    return _Look(content if kind in layout.COPIED else b"", document)


def _weights(inventory: Inventory, key: str, there: bool, copied: bool) -> list[Finding]:
    """Judge the weights of a probe by the digest in its document."""
    owner = layout.probe_document(key.split("/")[1])
    document = inventory.documents.get(owner)
    if not isinstance(document, ProbeDocument):
        places = [key] * there + [layout.copy_of(key)] * copied
        if owner in inventory.keys:
            return [Finding(place, Kind.DISAGREES, f"cannot be checked: {owner} is damaged") for place in places]
        prefix = f"{layout.scores_of(key.split('/')[1])}/"
        if any(receipt.startswith(prefix) for receipt in inventory.of_kind("score_receipt")):
            problem = f"has scores, but {owner} is lost: bring it from a backup, or fit the probe again"
            return [Finding(place, Kind.ORPHAN, problem) for place in places]
        problem = f"are the weights of a probe without {owner}, as an interrupted fit leaves them"
        return [Finding(place, Kind.ORPHAN, problem, Action.REMOVE) for place in places]
    digest = document.file_digest

    def look(place: str) -> _Look:
        content = inventory.objects.get(place)
        if hashlib.sha256(content).hexdigest() != digest:
            return _Look(kind=Kind.DAMAGED, problem=f"differs from its digest in {owner}")
        return _Look(content)

    return _pair(key, look(key) if there else _MISSING, look(layout.copy_of(key)) if copied else _MISSING)


def _single(key: str, look: _Look) -> list[Finding]:
    """Judge a document that is there once. Whose a damaged one is, its key still says."""
    if look.kind is None:
        return []
    kind, name = str(layout.kind_of(key)), key.split("/")[1]
    action = _ACTIONS.get(kind, Action.EXTRACT)
    return [Finding(key, look.kind, look.problem, action, name, layout.unit_of(key))]


def _pair(key: str, original: _Look, copy: _Look) -> list[Finding]:
    """Judge an object and its copy."""
    place = layout.copy_of(key)
    if original.kind is None and copy.kind is None:
        if original.content == copy.content:
            return []
        if layout.kind_of(key) in _REPLACED:
            return [Finding(place, Kind.DISAGREES, f"is older than {key}", Action.RESTORE, key)]
        return [Finding(key, Kind.DISAGREES, f"differs from {place}, and both are sealed: remove the wrong one")]
    if original.kind is None:
        assert copy.kind is not None
        return [Finding(place, copy.kind, copy.problem, Action.RESTORE, key)]
    if copy.kind is None:
        return [Finding(key, original.kind, original.problem, Action.RESTORE, place)]
    return [
        Finding(key, original.kind, f"{original.problem}, and there is no good copy: bring one from a backup"),
        Finding(place, copy.kind, copy.problem),
    ]


def _temporary(key: str) -> Finding:
    problem = "is half a file, of a process that was killed or still writes"
    return Finding(key, Kind.ORPHAN, problem, Action.REMOVE)


def _unknown(key: str) -> Finding:
    return Finding(key, Kind.UNKNOWN, "is nothing that cliffstore writes: remove it, or keep it elsewhere")
