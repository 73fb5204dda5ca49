"""Probes into a store: fitted on its examples, or a direction that was found elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields

from cliffstore.analyze.imported import Direction, as_given, calibrated, check_direction
from cliffstore.analyze.inputs import find_inputs
from cliffstore.analyze.labels import ProbeSettings
from cliffstore.analyze.large import returned_memory
from cliffstore.analyze.probe import SMALL, fit_probe, size_of
from cliffstore.config import ProbeConfig, check_name
from cliffstore.errors import ConfigError
from cliffstore.run.interventions.directions import as_vector
from cliffstore.run.progress import Piece, Reporter
from cliffstore.run.tasks import open_tasks
from cliffstore.schema import ProbeDocument
from cliffstore.settings import read_config
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import check_may_replace, keep_copies, list_probes, write_probe
from cliffstore.store.reader import StoreReader

_OF_A_DIRECTION = ("site", "model", "positions")
_OF_A_CALIBRATION = ("positive", "where", "test_where", "test_store", "class_weight", "seed")


@dataclass(frozen=True, slots=True)
class GivenDirection:
    """A direction as it is handed over; see `Store.import_probe`."""

    name: str
    weights: object
    layer: int
    bias: float | None
    calibrate: str | None


def check_settings(reader: StoreReader, name: str, settings: Mapping[str, object]) -> ProbeConfig:
    """Return settings of a fit in a store. Raises `ConfigError` where one is not known, or of the wrong kind."""
    check_name(name, "probe")
    return read_config(ProbeConfig, None, {"store": reader.url, "name": name, **settings})


def fit(
    catalog: Catalog,
    asked: ProbeConfig,
    reporter: Reporter,
    test_options: Mapping[str, object] | None,
    *,
    replace: bool,
) -> ProbeDocument:
    """Fit a probe and keep it, unless one of that name was fitted with the same settings on the same examples.

    Parameters
    ----------
    test_options : storage options of the store that `asked.test_store` names
    """
    objects = catalog.reader.objects
    with ExitStack() as stack:
        test = None
        if asked.test_store:
            test = stack.enter_context(Catalog(StoreReader(asked.test_store, test_options)))
        with returned_memory():
            inputs = find_inputs(catalog, probe_settings(asked), reporter.notice, test)
        held = next((probe for probe in list_probes(objects) if probe.name == asked.name), None)
        if held is not None and held.inputs == inputs.digest:
            keep_copies(objects, asked.name)
            reporter.stage(f"probe: {asked.name} is there already, fitted on the same examples")
            return held
        if held is not None:
            check_may_replace(asked.name, replace=replace)
        is_small = asked.workers is None and asked.executor != "ray" and size_of(catalog, inputs) < SMALL
        tasks = open_tasks("local", 1) if is_small else open_tasks(asked.executor, asked.workers)
        mapper = stack.enter_context(tasks)
        document, weights = fit_probe(
            catalog,
            inputs,
            mapper,
            lambda total: reporter.begin("probe", total),
            lambda: reporter.advance(Piece(noun="layers")),
            reporter.notice,
            test,
        )
        reporter.end()
    write_probe(objects, document, weights, replace=replace)
    return document


def take_in(
    catalog: Catalog,
    given: GivenDirection,
    settings: Mapping[str, object],
    notice: Callable[[str], None],
    test_options: Mapping[str, object] | None,
    *,
    replace: bool,
) -> ProbeDocument:
    """Keep a direction as a probe, as it is or with scale and offset fitted on a label; `test_options` as for `fit`."""
    if given.calibrate is not None and given.bias is not None:
        raise ConfigError("a direction has an offset that is given, or one that is calibrated: leave one out")
    label = {} if given.calibrate is None else {"label": given.calibrate}
    asked = check_settings(catalog.reader, given.name, {"layers": str(given.layer), **settings, **label})
    _check_effect(given, settings)
    w_D = as_vector(given.weights)
    direction = Direction(given.name, w_D, given.bias, asked.site, given.layer, asked.model, asked.positions)
    check_direction(catalog.reader, direction)
    if given.calibrate is None:
        document, kept = as_given(catalog.reader, direction, notice)
    else:
        with ExitStack() as stack:
            test = None
            if asked.test_store:
                test = stack.enter_context(Catalog(StoreReader(asked.test_store, test_options)))
            inputs = find_inputs(catalog, probe_settings(asked), notice, test)
            document, kept = calibrated(catalog, direction, inputs, notice, test)
    write_probe(catalog.reader.objects, document, kept, replace=replace)
    return document


def _check_effect(given: GivenDirection, settings: Mapping[str, object]) -> None:
    """Raise `ConfigError` where a setting would change nothing."""
    for name in (name for name, value in settings.items() if value is not None and name not in _OF_A_DIRECTION):
        option = name.replace("_", "-")
        if name not in _OF_A_CALIBRATION:
            raise ConfigError(f"{option} is of a probe that is fitted, and a direction is not: leave it out")
        if given.calibrate is None:
            raise ConfigError(f"{option} says what a direction is calibrated on: say --calibrate LABEL too")


def probe_settings(config: ProbeConfig) -> ProbeSettings:
    """Return what of a configuration says what to fit."""
    names = {field.name for field in fields(ProbeSettings)}
    return ProbeSettings(**config.model_dump(include=names))
