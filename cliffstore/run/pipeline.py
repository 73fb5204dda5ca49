"""From corpus to training set in one run: extract, probe, score, cliff, select, export.

Each stage leaves alone what is there already: units with receipts, a probe fitted on the same examples, units with
scores, cliffs of the same scores, an equal selection, an equal training set. So a run that was killed is started again
as it was, and ends with the same bytes. What can be known to be wrong is found before anything is computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cliffstore.access import check_url
from cliffstore.analyze.cliff import CliffReport
from cliffstore.analyze.plateau import PlateauRule
from cliffstore.config import PipelineConfig, SelectConfig, check_name, parse_ranges
from cliffstore.errors import ConfigError, SelectionError
from cliffstore.publish.criteria import SelectionSettings, check_settings
from cliffstore.publish.export import ExportReport, check_export
from cliffstore.publish.refusals import read_phrases
from cliffstore.publish.selection import SelectionReport, told
from cliffstore.run.progress import Reporter
from cliffstore.run.scoring import ScoringReport
from cliffstore.run.stages import ExtractReport, run_extraction
from cliffstore.run.store import Store
from cliffstore.schema import ProbeDocument

IN_STORE = {"store", "storage_options"}
"""Settings of a stage that say which store, not what to do."""


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """What each stage found and did."""

    extract: ExtractReport
    probe: ProbeDocument
    score: ScoringReport
    cliff: CliffReport
    select: SelectionReport
    export: ExportReport

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values."""
        return {
            "extract": self.extract.to_dict(),
            "probe": self.probe.model_dump(mode="json"),
            "score": asdict(self.score),
            "cliff": asdict(self.cliff),
            "select": asdict(self.select),
            "export": asdict(self.export),
        }


def run_pipeline(config: PipelineConfig, reporter: Reporter) -> PipelineReport:
    """Run all stages.

    Raises
    ------
    UserError
        A section is wrong; before extraction begins where that can be known.
    ExtractionError
        Some units failed. The stages behind extraction are not run: their training set would lack these examples.
    InterruptedRunError
        Ctrl-C or a polite kill; the same call goes on from there.
    """
    check_pipeline(config)
    extracted = run_extraction(config.extract, reporter)
    with Store(config.store, config.storage_options, reporter) as store:
        probe = store.fit_probe(**config.probe.model_dump(exclude=IN_STORE))
        reporter.stage(f"probe: {'; '.join(describe_probe(probe).splitlines())}")
        scored = store.score(**config.score.model_dump(exclude=IN_STORE))
        reporter.stage(f"score: {scored.tokens:,} tokens now, {scored.units_done_before} units had scores")
        ranked = store.cliff(config.cliff.probe[0], plateau=config.cliff.plateau, window=config.cliff.window)
        reporter.stage(f"cliff: {ranked.examples - ranked.without_thinking:,} examples with thinking ranked")
        selected = select_in(store, config.select)
        left_out = f"; {told(selected)}" if selected.left_out else ""
        reporter.stage(f"select: {selected.chosen} of {selected.candidates} candidates{left_out}")
        exported = store.export(**config.export.model_dump(exclude=IN_STORE))
        reporter.stage(f"export: {exported.rows} rows in {exported.path}")
    return PipelineReport(extracted, probe, scored, ranked, selected, exported)


def select_in(store: Store, config: SelectConfig) -> SelectionReport:
    """Make the selection that a configuration asks for."""
    return store.select(**config.model_dump(exclude=IN_STORE))


def describe_probe(probe: ProbeDocument) -> str:
    """Return the figures of a probe, for people: one line, and one more of what it is held against."""
    chosen = probe.chosen
    place = f"{probe.name}: {probe.kind} at {probe.site} layer {probe.layer}, position {probe.positions}"
    if chosen is None:
        return f"{place}, as it was given: nothing was measured"
    places = len({cell.positions for cell in probe.cells})
    layers = len({cell.layer for cell in probe.cells})
    tried = f"{layers} {'layer' if layers == 1 else 'layers'}" + (f" x {places} positions" if places > 1 else "")
    unseen = (
        f"unseen test AUROC {_interval(chosen.test_auroc, chosen.test_auroc_low, chosen.test_auroc_high)} "
        f"({probe.n_test} samples), "
        if probe.n_test
        else ""
    )
    folds = ""
    if chosen.cv_auroc is not None:
        folds = f", {_figure(chosen.cv_auroc)} ± {_figure(chosen.cv_auroc_sd)} over folds of the training part"
    return (
        f"{place} of {tried} tried, validation AUROC "
        f"{_interval(chosen.auroc, chosen.auroc_low, chosen.auroc_high)} "
        f"({probe.n_train} train, {probe.n_validation} validation){folds}\n"
        f"held against: {unseen}shuffled labels {_figure(probe.shuffled_auroc)}, "
        f"bag of tokens {_figure(probe.bag_auroc)}"
        + (f" ({_figure(probe.bag_test_auroc)} unseen)" if probe.bag_test_auroc is not None else "")
    )


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return f"{_figure(value, 4)} [{_figure(low)}, {_figure(high)}]"


def _figure(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def check_pipeline(config: PipelineConfig) -> None:
    """Find what is wrong with any section, as far as that can be known without corpus and store.

    Raises
    ------
    UserError
        The message names the section.
    """
    if config.extract.probe:
        raise ConfigError("extract.probe: a pipeline fits a probe on activations, and this stores none: leave it out")
    for layers in (config.extract.layers, config.probe.layers):
        if layers.strip() != "all":
            parse_ranges(layers)
    check_name(config.probe.name, "probe.name")
    PlateauRule.parse(config.cliff.plateau, config.cliff.window)
    check_selection(config.select, "select.")
    check_export(config.export, "export.")
    probe, selection = config.probe.name, config.select.name
    for option, named, made in (
        ("score.probe", ", ".join(config.score.probe), probe),
        ("cliff.probe", ", ".join(config.cliff.probe), probe),
        ("select.probe", config.select.probe, probe),
        ("export.selection", config.export.selection, selection),
    ):
        if named != made:
            raise ConfigError(f"{option} {named!r} is not what this pipeline makes ({made}): leave it out")
    if config.cliff.select is not None:
        raise ConfigError("cliff.select: in a pipeline `select` is a section of its own")
    check_url(config.store)


def check_selection(config: SelectConfig, section: str = "") -> None:
    """Find what is wrong with a selection before anything is ranked. Errors as for `check_pipeline`."""
    check_name(config.name, f"{section}name")
    try:
        check_settings(
            SelectionSettings(
                name=config.name,
                top=config.top,
                strategy=config.strategy,
                ascending=config.ascending,
                phrases=None if config.rules is None else read_phrases(config.rules),
                quotas=config.quota,
                dedupe=config.dedupe,
            )
        )
    except SelectionError as error:
        raise ConfigError(f"{section}{str(error).removeprefix('--')}") from None
