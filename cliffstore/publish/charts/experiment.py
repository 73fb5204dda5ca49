"""An experiment with heads: score, refusals and perplexity by the share of heads that are off, beside random heads.

Share 0 is the unchanged model. A line and its intervals are of the heads that were chosen, the pale band is from the
least to the most that random sets of as many heads of the same layers gave, dotted its mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pyarrow as pa

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.series import Series
from cliffstore.publish.charts.theme import Chart, Size, Spec, drawn_from, with_data

PANELS = (
    ("harmful", "score", "score at the decision (logits), harmful"),
    ("harmful", "refused", "refused, harmful"),
    ("benign", "refused", "refused, benign (over-refusal)"),
    ("harmful", "logit_difference", "refusal less answer (logits), harmful"),
    ("benign", "perplexity", "perplexity of benign text"),
)
"""Part, measure and title of what may be drawn, in this order; what nobody measured is left out."""
SIZE = Size(280, 180)
Row = dict[str, object]


def experiment_chart(table: pa.Table, *, level: float, size: Size = SIZE) -> Chart:
    """Return the chart of an experiment: a panel a measure, two side by side.

    Parameters
    ----------
    table : columns of `EXPERIMENTS`, of one experiment
    level : of its intervals
    size : of one panel

    Raises
    ------
    ConfigError
        There is nothing to draw.
    """
    rows = table.to_pylist()
    ways = list(dict.fromkeys(str(row["thinking"]) for row in rows))
    series = Series({(way, None): f"{way} thinking" for way in ways}, "thinking")
    panels: list[tuple[str, str, list[Row], list[Row]]] = []
    for part, measure, title in PANELS:
        own = [row for row in rows if (row["part"], row["measure"]) == (part, measure) and row["value"] is not None]
        if own:
            panels.append((f"{part}_{measure}", title, _chosen(own, ways), _random(own, ways)))
    if not panels:
        raise ConfigError("this experiment has no figures: there is nothing to draw")
    intervals = f"{100 * level:g} % interval"
    highest = max(float(str(row["share"])) for row in rows if row["share"] is not None)
    drawn = [
        _panel(name, title, series, highest, size, _reach([*chosen, *random]), intervals)
        for name, title, chosen, random in panels
    ]
    spec: Spec = alt.concat(*drawn, columns=2).to_dict()
    data: dict[str, list[Row]] = {}
    for name, _, chosen, random in panels:
        data |= {f"{name}_chosen": chosen, f"{name}_random": random}
    captions = [f"Lines: heads with the most negative shares, with {intervals}s; share 0: the unchanged model."]
    if n_sets := max((int(str(row["set"])) + 1 for row in rows if row["set"] is not None), default=0):
        captions.append(f"Pale: from least to most of up to {n_sets} random sets of heads in the same layers; "
                        "dotted: their mean.")  # fmt: skip
    return with_data(spec, data, captions=captions)


def _chosen(rows: Sequence[Row], ways: Sequence[str]) -> list[Row]:
    """Return the points of the lines, the unchanged model at 0."""
    return [
        {
            "series": f"{way} thinking", "share": row["share"] or 0.0, "value": row["value"], "low": row["low"],
            "high": row["high"], "n": row["n"], "heads": row["n_heads"],
        }
        for way in ways
        for row in sorted(rows, key=lambda row: float(str(row["share"] or 0)))
        if row["thinking"] == way and row["condition"] != "random"
    ]  # fmt: skip


def _random(rows: Sequence[Row], ways: Sequence[str]) -> list[Row]:
    """Return least, mean and most of the random sets at each share, from the unchanged model on."""
    found: list[Row] = []
    for way in ways:
        own = [row for row in rows if row["thinking"] == way]
        values = {
            0.0: [float(str(row["value"])) for row in own if row["condition"] == "unchanged"],
            **{
                share: [float(str(row["value"])) for row in own
                        if row["condition"] == "random" and row["share"] == share]
                for share in sorted({float(str(row["share"])) for row in own if row["condition"] == "random"})
            },
        }  # fmt: skip
        if len(values) > 1:
            found += [
                {"series": f"{way} thinking", "share": share, "low": min(some), "mean": sum(some) / len(some),
                 "high": max(some), "sets": len(some) if share else 0}
                for share, some in values.items() if some
            ]  # fmt: skip
    return found


def _reach(points: Sequence[Row]) -> list[float]:
    """Return from where to where an axis goes, some way beyond all points: differences of rounding do not fill it."""
    values = [float(str(value)) for point in points for key in ("value", "low", "high") if (value := point.get(key))
              is not None]  # fmt: skip
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.02 * max(abs(low), abs(high)), 0.01)
    return [low - margin, high + margin]


def _panel(
    name: str, title: str, series: Series, highest: float, size: Size, reach: list[float], intervals: str
) -> alt.LayerChart | alt.FacetChart:
    x = alt.X(
        "share:Q", title="heads off (% of all)", axis=alt.Axis(grid=False), scale=alt.Scale(domain=[0, highest * 1.04])
    )
    is_rate = name.endswith("_refused")
    scale = alt.Scale(domain=[0, 1] if is_rate else reach, nice=False)
    axis = alt.Axis(format="%") if is_rate else alt.Axis()

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)

    form = ".1%" if is_rate else ".3f"
    tooltip = [
        alt.Tooltip("series:N", title="thinking"),
        alt.Tooltip("share:Q", title="% of heads"),
        alt.Tooltip("heads:Q", title="heads"),
        alt.Tooltip("value:Q", title="value", format=form),
        alt.Tooltip("low:Q", title=f"{intervals} from", format=form),
        alt.Tooltip("high:Q", title="to", format=form),
        alt.Tooltip("n:Q", title="examples", format=",d"),
    ]
    chosen, random = drawn_from(f"{name}_chosen"), drawn_from(f"{name}_random")
    return alt.layer(
        random.mark_area(strokeWidth=0).encode(x=x, y=y("low"), y2="high:Q", color=series.color),
        random.mark_line(strokeDash=[2, 3], strokeWidth=1.5).encode(x=x, y=y("mean"), color=series.color),
        chosen.mark_rule(strokeWidth=1.5).encode(x=x, y=y("low"), y2="high:Q", color=series.color),
        chosen.mark_line().encode(x=x, y=y("value"), color=series.color, strokeDash=series.dash),
        chosen.mark_point(filled=True, size=40).encode(x=x, y=y("value"), color=series.color, tooltip=tooltip),
    ).properties(width=size.width, height=size.height)
