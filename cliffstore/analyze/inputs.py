"""All that a fit depends on, vectors apart: the layers and captures to read, samples, labels and their folds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from uuid import uuid4

import numpy as np

from cliffstore.analyze.labels import LabelledExamples, Notice, ProbeSettings, one_class, read_labels
from cliffstore.analyze.places import DECISION, Place, parse_places
from cliffstore.analyze.samples import LabelledRows, read_samples
from cliffstore.analyze.split import FOLDS, VALIDATION, Deal, both_classes, deal
from cliffstore.config import parse_ranges
from cliffstore.errors import ProbeError
from cliffstore.schema import model_key
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader, compact_ranges
from cliffstore.store.writer import capture_specs

_HOW = ("name", "memory_budget", "out_of_core", "test_store")
"""Settings that do not change what is found: how to compute it, and what it is called."""


@dataclass(frozen=True, slots=True)
class VectorSource:
    """Where vectors of one model and site are read from; pickles.

    Attributes
    ----------
    session : of one fit, in which a process opens the store once
    """

    url: str
    storage_options: Mapping[str, object]
    alias: str
    site: str
    session: str


@dataclass(frozen=True, slots=True)
class FitInputs:
    """What `find_inputs` found; `samples` and `test` go by place, a test is None where there is none.

    Attributes
    ----------
    captures : of the layers, in their order
    deal : the fold of every prompt, the same at all places and layers
    """

    settings: ProbeSettings
    source: VectorSource
    layers: tuple[int, ...]
    captures: tuple[str, ...]
    positive: str
    samples: tuple[LabelledRows, ...]
    deal: Deal
    test: tuple[LabelledRows | None, ...]
    test_source: VectorSource | None = None
    test_captures: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256: a probe fitted on equal inputs is the same probe, whatever its name."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in _HOW}
        named = {**settings, "alias": self.source.alias, "layers": self.layers}
        found = hashlib.sha256(json.dumps([named, self.captures, self.positive, self.test_captures]).encode())
        for rows in (*self.samples, *self.test):
            if rows is not None:
                found.update(rows.place.name.encode() + b"\0" + rows.rows_N.tobytes() + rows.y_N.tobytes())
                found.update(rows.groups_N.tobytes())  # the split depends on them
        return found.hexdigest()


def find_inputs(catalog: Catalog, settings: ProbeSettings, notice: Notice, test: Catalog | None = None) -> FitInputs:
    """Return what a fit would use.

    Parameters
    ----------
    test : of the store that has the test set, where it is another one

    Raises
    ------
    ProbeError
        One class only, an unknown label, too few prompts, a test store of another model.
    StoreError
        A layer or site is not captured.
    """
    reader = catalog.reader
    alias = settings.model or reader.default_alias()
    places = parse_places(settings.positions)
    layers = captured_layers(reader, settings.site, alias, settings.layers)
    captures = tuple(reader.find_array(settings.site, layer, alias)[0].capture for layer in layers)
    labelled, positive = read_labels(catalog, settings, settings.where, notice)
    found, unextracted = read_samples(catalog, labelled, places, sorted(set(captures)), notice)
    if not any(len(one.rows_N) for one in found):
        if unextracted:
            raise ProbeError(one_class(settings, settings.where, [], 0))
        raise ProbeError(_nothing_stored(settings, places))
    samples, dealt = _dealt(replace(settings, positive=positive), labelled, found, notice)
    inputs = FitInputs(
        settings,
        _source(reader, alias, settings.site),
        tuple(layers),
        captures,
        positive,
        tuple(samples),
        dealt,
        (None,) * len(samples),
    )
    if settings.test_where is None and test is None:
        return inputs
    return _with_test(inputs, labelled, catalog, test, notice)


def captured_layers(reader: StoreReader, site: str, alias: str, text: str) -> list[int]:
    """Return the layers that `text` (`all`, `0-29`, `8,16`) names among those captured.

    Raises
    ------
    ProbeError
        A layer is not captured, or nothing of the site is.
    """
    held = sorted(
        spec.layer
        for capture in reader.captures()
        for spec in capture_specs(capture)
        if (spec.alias, spec.site) == (alias, site)
    )
    if not held:
        reader.find_array(site, -1, alias)  # raises, and says what is captured
    if text.strip() == "all":
        return held
    ranges = parse_ranges(text)
    absent = [layer for one in ranges for layer in (one.start, one.stop - 1) if layer not in held]
    if absent:
        raise ProbeError(f"layer {absent[0]} of {site} is not in the store; it has: {compact_ranges(held)}")
    return [layer for layer in held if any(layer in one for one in ranges)]


def _dealt(
    settings: ProbeSettings, labelled: LabelledExamples, found: Sequence[LabelledRows], notice: Notice
) -> tuple[list[LabelledRows], Deal]:
    """Deal the prompts of all samples; places that do not have both classes on both sides are left out and told."""
    index_E = labelled.find(np.unique(np.concatenate([one.examples_N for one in found])))
    y_E = labelled.y_E[index_E]
    if not both_classes(y_E):
        value = str(settings.positive) if y_E.any() else f"not {settings.positive}"
        raise ProbeError(one_class(settings, settings.where, [value], len(y_E)))
    dealt = deal(y_E, labelled.groups_E[index_E], settings.seed)
    if dealt.n_folds < FOLDS:
        notice(f"cross-validation has {dealt.n_folds} folds: there are too few distinct prompts of a class for more")
    samples = []
    for one in found:
        fold_N = dealt.of(one.groups_N)
        if both_classes(one.y_N[fold_N == VALIDATION]) and both_classes(one.y_N[fold_N != VALIDATION]):
            samples.append(one)
        else:
            n = len(np.unique(one.examples_N))
            notice(f"position {one.place.name} is left out: {n} examples have a vector there, too few to split")
    if not samples:
        raise ProbeError("no position has both classes on both sides of the split: extract more, or widen --where")
    return samples, dealt


def _nothing_stored(settings: ProbeSettings, places: Sequence[Place]) -> str:
    chosen = f" where {settings.where}" if settings.where else ""
    if [place.name for place in places] == [DECISION]:
        return (
            f"no example{chosen} has a vector at its decision position, on which a probe is fitted: "
            "extract with `decision` among the --positions, into another --store"
        )
    names = ", ".join(place.name for place in places)
    return (
        f"no example{chosen} has an extracted vector at {names}: choose other --positions, or extract these into "
        "another --store"
    )


def _with_test(
    inputs: FitInputs, labelled: LabelledExamples, catalog: Catalog, other: Catalog | None, notice: Notice
) -> FitInputs:
    """Add a test set, of this store or of another one; examples with a prompt that was fitted with are left out."""
    where = inputs.settings.test_where
    settings = replace(inputs.settings, positive=inputs.positive)
    source, captures = inputs.source, inputs.captures
    if other is not None:
        source, captures = _source_of_test(inputs, catalog.reader, other.reader)
    test, _ = read_labels(other or catalog, settings, where, notice)
    unseen_E = ~np.isin(test.groups_E, labelled.groups_E)
    if not unseen_E.all():
        notice(f"{int((~unseen_E).sum())} test examples have a prompt that the probe was fitted with and are left out")
    option = "--test-where" if where is not None else "--test-store"
    test = test.chosen(unseen_E)
    if not both_classes(test.y_E):
        raise ProbeError(f"{option} leaves one class only: a test needs two")
    places = [one.place for one in inputs.samples]
    found, _ = read_samples(other or catalog, test, places, sorted(set(captures)), notice)
    kept = tuple(one if both_classes(one.y_N) else None for one in found)
    for place, one in zip(places, kept, strict=True):
        if one is None and any(kept):
            notice(f"position {place.name} has no test figures: its test examples are of one class")
    if not any(kept):
        raise ProbeError(f"{option} leaves one class only that is extracted: a test needs two")
    tested = () if other is None else tuple(captures)
    return replace(inputs, test=kept, test_source=source, test_captures=tested)


def _source_of_test(inputs: FitInputs, reader: StoreReader, other: StoreReader) -> tuple[VectorSource, tuple[str, ...]]:
    """Return where a test set of another store is read.

    Raises
    ------
    ProbeError
        It is of another model, or of another width.
    StoreError
        It has no such site or layer.
    """
    alias = inputs.settings.model or other.default_alias()
    captures = []
    for layer in inputs.layers:
        own, own_array = reader.find_array(inputs.source.site, layer, inputs.source.alias)
        found, array = other.find_array(inputs.source.site, layer, alias)
        if model_key(own.model, own.dtype) != model_key(found.model, found.dtype):
            raise ProbeError(
                f"--test-store {other.url} is of another model ({found.model.name}, {found.dtype}) than this store "
                f"({own.model.name}, {own.dtype}): a probe means nothing there"
            )
        if array.row_shape != own_array.row_shape:
            raise ProbeError(
                f"--test-store {other.url} has {inputs.source.site} of layer {layer} with rows of shape "
                f"{list(array.row_shape)}, this store has {list(own_array.row_shape)}"
            )
        captures.append(found.capture)
    return _source(other, alias, inputs.source.site), tuple(captures)


def _source(reader: StoreReader, alias: str, site: str) -> VectorSource:
    return VectorSource(reader.url, dict(reader.objects.storage_options), alias, site, uuid4().hex)
