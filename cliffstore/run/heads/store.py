"""What `Store` does with attention heads: tracing, switching off, and figures by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from cliffstore.run.heads.results import read_heads, usual_name
from cliffstore.run.origins import Origins
from cliffstore.run.queries import StoreQueries
from cliffstore.schema import HeadsDocument
from cliffstore.text import printable

if TYPE_CHECKING:
    from cliffstore.run.heads.ablate import AblateReport
    from cliffstore.run.heads.trace import TraceReport
    from cliffstore.run.report.plotting import Plot


class StoreHeads(StoreQueries):
    """The part of `Store` that measures attention heads."""

    def trace_heads(
        self,
        probe: str,
        *,
        name: str | None = None,
        where: str | None = None,
        group_by: str | None = None,
        positions: str = "decision",
        source: Literal["z", "model"] | None = None,
        model: str | None = None,
        adapter: str | None = None,
        device: str = "auto",
        resamples: int = 1_000,
        level: float = 0.95,
        seed: int = 0,
        replace: bool = False,
    ) -> TraceReport:
        """Find what each head adds to a probe's score by itself; the result is in the view `heads`.

        Heads of layers above the probe add nothing, and are not in it. Norms behind the heads, and the final norm
        where the probe reads it, are frozen at each token's own scale.

        Parameters
        ----------
        name : of the result; by default `<probe>-direct`
        where, group_by : SQL condition and expression over examples
        positions : `decision`, or distances from it such as `-8..0`
        source : `z` reads stored z, with no forward pass; `model` runs the model; by default z where it is stored
        model, adapter : where they are, if not where the store says
        resamples, level, seed : of the bootstrap over examples; 0 resamples: no intervals
        replace : put it in the place of another result of that name

        Raises
        ------
        ConfigError, ProbeError, ModelError, StoreError, QueryError
            It cannot be traced as asked.
        """
        from cliffstore.run.heads.trace import TraceSettings, trace_heads

        settings = TraceSettings(
            probe,
            name or usual_name(probe, "direct"),
            where,
            group_by,
            positions,
            source,
            resamples,
            level,
            seed,
            replace,
        )
        report = trace_heads(self._own, settings, _origins(model, adapter, device), self._reporter)
        self.refresh()
        return report

    def ablate_heads(
        self,
        probe: str,
        *,
        name: str | None = None,
        where: str | None = None,
        group_by: str | None = None,
        heads: str | None = None,
        shortlist: int | None = None,
        trace: str | None = None,
        positions: Literal["template", "all", "decision"] = "template",
        ablation: Literal["zero", "mean"] = "zero",
        controls: int = 20,
        model: str | None = None,
        adapter: str | None = None,
        device: str = "auto",
        executor: Literal["auto", "local", "ray"] = "auto",
        actors: int | None = None,
        resamples: int = 1_000,
        level: float = 0.95,
        seed: int = 0,
        replace: bool = False,
    ) -> AblateReport:
        """Find how a probe's score at the decision changes when heads are switched off; into the view `heads`.

        What is measured is kept as it comes: the same call goes on where one was cut off.

        Parameters
        ----------
        name : of the result; by default `<probe>-knockout`
        heads : `3:1,4:0`; by default every head that can change the score, one at a time
        shortlist : in place of `heads`, so many with the most negative shares in a trace
        trace : name of that trace; by default `<probe>-direct`
        positions : where heads are switched off: the template's tokens before the answer, all, or the decision alone
        ablation : what replaces z: zero, or its mean over these positions of all examples
        controls : random sets, layer-matched, beside a shortlist as a set
        executor, actors : as for extraction: examples are shared out among workers
        where, group_by, model, adapter, resamples, level, seed, replace : as for `trace_heads`

        Raises
        ------
        ConfigError, ProbeError, ModelError, StoreError, QueryError
            It cannot be measured as asked.
        ExtractionError
            Some examples could not be measured; the others are kept.
        InterruptedRunError
            Ctrl-C; the same call goes on from there.
        """
        from cliffstore.run.heads.ablate import AblateSettings, ablate_heads

        settings = AblateSettings(
            probe=probe,
            name=name or usual_name(probe, "knockout"),
            where=where,
            group_by=group_by,
            heads=heads,
            shortlist=shortlist,
            trace=trace,
            positions=positions,
            ablation=ablation,
            controls=controls,
            resamples=resamples,
            level=level,
            seed=seed,
            replace=replace,
            executor=executor,
            actors=actors,
        )
        report = ablate_heads(self._own, settings, _origins(model, adapter, device), self._reporter)
        self.refresh()
        return report

    def heads(self, name: str) -> tuple[HeadsDocument, pa.Table]:
        """Return figures of heads: what they are of, and the table. Raises `StoreError` where there are none."""
        return read_heads(self.reader.objects, name)

    def draw_heads(
        self,
        name: str,
        output: str | None = None,
        *,
        group: str | None = None,
        theme: Literal["light", "dark"] = "light",
        title: str | None = None,
    ) -> Plot:
        """Draw figures of heads as a map of layers and heads; write it where `output` says: .png, .svg or .json.

        Parameters
        ----------
        group : which one, where figures are of several

        Raises
        ------
        StoreError, ConfigError
            There are no such figures, or they cannot be drawn as asked.
        """
        from cliffstore.publish.charts.pictures import kind_of, picture
        from cliffstore.publish.charts.theme import check_theme, themed
        from cliffstore.run.heads.drawing import draw_heads
        from cliffstore.run.report.plotting import Plot
        from cliffstore.run.saving import saving

        wanted = None if output is None else kind_of(output)
        chart, usual = draw_heads(*self.heads(name), group)
        for note in chart.notes:
            self._reporter.notice(note)
        spec = themed(chart, check_theme(theme), title=usual if title is None else printable(title))
        if output is None or wanted is None:
            return Plot("heads", spec, chart.notes)
        content = picture(spec, wanted)
        with saving(output, self.storage_options_for(output)) as sink:
            sink.write(content)
        return Plot("heads", spec, chart.notes, output, len(content))


def _origins(model: str | None, adapter: str | None, device: str) -> Origins:
    return Origins(models=(model,) if model else (), adapters=(adapter,) if adapter else (), device=device)
