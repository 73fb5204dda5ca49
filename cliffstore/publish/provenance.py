"""What a selection was made with: its document, its probe, and whether probe and cliffs are still the same.

A probe may be fitted again under its name, and its cliffs ranked by another rule. What leads back to a selection says
so, or is refused.
"""

from __future__ import annotations

from cliffstore.errors import SelectionError
from cliffstore.publish.candidates import cliffs_digest
from cliffstore.schema import ProbeDocument, SelectionDocument
from cliffstore.store import documents, layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe


def read_selection(catalog: Catalog, name: str) -> SelectionDocument:
    """Return the document of a selection. Raises `SelectionError` where there is none; the message names those."""
    known = catalog.arrow("SELECT DISTINCT selection FROM selections ORDER BY 1")["selection"].to_pylist()
    if name not in known:
        raise SelectionError(
            f"store {catalog.reader.url} has no selection {name!r}; it has: {', '.join(known) or 'none'}"
        )
    try:
        return documents.read(catalog.reader.objects, SelectionDocument, layout.selection_document(name))
    except FileNotFoundError:
        raise SelectionError(f"selection {name!r} is not whole: run its `cliffstore select` again") from None


def read_its_probe(objects: ObjectStore, selection: SelectionDocument) -> ProbeDocument | None:
    """Return the probe that a selection was made with, None where it was made without one.

    Raises
    ------
    ProbeError
        It is gone.
    SelectionError
        It has other weights now, and did not choose these examples.
    """
    if selection.probe is None:
        return None
    probe, _ = read_probe(objects, selection.probe)
    if probe.digest != selection.probe_digest:
        raise SelectionError(
            f"probe {selection.probe!r} has other weights now than selection {selection.name!r} was chosen with: "
            "choose again with `cliffstore select --replace`"
        )
    return probe


def told_of_cliffs(objects: ObjectStore, selection: SelectionDocument) -> str | None:
    """Return what to tell where a selection was made with other cliffs than its probe has now; None where not."""
    if selection.probe is None or selection.cliffs_digest is None:
        return None
    if selection.cliffs_digest == cliffs_digest(objects, selection.probe):
        return None
    return f"probe {selection.probe!r} has other cliffs now than selection {selection.name!r} was chosen with"
