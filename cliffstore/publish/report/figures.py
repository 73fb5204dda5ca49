"""The charts of the page, as SVG for light and for dark, each with its figures as a table.

Vega draws them while the page is made, so the page has no library in it, prints as it is, and can be read without
scripts. What points and bars stand for is in their `aria-label`, which the page shows where they are pointed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
import pyarrow as pa

from cliffstore.publish.charts.cliffs import cliff_chart
from cliffstore.publish.charts.curves import curve_chart
from cliffstore.publish.charts.heads import head_chart
from cliffstore.publish.charts.layers import layer_chart
from cliffstore.publish.charts.pictures import picture, with_names
from cliffstore.publish.charts.theme import Chart, Size, Theme, themed
from cliffstore.publish.report.heads import VALUE, HeadFacts
from cliffstore.publish.report.page import Figure
from cliffstore.publish.report.payload import finite
from cliffstore.publish.report.quality import ProbeFacts

SIZE = Size(width=840, height=300)
_NAMESPACES = re.compile(r'\sxmlns(?::\w+)?="[^"]*"')
_CURVE_COLUMNS = ("group", "to_decision", "n", "mean", "low", "high")
_CELL_COLUMNS = (
    "positions", "layer", "auroc", "auroc_low", "auroc_high", "accuracy", "recall_at_1_fpr", "calibration_error",
    "cv_auroc", "test_auroc", "test_auroc_low", "test_auroc_high", "test_accuracy",
)  # fmt: skip


def layer_figure(probe: ProbeFacts) -> Figure:
    """Return AUROC by layer of a probe that has figures."""
    rows = [[getattr(cell, name) for name in _CELL_COLUMNS] for cell in probe.cells]
    return _figure(f"layers-{probe.name}", f"{probe.name}: AUROC by layer", layer_chart(probe.document, size=SIZE),
                   _CELL_COLUMNS, rows)  # fmt: skip


def curve_figure(probe: str, curves: pa.Table, group_by: str | None) -> Figure:
    """Return the mean curves of one probe."""
    rows = [[row[name] for name in _CURVE_COLUMNS] for row in curves.to_pylist()]
    chart = curve_chart(curves, size=SIZE, group_title=group_by)
    return _figure(f"curves-{probe}", f"{probe}: mean score before the answer", chart, _CURVE_COLUMNS, rows)


def cliff_figure(probe: str, cliffs: pa.Table, group_by: str | None) -> Figure:
    """Return the distribution of cliffs of one probe: probe, group, id, cliff, selected."""
    chart = cliff_chart(cliffs, size=SIZE, group_title=group_by)
    columns = ("group", "examples", "with a cliff", "mean", "median", "lowest", "highest", "share above 0", "selected")
    return _figure(f"cliffs-{probe}", f"{probe}: distribution of cliffs", chart, columns, _summary(cliffs))


def head_figure(heads: HeadFacts) -> Figure:
    """Return the heat map of one group of a table of heads. Raises `ConfigError` where none has a value."""
    chart = head_chart(pa.Table.from_pylist(list(heads.rows)), VALUE, f"{heads.title} (logits)")
    rows = [[row["layer"], row["head"], *(row[name] for name in heads.columns)] for row in heads.rows]
    of = "" if heads.group is None else f", {heads.group}"
    title = f"{heads.name}{of}: {heads.title} by layer and head"
    return _figure(f"heads-{heads.key}", title, chart, ("layer", "head", *heads.columns), rows)


def clip_figure(probe: str, figures: Sequence[Any]) -> Figure:
    """Return the score by fraction of thinking kept: `KeptFigures`, whose fields are the columns of the table."""
    columns = tuple(field.name for field in fields(figures[0]))
    chart = _kept_chart([dict(zip(columns, astuple(one), strict=True)) for one in figures])
    return _figure(f"clipping-{probe}", f"{probe}: score by share of thinking kept", chart, columns,
                   [list(astuple(one)) for one in figures])  # fmt: skip


def _kept_chart(rows: list[dict[str, Any]]) -> Chart:
    import altair as alt

    from cliffstore.publish.charts.theme import with_data

    x = alt.X("kept:Q", title="share of the thinking that is kept", axis=alt.Axis(format=".0%"))
    title = "mean score before the answer (logits)"
    y = alt.Y("logit:Q", title=title, scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("kept:Q", title="kept", format=".0%"),
        alt.Tooltip("logit:Q", title="mean score", format=".3f"),
        alt.Tooltip("logit_low:Q", title="95 % interval from", format=".3f"),
        alt.Tooltip("logit_high:Q", title="to", format=".3f"),
        alt.Tooltip("n:Q", title="examples", format=",d"),
    ]
    base = alt.Chart(alt.Data(name="kept"))  # type: ignore[no-untyped-call]
    layers = [
        base.mark_area(strokeWidth=0).encode(x=x, y=alt.Y("logit_low:Q", title=title), y2="logit_high:Q"),
        base.mark_line().encode(x=x, y=y),
        base.mark_point(filled=True, size=60).encode(x=x, y=y, tooltip=tooltip),
    ]
    spec = alt.layer(*layers).properties(width=SIZE.width, height=SIZE.height).to_dict()
    return with_data(spec, {"kept": rows})


def _summary(cliffs: pa.Table) -> list[list[object]]:
    """Return figures of the cliffs of each group, and of all."""
    rows = cliffs.select(["group", "cliff", "selected"]).to_pylist()
    groups = sorted({row["group"] for row in rows}, key=lambda group: (group is None, group or ""))
    lines = [
        _summary_line("no value" if group is None else group, [row for row in rows if row["group"] == group])
        for group in groups
    ]
    return [*lines, _summary_line("all", rows)]


def _summary_line(name: str, rows: Sequence[dict[str, Any]]) -> list[object]:
    cliff_N = np.sort([row["cliff"] for row in rows if finite(row["cliff"]) is not None])
    figures: list[object] = [None] * 5
    if len(cliff_N):
        means = (cliff_N.mean(), np.median(cliff_N), cliff_N[0], cliff_N[-1], (cliff_N > 0).mean())
        figures = [float(value) for value in means]
    return [name, len(rows), len(cliff_N), *figures, sum(bool(row["selected"]) for row in rows)]


def _figure(name: str, title: str, chart: Chart, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Figure:
    light, dark = (_svg(chart, theme, f"{name}-{theme}") for theme in ("light", "dark"))
    return Figure(name, title, light, dark, (*chart.captions, *chart.notes), columns, rows)


def _svg(chart: Chart, theme: Theme, name: str) -> str:
    """Return a chart as SVG for a page: no namespaces, which HTML knows, and names that no other chart has."""
    spec = themed(Chart(chart.spec), theme, ground=False)
    text = picture(spec, "svg").decode()
    own = re.sub(r"[^\w-]", lambda found: f"_{ord(found[0]):x}_", name)
    return with_names(_NAMESPACES.sub("", text[text.index("<svg") :]), own)
