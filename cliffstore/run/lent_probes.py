"""A probe lent to another model of a store: the same weights, over other vectors, under a name of its own.

Scores are kept by the name of their probe. So those of a tuned model, or of one under interventions, by a probe that
was fitted on the model as it is, are those of `<probe>.<model alias>`, and are never mixed with the probe's own.
"""

from __future__ import annotations

from cliffstore.config import check_name
from cliffstore.errors import ConfigError, ProbeError
from cliffstore.run.scoring import ALL
from cliffstore.schema import Interventions, ProbeDocument
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe, write_probe
from cliffstore.store.reader import StoreReader


def lent(document: ProbeDocument, alias: str, capture: str, interventions: Interventions | None) -> ProbeDocument:
    """Return a probe as it scores another model. Raises `ConfigError` where its name becomes too long."""
    name = check_name(f"{document.name}.{alias}", "probe")
    return document.model_copy(
        update={"name": name, "alias": alias, "capture": capture, "interventions": interventions}
    )


def lend(reader: StoreReader, name: str, alias: str) -> str:
    """Lend a probe of a store to the model of an alias, unless it is of that model, and return its name there.

    Raises
    ------
    ConfigError
        `all` probes are asked for.
    ProbeError
        There is no such probe, or another one has the name.
    StoreError
        The probe's array is not captured of that model.
    """
    if name == ALL:
        raise ConfigError(f"probe {ALL!r} of model {alias!r}: name the probes that are to score another model")
    document, weights = read_probe(reader.objects, name)
    if document.alias == alias:
        return name
    capture, _ = reader.find_array(document.site, document.layer, alias)
    found = lent(document, alias, capture.capture, capture.interventions)
    if held_as(reader.objects, found) is None:
        found = found.model_copy(update={"model": capture.model, "dtype": capture.dtype})
        write_probe(reader.objects, found, weights, replace=False)
    return found.name


def held_as(objects: ObjectStore, found: ProbeDocument) -> ProbeDocument | None:
    """Return the probe that a store has under a name, None where it has none.

    Raises
    ------
    ProbeError
        It has other weights, or is of other interventions.
    """
    if not objects.exists(layout.probe_document(found.name)):
        return None
    held = read_probe(objects, found.name)[0]
    if held.digest != found.digest:
        raise ProbeError(f"store {objects.url} has another probe {found.name!r} already, with other weights")
    if held.changes != found.changes:
        raise ProbeError(
            f"store {objects.url} has a probe {found.name!r} already, of other interventions: give another "
            "--model-alias"
        )
    return held
