"""What `Store` does with experiments: running them, reading them, and drawing them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from cliffstore.errors import StoreError
from cliffstore.run.origins import Origins
from cliffstore.run.queries import StoreQueries
from cliffstore.schema import ExperimentDocument
from cliffstore.store import documents, layout, tables

if TYPE_CHECKING:
    from cliffstore.publish.charts.theme import Spec
    from cliffstore.run.experiment.settings import ExperimentReport
    from cliffstore.run.report.plotting import Plot

FILES = ("experiment.parquet", "experiment.csv", "texts.parquet", "experiment.svg", "experiment.png", "experiment.json")
"""What `output` gets; the last one is the chart as Vega-Lite."""


class StoreExperiments(StoreQueries):
    """The part of `Store` that switches traced heads off and measures what changes."""

    def experiment_heads(
        self,
        probe: str,
        *,
        name: str | None = None,
        output: str | None = None,
        model: str | None = None,
        adapter: str | None = None,
        device: str = "auto",
        **settings: object,
    ) -> ExperimentReport:
        """Trace heads on half of the harmful prompts, switch the worst off on the others and on benign ones.

        The result is in the view `experiments`. A run that was cut off goes on where it was.

        Parameters
        ----------
        name : of the result; by default `<probe>-experiment`
        output : folder, path or URL, for the table, what was generated, and the chart
        model, adapter : where they are, if not where the store says
        settings : other fields of `ExperimentSettings`: trace, shares, random, random_generate, scale, keep_norm,
            positions, harmful_where, benign_where, limit, thinking, new_tokens ...

        Raises
        ------
        ConfigError, ProbeError, ModelError, StoreError, QueryError
            It cannot be done as asked.
        """
        from dataclasses import fields, replace

        from cliffstore.errors import ConfigError
        from cliffstore.run.experiment.experiment import run_experiment
        from cliffstore.run.experiment.settings import ExperimentSettings

        known = {field.name for field in fields(ExperimentSettings)}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(f"experiments have no setting {unknown[0]!r}: choose from {', '.join(sorted(known))}")
        asked = ExperimentSettings(probe=probe, name=name or f"{probe}-experiment", **settings)  # type: ignore[arg-type]
        origins = Origins(models=(model,) if model else (), adapters=(adapter,) if adapter else (), device=device)
        report, found, chosen = run_experiment(self._own, asked, origins, self._reporter)
        self.refresh()
        if output is None:
            return report
        from cliffstore.run.experiment.settings import BENIGN, HARMFUL
        from cliffstore.run.experiment.table import texts_of

        statement = "SELECT example, id FROM examples WHERE list_contains($1, example)"
        ids = self.sql(statement, [chosen.measured]).fetchall()
        texts = texts_of(found, {HARMFUL: chosen.harmful, BENIGN: chosen.benign}, dict(ids))
        return replace(report, files=self._write_experiment(report.name, output, texts))

    def experiment(self, name: str) -> tuple[ExperimentDocument, pa.Table]:
        """Return an experiment: what it is of, and its table. Raises `StoreError` where there is none."""
        objects = self.reader.objects
        try:
            document = documents.read(objects, ExperimentDocument, layout.experiment_document(name))
        except FileNotFoundError:
            names = [
                layout.stem(key) for key in objects.list(layout.EXPERIMENTS) if layout.kind_of(key) == "experiment"
            ]
            known = ", ".join(names) or "none yet; make one with `cliffstore heads experiment`"
            raise StoreError(f"store {objects.url} has no experiment {name!r}; it has: {known}") from None
        return document, tables.read(objects, layout.experiment_table(name))

    def plot_experiment(self, name: str, *, theme: Literal["light", "dark"] = "light") -> Plot:
        """Return the chart of an experiment: the share of heads against score, refusals and perplexity."""
        from cliffstore.run.report.plotting import Plot

        return Plot("experiment", self._experiment_spec(name, theme), ())

    def _experiment_spec(self, name: str, theme: Literal["light", "dark"]) -> Spec:
        from cliffstore.publish.charts.experiment import experiment_chart
        from cliffstore.publish.charts.theme import themed
        from cliffstore.text import printable

        document, table = self.experiment(name)
        done = "heads off" if document.scale == 0 else f"heads x {document.scale:g}"
        title = f"{name}: {done} at {document.positions} positions, by their shares of {document.probe}"
        return themed(experiment_chart(table, level=document.level), theme, title=printable(title))

    def _write_experiment(self, name: str, output: str, texts: pa.Table) -> tuple[str, ...]:
        """Write table, texts and chart into a folder; each file takes its place once it is whole."""
        import pyarrow.csv
        import pyarrow.parquet as pq

        from cliffstore.access import scheme_of
        from cliffstore.errors import QueryError
        from cliffstore.run.saving import saving

        if scheme_of(output) == "file":
            try:
                os.makedirs(output.removeprefix("file://"), exist_ok=True)
            except OSError as error:
                raise QueryError(f"cannot write {output}: {error.strerror or error}") from None
        plot = self.plot_experiment(name)
        _, table = self.experiment(name)
        places = [f"{output.rstrip('/')}/{file}" for file in FILES]
        for place in places:
            with saving(place, self.storage_options_for(place)) as sink:
                kind = place.rpartition(".")[2]
                if kind == "parquet":
                    pq.write_table(texts if place.endswith("texts.parquet") else table, sink, compression="zstd")
                elif kind == "csv":
                    pyarrow.csv.write_csv(table, sink)
                else:
                    sink.write(plot.picture(kind))
        return tuple(places)
