"""Probes for scoring without storing activations: found in the store or brought along, and held against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError, ProbeError
from cliffstore.extract.job import LiveProbe
from cliffstore.model.identity import ModelSource
from cliffstore.model.sites import arrays_of
from cliffstore.run.captures import choose_dtype, draft_capture
from cliffstore.run.lent_probes import held_as, lent
from cliffstore.schema import ArrayIdentity, CaptureDocument, Interventions, ProbeDocument, model_key
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


def find_probes(
    config: ExtractConfig,
    source: ModelSource,
    interventions: Interventions | None = None,
    captures: Sequence[CaptureDocument] = (),
) -> list[FoundProbe]:
    """Return the probes that `--probe` names: of the store by name, of another store as `<store>/probes/<name>`.

    Scores under interventions are others than those of the bare model, so a probe that was fitted without them gives
    them under a name of their own (see `lent_probes.py`).

    Parameters
    ----------
    captures : of the store

    Raises
    ------
    ProbeError
        There is no such probe, or it was fitted on another model, dtype, under other interventions or on a probe of
        the same name.
    """
    found = [_find(config, source, given, interventions, captures) for given in dict.fromkeys(config.probe)]
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


def read_named_probe(given: str, url: str, options: Mapping[str, object]) -> tuple[ProbeDocument, ProbeWeights, bool]:
    """Return a probe by its name in a store, or as `<store>/probes/<name>`, and whether it is of another store.

    Raises
    ------
    ProbeError
        There is none of that name, or the name is malformed.
    """
    head, slash, name = given.rstrip("/").rpartition("/")
    if not slash:
        return *read_probe(ObjectStore(url, options), given), False
    if not head.endswith(layout.PROBES):
        raise ProbeError(f"probe {given!r}: give the name of a probe, or <store>/probes/<name> of another store")
    other = ObjectStore(head.removesuffix(layout.PROBES).rstrip("/") or ".", options)
    return *read_probe(other, name), True


def _find(
    config: ExtractConfig,
    source: ModelSource,
    given: str,
    interventions: Interventions | None,
    captures: Sequence[CaptureDocument],
) -> FoundProbe:
    document, weights, is_foreign = read_named_probe(given, config.store, config.storage_options)
    changes = interventions.digest if interventions is not None else None
    if document.changes == changes and not is_foreign:
        return FoundProbe(document, weights, in_store=True)
    if document.changes != changes:
        if document.interventions is not None or interventions is None:
            raise ProbeError(
                f"probe {document.name!r} is of {document.alias!r}, a model under "
                f"{'interventions' if interventions is None else 'other interventions'}: "
                f"{'give them with --intervene' if interventions is None else 'give the same, or another probe'}"
            )
        arrays = arrays_of(document.model, [document.site], [document.layer])
        stored = [one.capture for one in captures if one.alias == config.model_alias and arrays[0] in one.arrays]
        name = stored[0] if stored else draft_capture(config, source, arrays, interventions).name
        document = lent(document, config.model_alias, name, interventions)
    held = held_as(ObjectStore(config.store, config.storage_options), document)
    return FoundProbe(held or document, weights, held is not None)


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
