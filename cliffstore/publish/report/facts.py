"""What a store holds, for the first part of the page: each value beside where it comes from.

A value is counted by the SQL statement that stands with it, or read from the document that is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cliffstore.schema import CaptureDocument, CliffsDocument, PlanDocument
from cliffstore.store import documents, layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader, compact_ranges

_MOST_VALUES = 20


@dataclass(frozen=True, slots=True)
class Fact:
    """A value, what it is of, and the statement or the document that says so."""

    name: str
    value: str | int
    source: str
    kind: str = "text"
    """`text`, `count`, `bytes` or `digest`: how it is written."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many examples have one value; `value` is None where they have none."""

    value: str | None
    count: int


@dataclass(frozen=True, slots=True)
class CaptureFacts:
    """A capture, and how much of it is there."""

    document: CaptureDocument
    sites: dict[str, str]
    units: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What the store holds.

    Attributes
    ----------
    counts : examples, tokens, rows, units, skipped, and bytes of vectors before compression
    further_labels, further_sources : values that are not listed
    """

    url: str
    facts: Sequence[Fact]
    counts: dict[str, int]
    plans: Sequence[PlanDocument]
    captures: Sequence[CaptureFacts]
    skipped: Sequence[Share]
    labels: Sequence[Share]
    sources: Sequence[Share]
    further_labels: int
    further_sources: int
    failed: Sequence[Share]
    """Units with an error, by error."""

    @property
    def models(self) -> list[str]:
        """What the models are called, each once."""
        names = (f"{one.document.model.name}" for one in self.captures)
        return list(dict.fromkeys(names))


def read_facts(catalog: Catalog) -> StoreFacts:
    """Read what a store holds: its documents, its receipts, and counts over examples and units."""
    reader = catalog.reader
    manifest = reader.manifest
    tokenizer = manifest.tokenizer
    plans, captures = reader.plans(), [_capture(reader, capture) for capture in reader.captures()]
    counts = {
        "examples": _count(catalog, "SELECT count(*) FROM examples"),
        "tokens": _count(catalog, "SELECT sum(n_tokens) FROM units"),
        "rows": _count(catalog, "SELECT sum(n_rows) FROM units"),
        "units": _count(catalog, "SELECT count(*) FROM units"),
        "skipped": _count(catalog, "SELECT count(*) FROM skipped"),
        "bytes": sum(one.bytes for one in captures),
    }
    facts = [
        Fact("examples", counts["examples"], "SELECT count(*) FROM examples", "count"),
        Fact("tokens", counts["tokens"], "SELECT sum(n_tokens) FROM units", "count"),
        Fact(
            "rows: distinct token prefixes, each stored once",
            counts["rows"],
            "SELECT sum(n_rows) FROM units",
            "count",
        ),
        Fact("units of work", counts["units"], "SELECT count(*) FROM units", "count"),
        Fact("corpus rows that were skipped", counts["skipped"], "SELECT count(*) FROM skipped", "count"),
        Fact("vectors, before compression", counts["bytes"], f"{layout.RECEIPTS}/*/unit-*.json, bytes", "bytes"),
        Fact("created", manifest.created, f"{layout.MANIFEST}, created"),
        Fact("made with", f"cliffstore {manifest.cliffstore_version}", f"{layout.MANIFEST}, cliffstore_version"),
        Fact("store format", manifest.format_version, f"{layout.MANIFEST}, format_version"),
        Fact("tokenizer", tokenizer.name, f"{layout.MANIFEST}, tokenizer.name"),
        Fact("tokenizer digest", tokenizer.digest, f"{layout.MANIFEST}, tokenizer.digest", "digest"),
        Fact("template digest", tokenizer.template_digest, f"{layout.MANIFEST}, tokenizer.template_digest", "digest"),
        Fact(
            "marks of thinking",
            f"{tokenizer.think_open} … {tokenizer.think_close}" if tokenizer.think_open else "none",
            f"{layout.MANIFEST}, tokenizer.think_open, think_close",
        ),
    ]
    labels, further_labels = _shares(catalog, "SELECT label, count(*) FROM examples")
    sources, further_sources = _shares(catalog, "SELECT source, count(*) FROM examples")
    return StoreFacts(
        url=reader.url,
        facts=facts,
        counts=counts,
        plans=plans,
        captures=captures,
        skipped=_shares(catalog, "SELECT reason, count(*) FROM skipped")[0],
        labels=labels,
        sources=sources,
        further_labels=further_labels,
        further_sources=further_sources,
        failed=_shares(catalog, "SELECT error, count(*) FROM units WHERE error IS NOT NULL")[0],
    )


def read_cliffs_document(reader: StoreReader, probe: str) -> CliffsDocument | None:
    """Return how the cliffs of a probe were made, None where it has none."""
    try:
        return documents.read(reader.objects, CliffsDocument, layout.cliffs_document(probe))
    except FileNotFoundError:
        return None


def _capture(reader: StoreReader, document: CaptureDocument) -> CaptureFacts:
    receipts = reader.receipts(document.capture)
    layers: dict[str, list[int]] = {}
    for one in document.arrays:
        layers.setdefault(one.site, []).append(one.layer)
    sites = {site: compact_ranges(sorted(own)) for site, own in sorted(layers.items())}
    return CaptureFacts(document, sites, len(receipts), sum(receipt.bytes for receipt in receipts))


def _count(catalog: Catalog, statement: str) -> int:
    value = next(iter(catalog.arrow(statement).to_pylist()[0].values()))
    return int(value or 0)


def _shares(catalog: Catalog, statement: str) -> tuple[list[Share], int]:
    """Return values with their counts, the most frequent first, and how many further ones there are."""
    rows = catalog.arrow(f"{statement} GROUP BY 1 ORDER BY 2 DESC, 1 NULLS LAST").to_pylist()
    shares = [Share(*row.values()) for row in rows]
    return shares[:_MOST_VALUES], len(shares[_MOST_VALUES:])
