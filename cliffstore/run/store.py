"""`Store`: everything the command line does with a store, as Python calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from cliffstore.analyze.cliff import CliffReport
from cliffstore.analyze.clipping import KEEP
from cliffstore.analyze.comparison import ProbeCliffs, compare_cliffs
from cliffstore.analyze.random_directions import random_directions
from cliffstore.config import ExportConfig, check_name
from cliffstore.publish.comparison import Comparison, compare_selections
from cliffstore.publish.criteria import SelectionSettings
from cliffstore.publish.export import ExportReport, export_selection
from cliffstore.publish.refusals import read_phrases
from cliffstore.publish.selection import SelectionReport, select_examples, told
from cliffstore.run.clipping import ClipReport, KeptFigures, clip_corpus, clip_figures
from cliffstore.run.experiment.store import StoreExperiments
from cliffstore.run.heads.attention import StoreAttention
from cliffstore.run.heads.store import StoreHeads
from cliffstore.run.interventions.directions import write_direction
from cliffstore.run.lent_probes import lend
from cliffstore.run.origins import Origins
from cliffstore.run.ranking import draw_curves, rank
from cliffstore.run.repair import RepairReport, repair_store
from cliffstore.run.report.plotting import StorePlots
from cliffstore.run.report.reporting import StoreReports
from cliffstore.run.scoring import ScoringReport, score_store
from cliffstore.schema import ProbeDocument
from cliffstore.settings import read_config
from cliffstore.store.probes import read_probe


class Store(StoreAttention, StoreExperiments, StoreHeads, StorePlots, StoreReports):
    """A store to query and to build on.

    Parameters
    ----------
    url : path or fsspec URL
    storage_options : handed to fsspec (endpoint, credentials ...)
    reporter : told of progress and notices; log lines on standard error by default
    limits : what SQL may use: memory, seconds a statement, anything outside the store

    Raises
    ------
    StoreError
        There is no store at `url`, or it has a newer format.
    """

    def repair(self, **origins: object) -> RepairReport:
        """Repair what `verify` finds; nothing else may write to the store meanwhile.

        A store that is too damaged to be opened is repaired by `cliffstore.run.repair.repair_store`.

        Parameters
        ----------
        origins : fields of `Origins`: where models, adapters and corpora are, as tuples; how to compute
        """
        report = repair_store(self.reader.objects, Origins(**origins), self._reporter)  # type: ignore[arg-type]
        self.refresh()
        return report

    def fit_probe(self, name: str, *, replace: bool = False, **settings: object) -> ProbeDocument:
        """Fit a probe at every position and layer, choose one on validation, and keep it under `name`.

        Where the probe of that name was fitted with the same settings on the same examples, it is not fitted again.

        Parameters
        ----------
        replace : put it in the place of another probe of that name, whose scores and cliffs are removed
        settings : other fields of `ProbeConfig`

        Raises
        ------
        ConfigError, ProbeError, StoreError, QueryError
            The probe cannot be fitted as asked.
        """
        from cliffstore.run import fitting  # scikit-learn takes its time to load

        asked = fitting.check_settings(self.reader, name, settings)
        options = self.storage_options_for(asked.test_store) if asked.test_store else None
        document = fitting.fit(self._own, asked, self._reporter, options, replace=replace)
        self.refresh()
        return document

    def import_probe(
        self,
        name: str,
        weights: object,
        *,
        layer: int,
        bias: float | None = None,
        calibrate: str | None = None,
        replace: bool = False,
        **settings: object,
    ) -> ProbeDocument:
        """Keep a direction that was found elsewhere as a probe.

        Parameters
        ----------
        weights : float [D]: a NumPy array, a torch tensor or a list
        bias : b of score = w·h + b; default 0
        calibrate : label on which scale and offset are fitted, so that the score is a logit, and figures are found
        settings : `site`, `model`, `positions`; with `calibrate` also what chooses examples, as for `fit_probe`

        Raises
        ------
        ConfigError, ProbeError, StoreError
            It is no vector of the site's width, or has NaN, or cannot be calibrated as asked.
        """
        from cliffstore.run import fitting

        given = fitting.GivenDirection(name, weights, layer, bias, calibrate)
        other = settings.get("test_store")
        options = self.storage_options_for(str(other)) if other else None
        document = fitting.take_in(self._own, given, settings, self._reporter.notice, options, replace=replace)
        self.refresh()
        return document

    def random_probes(self, like: str, n: int = 5, *, seed: int = 0, replace: bool = False) -> list[ProbeDocument]:
        """Keep random directions as probes, a control for another probe: its site, layer and norm, with b = 0.

        They are called `<like>-random-<seed>-0` and so on; a name and a width give the same direction everywhere.

        Raises
        ------
        ConfigError, ProbeError, StoreError
            There is no such probe, or another one has such a name.
        """
        document, weights = read_probe(self.reader.objects, like)
        place = {"site": document.site, "model": document.alias, "positions": document.positions}
        found = []
        for number, w_D in enumerate(random_directions(weights.w_D, n, seed)):
            name = f"{like}-random-{seed}-{number}"
            found.append(self.import_probe(name, w_D, layer=document.layer, bias=0.0, replace=replace, **place))
        return found

    def export_probe(self, name: str, output: str) -> ProbeDocument:
        """Write a probe to a `.safetensors`, `.npz` or `.npy` file; path or URL.

        Raises
        ------
        ConfigError, ProbeError
            There is no such probe, or no such kind of file.
        """
        document, weights = read_probe(self.reader.objects, name)
        write_direction(output, document, weights, self.storage_options_for(output))
        if output.lower().endswith(".npy"):
            self._reporter.notice(f"a .npy file holds w alone; b is {weights.b}")
        return document

    def score(
        self,
        probe: str | Sequence[str],
        *,
        model: str | None = None,
        executor: str = "auto",
        actors: int | None = None,
    ) -> ScoringReport:
        """Score every extracted token that has no score of these probes yet; see `run.scoring.score_store`.

        Parameters
        ----------
        probe : one name or several; `all` means every probe of the store
        model : alias of a model that is not the probe's own; its scores are those of `<probe>.<alias>`
        """
        names = [probe] if isinstance(probe, str) else list(probe)
        if model is not None:
            names = [lend(self.reader, name, model) for name in names]
        try:
            return score_store(self.reader, names, self._reporter, executor=executor, actors=actors)
        finally:
            self.refresh()

    def cliff(self, probe: str, *, plateau: str = "mean", window: str = "all") -> CliffReport:
        """Rank examples by cliff; the result is the view `cliffs`.

        Parameters
        ----------
        plateau : mean, median, max, or a quantile such as q0.9, of the scores over the thinking
        window : all thinking tokens, or some: last:32, first:50%

        Raises
        ------
        ConfigError, ProbeError
            Plateau or window is none; or there is no such probe, or no scores of it.
        """
        report = rank(self.reader, probe, plateau, window, self._reporter)
        self.refresh()
        return report

    def curves(self, probe: str | Sequence[str], *, positions: str = "-64..0", **settings: object) -> pa.Table:
        """Return mean curves: the score by distance from the decision position; nothing is padded.

        Columns: probe, group, to_decision, n (examples that have a score there), mean, and the edges low and high of
        a bootstrap band over examples.

        Parameters
        ----------
        probe : one name or several
        positions : distances from the decision position
        settings : other fields of `CurveConfig`: `group_by`, `where`, `resamples`, `level`, `seed`, `all_tokens`

        Raises
        ------
        ConfigError, ProbeError, QueryError
            Curves cannot be drawn as asked.
        """
        probes = (probe,) if isinstance(probe, str) else tuple(probe)
        return draw_curves(self._own, probes, positions, settings, self._reporter)

    def compare_cliffs(self, probes: str | Sequence[str]) -> list[ProbeCliffs]:
        """Return figures of the cliffs of probes, ranked before, and their rank correlation with the first one's.

        Raises `ProbeError` where one is not there.
        """
        return compare_cliffs(self._own, (probes,) if isinstance(probes, str) else probes)

    def clip(self, output: str, *, keep: Sequence[float] = KEEP, where: str | None = None) -> ClipReport:
        """Write a corpus of the examples' thinking cut to percentages; see `run.clipping.clip_corpus`."""
        return clip_corpus(
            self._own, output, tuple(keep), where, self.storage_options_for(output), self._reporter.notice
        )

    def clip_report(self, probe: str, *, where: str | None = None) -> tuple[KeptFigures, ...]:
        """Return the scores of clipped examples by fraction kept; see `run.clipping.clip_figures`."""
        return clip_figures(self._own, probe, where, self._reporter.notice)

    def select(
        self,
        name: str,
        *,
        top: str | int,
        strategy: str = "cliff",
        ascending: bool = False,
        seed: int = 0,
        rules: str | None = None,
        probe: str | None = None,
        where: str | None = None,
        min_plateau: float | None = None,
        quota: str | Sequence[str] = (),
        dedupe: str | Sequence[str] = (),
        replace: bool = False,
    ) -> SelectionReport:
        """Choose training examples, into the view `selections`; see `publish.criteria` for what can be asked for.

        `probe` may be left out where only one has cliffs; `rules` is a file of phrases that refusals begin with.
        """
        settings = SelectionSettings(
            name=check_name(name, "selection"),
            top=str(top),
            strategy=strategy,
            ascending=ascending,
            seed=seed,
            probe=probe,
            where=where,
            phrases=None if rules is None else read_phrases(rules),
            min_plateau=min_plateau,
            quotas=(quota,) if isinstance(quota, str) else tuple(quota),
            dedupe=(dedupe,) if isinstance(dedupe, str) else tuple(dedupe),
        )
        report = select_examples(self._own, settings, replace=replace)
        self.refresh()
        if report.chosen < report.wanted:
            self._reporter.notice(f"only {report.chosen} of {report.wanted} examples could be chosen: {told(report)}")
        return report

    def compare_selections(self, first: str, second: str) -> Comparison:
        """Hold two selections against each other: overlap and rank correlation; see `publish.comparison`."""
        return compare_selections(self._own, first, second)

    def export(
        self, selection: str, output: str, *, output_options: Mapping[str, object] | None = None, **settings: object
    ) -> ExportReport:
        """Write a selection as a training set, with a dataset card beside it.

        Parameters
        ----------
        output : folder, or file that ends in `.parquet`; path or URL
        output_options : storage options of `output`; by default the store's, where both have the same scheme
        settings : other fields of `ExportConfig`

        Raises
        ------
        ConfigError, SelectionError, QueryError
            It cannot be written as asked.
        """
        asked = {"store": self.reader.url, "selection": selection, "output": output, **settings}
        options = self.storage_options_for(output) if output_options is None else output_options
        return export_selection(self._own, read_config(ExportConfig, None, asked), options, self._reporter.notice)
