"""Probes for scoring without storing activations: found in the store or brought along, and held against the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError, ProbeError
from cliffstore.extract.job import LiveProbe
from cliffstore.model.identity import ModelSource
from cliffstore.model.sites import arrays_of
from cliffstore.run.captures import choose_dtype
from cliffstore.schema import ArrayIdentity, ProbeDocument, model_key
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights, read_probe, write_probe
from cliffstore.store.scores import ProbeKey, scored_units


@dataclass(frozen=True, slots=True)
class FoundProbe:
    """A probe and whether the store has it yet."""

    document: ProbeDocument
    weights: ProbeWeights
    in_store: bool

    @property
    def key(self) -> ProbeKey:
        return ProbeKey(self.document.name, self.document.digest, self.document.capture)

    @property
    def live(self) -> LiveProbe:
        """The probe as a worker takes it."""
        return LiveProbe(self.key, f"{self.document.site}/{self.document.layer}", self.weights)


def find_probes(config: ExtractConfig, source: ModelSource) -> list[FoundProbe]:
    """Return the probes that `--probe` names: of the store by name, of another store as `<store>/probes/<name>`.

    Raises
    ------
    ProbeError
        There is no such probe, or it was fitted on another model, dtype or on a probe of the same name.
    """
    found = [_find(config, given) for given in dict.fromkeys(config.probe)]
    names = [one.document.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"--probe: two of them are called {max(names, key=names.count)!r}")
    wanted = model_key(source.identity, choose_dtype(config, source))
    for one in found:
        if model_key(one.document.model, one.document.dtype) != wanted:
            raise ProbeError(
                f"probe {one.document.name!r} was fitted on {one.document.model.name} in {one.document.dtype}, which "
                f"is not this model ({source.identity.name} in {wanted[-1]}): its scores would mean nothing"
            )
    return found


def _find(config: ExtractConfig, given: str) -> FoundProbe:
    store = ObjectStore(config.store, config.storage_options)
    head, slash, name = given.rstrip("/").rpartition("/")
    if not slash:
        return FoundProbe(*read_probe(store, given), in_store=True)
    if not head.endswith(layout.PROBES):
        raise ProbeError(f"--probe {given!r}: give the name of a probe, or <store>/probes/<name> of another store")
    other = ObjectStore(head.removesuffix(layout.PROBES).rstrip("/") or ".", config.storage_options)
    document, weights = read_probe(other, name)
    in_store = store.exists(layout.probe_document(name))
    if in_store and read_probe(store, name)[0].digest != document.digest:
        raise ProbeError(f"store {config.store} has another probe {name!r} already, with other weights than {given}")
    return FoundProbe(document, weights, in_store)


def arrays_to_read(probes: Sequence[FoundProbe]) -> list[ArrayIdentity]:
    """Return the arrays that the probes read, each once."""
    arrays: dict[tuple[str, int], ArrayIdentity] = {}
    for probe in probes:
        document = probe.document
        (arrays[document.site, document.layer],) = arrays_of(document.model, [document.site], [document.layer])
    return list(arrays.values())


def bring_probes(objects: ObjectStore, probes: Sequence[FoundProbe]) -> None:
    """Copy probes of other stores into this one."""
    for probe in probes:
        if not probe.in_store:
            write_probe(objects, probe.document, probe.weights, replace=False)


def units_done(objects: ObjectStore, probes: Sequence[FoundProbe]) -> set[int]:
    """Return the units that have scores of every probe."""
    return set.intersection(*(scored_units(objects, probe.key) for probe in probes))
