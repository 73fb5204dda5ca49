"""What is on the page of a report: found in a store, and drawn.

Nothing is computed by a model. Cost: one pass over the scores of the probes on the page (curves), one over the cliffs,
and the units that hold the examples which are shown one by one. Curves and distributions are over all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from cliffstore import __version__
from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.curves import CurveSettings, mean_curves
from cliffstore.config import ReportConfig
from cliffstore.errors import ConfigError, ProbeError, StoreError
from cliffstore.publish.report.choice import choose_shown
from cliffstore.publish.report.chosen import read_selections
from cliffstore.publish.report.facts import read_facts
from cliffstore.publish.report.heads import HeadFacts, read_heads
from cliffstore.publish.report.missing import Missing, find_missing
from cliffstore.publish.report.page import Figure, PageParts
from cliffstore.publish.report.quality import ProbeFacts, read_probes
from cliffstore.publish.report.rows import read_rows
from cliffstore.publish.report.tokens import pack_tokens
from cliffstore.run.clipping import clip_figures
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

MOST_PROBES = 6
"""Probes on the page where none are named."""
MOST_GROUPS = 12
"""Lines of a chart that are still read at a glance."""
_CLIFFS = """
SELECT c.probe, {group} AS "group", e.id, c.cliff, c.example IN (SELECT example FROM selections) AS selected
FROM cliffs c JOIN examples e USING (example) WHERE c.probe = $1 ORDER BY c.example
"""


def find_parts(catalog: Catalog, asked: ReportConfig) -> PageParts:
    """Return everything that is on the page. Errors as for `Store.report`."""
    distances = Distances.parse(asked.positions)
    grouping = _grouping(catalog, asked.group_by)
    facts, heads = read_facts(catalog), read_heads(catalog)
    selections = read_selections(catalog, facts.counts["examples"])
    probes = read_probes(catalog, {one.document.probe for one in selections})
    on_page, further = _choose_probes(catalog, probes, asked.probe)
    ranked = next((one.name for one in on_page if one.cliffs is not None), None)
    names = [one.name for one in selections]
    shown = choose_shown(catalog, asked.examples, probe=ranked, selections=names, seed=asked.seed)
    drawing = _Drawing(catalog, distances, grouping, asked.seed)
    drawing.draw(probes, on_page, heads)
    for section, one in find_missing(
        catalog.reader.url, probes, selections, heads, has_clipped=drawing.has_clipped
    ).items():
        drawing.missing.setdefault(section, []).append(one)
    return PageParts(
        facts=facts,
        probes=probes,
        shown_probes=[one.name for one in on_page],
        further_probes=[one.name for one in further],
        shown=shown,
        rows=read_rows(catalog, shown, [one.name for one in on_page]),
        tokens=pack_tokens(catalog.reader, shown, [one.document for one in on_page]),
        selections=selections,
        heads=heads,
        group_by=grouping.name,
        figures=drawing.figures,
        missing=drawing.missing,
        version=__version__,
        notices=list(dict.fromkeys([*grouping.notices, *drawing.notices])),
    )


@dataclass(frozen=True, slots=True)
class _Grouping:
    """What curves and distributions are drawn for each value of.

    Attributes
    ----------
    expression : SQL over examples; None where all are one group
    name : of it, for people
    """

    expression: str | None
    name: str
    notices: tuple[str, ...] = ()

    @property
    def column(self) -> str:
        """The group of an example, in SQL: text, or null."""
        return f"CAST(({self.expression}\n) AS VARCHAR)" if self.expression else "CAST(NULL AS VARCHAR)"


def _grouping(catalog: Catalog, expression: str) -> _Grouping:
    """Return the grouping that was asked for, or none where it has too many values. Raises `QueryError`."""
    asked = _Grouping(expression, expression)
    rows = catalog.arrow(f"SELECT DISTINCT {asked.column} FROM examples e LIMIT {MOST_GROUPS + 1}").num_rows
    if rows <= MOST_GROUPS:
        return asked
    told = f"--group-by {expression} has more than {MOST_GROUPS} values: all examples are drawn as one group"
    return _Grouping(None, "nothing", (told,))


def _choose_probes(
    catalog: Catalog, probes: Sequence[ProbeFacts], wanted: Sequence[str]
) -> tuple[list[ProbeFacts], list[ProbeFacts]]:
    """Return the probes on the page, and those that have scores and are not. Raises `ProbeError` where one is none."""
    by_name = {one.name: one for one in probes}
    scored = [one for one in probes if one.units_scored]
    for name in wanted:
        if name not in by_name:
            read_probe(catalog.reader.objects, name)
    on_page = [by_name[name] for name in dict.fromkeys(wanted)] or scored[:MOST_PROBES]
    return on_page, [one for one in scored if one not in on_page]


class _Drawing:
    """The charts of a page, by section, what could not be drawn, and what was told meanwhile."""

    def __init__(self, catalog: Catalog, distances: Distances, grouping: _Grouping, seed: int) -> None:
        self._catalog, self._distances, self._grouping, self._seed = catalog, distances, grouping, seed
        self.figures: dict[str, list[Figure]] = {}
        self.missing: dict[str, list[Missing]] = {}
        self.notices: list[str] = []

    @cached_property
    def has_clipped(self) -> bool:
        """Whether the store has examples whose thinking was clipped."""
        return {"kept", "clipped_from"} <= set(self._catalog.arrow("SELECT * FROM examples LIMIT 0").column_names)

    def draw(self, probes: Sequence[ProbeFacts], on_page: Sequence[ProbeFacts], heads: Sequence[HeadFacts]) -> None:
        """Draw what there is to draw."""
        from cliffstore.publish.report import figures

        for probe in probes:
            if probe.document.cells:
                self._add("probes", partial(figures.layer_figure, probe))
        for probe in on_page:
            if probe.units_scored:
                self._add("curves", partial(self._curve, probe.name))
            if probe.with_cliff:
                self._add("cliffs", partial(self._cliff, probe.name))
            if probe.units_scored and self.has_clipped:
                self._add("clipping", partial(self._clip, probe.name))
        for one in heads:
            if one.rows:
                self._add("heads", partial(figures.head_figure, one))

    def _add(self, section: str, make: Callable[[], Figure]) -> None:
        """Add a chart to a section; where there is nothing to draw, say why in its place."""
        try:
            self.figures.setdefault(section, []).append(make())
        except (ProbeError, StoreError, ConfigError) as error:
            self.missing.setdefault(section, []).append(Missing(str(error)))

    def _curve(self, probe: str) -> Figure:
        from cliffstore.publish.report.figures import curve_figure

        settings = CurveSettings(self._distances, group_by=self._grouping.expression, seed=self._seed)
        curves = mean_curves(self._catalog, [probe], settings, self.notices.append)
        return curve_figure(probe, curves, self._grouping.expression)

    def _cliff(self, probe: str) -> Figure:
        from cliffstore.publish.report.figures import cliff_figure

        table = self._catalog.arrow(_CLIFFS.format(group=self._grouping.column), [probe])
        return cliff_figure(probe, table, self._grouping.expression)

    def _clip(self, probe: str) -> Figure:
        from cliffstore.publish.report.figures import clip_figure

        return clip_figure(probe, clip_figures(self._catalog, probe, None, self.notices.append))
