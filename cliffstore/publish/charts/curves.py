"""Mean curves: score by distance from the decision position, a line and a band for each probe and group.

Where a distance has no examples the line is broken. The steepest fall of a line, from one distance to the next and not
beyond the decision, is drawn thick, of those between distances that half of its examples reach; where there are bands,
only if those of its two ends do not overlap: a fall that resampling could undo is not marked.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import altair as alt
import pyarrow as pa

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.series import Series
from cliffstore.publish.charts.theme import USUAL_SIZE, Chart, Size, drawn_from, with_data

Point = dict[str, object]


def curve_chart(
    curves: pa.Table, *, size: Size = USUAL_SIZE, group_title: str | None = None, steepest: bool = True
) -> Chart:
    """Return the chart of mean curves.

    Parameters
    ----------
    curves : columns probe, group, to_decision, n, mean, low, high, as `Store.curves` gives them
    group_title : what the groups are values of, such as `label`
    steepest : mark the steepest fall of each line

    Raises
    ------
    ConfigError
        There is nothing to draw, or more lines than can be told apart.
    """
    rows = curves.to_pylist()
    if not rows:
        raise ConfigError("there are no curves to draw")
    series = Series.of([(row["probe"], row["group"]) for row in rows], group_title)
    lines = {key: [row for row in rows if (row["probe"], row["group"]) == key] for key in series.names}
    points = [point for key, own in lines.items() for point in _points(series.names[key], own)]
    falls = [point for key, own in lines.items() for point in _steepest(series.names[key], own)] if steepest else []
    n_unknown = sum(row["mean"] is None or row["mean"] != row["mean"] for row in rows)
    notes = [f"{n_unknown:,} of {len(rows):,} means are no numbers and are not drawn."] if n_unknown else []
    n_without_band = sum(row["low"] is None for row in rows)
    if 0 < n_without_band < len(rows):
        notes.append(f"{n_without_band:,} of {len(rows):,} means have no band.")
    distances = [row["to_decision"] for row in rows]
    x = alt.X(
        "to_decision:Q",
        title="tokens from the decision position (0 = last token before the answer)",
        scale=alt.Scale(domain=[min(distances), max(distances)], nice=False),
        axis=alt.Axis(format="d", tickMinStep=1, grid=False),
    )
    y = alt.Y("mean:Q", title="mean score (logits)", scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("series:N", title=series.title),
        alt.Tooltip("to_decision:Q", title="tokens from the decision"),
        alt.Tooltip("mean:Q", title="mean score", format=".3f"),
        alt.Tooltip("low:Q", title="band from", format=".3f"),
        alt.Tooltip("high:Q", title="band to", format=".3f"),
        alt.Tooltip("n:Q", title="examples", format=",d"),
    ]
    near = alt.selection_point(
        name="near", nearest=True, on="pointerover", clear="pointerout", encodings=["x", "y"], empty=False
    )
    base = drawn_from("curves")
    layers = [
        base.mark_area(strokeWidth=0).encode(
            x=x, y=alt.Y("low:Q", title="mean score (logits)"), y2="high:Q", color=series.color
        ),
        base.mark_line(clip=True).encode(x=x, y=y, color=series.color, strokeDash=series.dash),
        drawn_from("falls").mark_line(strokeWidth=5, strokeCap="round").encode(
            x=x, y=y, color=series.color, detail="series:N"
        ),
        drawn_from("decision").mark_rule(style="decision").encode(x=alt.X("to_decision:Q")),
        drawn_from("lone").mark_point(filled=True, size=40).encode(x=x, y=y, color=series.color),
        base.mark_point(filled=True, size=60)
        .encode(x=x, y=y, color=series.color, opacity=alt.condition(near, alt.value(1), alt.value(0)), tooltip=tooltip)
        .add_params(near),
    ]  # fmt: skip
    captions = ["Thick: the steepest fall of a line."] if falls else []
    spec = alt.layer(*layers).properties(width=size.width, height=size.height).to_dict()
    decision: list[Point] = [{"to_decision": 0}] if min(distances) <= 0 <= max(distances) else []
    data = {"curves": points, "falls": falls, "decision": decision, "lone": list(_alone(points))}
    return with_data(spec, data, captions=captions, notes=notes)


def _points(name: str, rows: list[Point]) -> Iterator[Point]:
    """Yield the points of a line, and one without a value where distances are missing."""
    before = None
    for row in sorted(rows, key=lambda row: int(str(row["to_decision"]))):
        at = int(str(row["to_decision"]))
        if before is not None and at > before + 1:
            yield {"series": name, "to_decision": before + 1, "mean": None, "low": None, "high": None, "n": 0}
        before = at
        values = {field: _finite(row[field]) for field in ("mean", "low", "high")}
        yield {"series": name, "to_decision": at, "n": row["n"], **values}


def _alone(points: list[Point]) -> Iterator[Point]:
    """Yield the points that a line does not show: those without a neighbour."""
    for before, point, after in zip([None, *points], points, [*points[1:], None], strict=False):
        others = [other for other in (before, after) if other is not None and other["series"] == point["series"]]
        if point["mean"] is not None and all(other["mean"] is None for other in others):
            yield point


def _steepest(name: str, rows: list[Point]) -> list[Point]:
    """Return the two ends of a line's steepest fall; none where there is no certain one."""
    enough = max(_number(row["n"]) for row in rows) / 2
    pairs = [
        (_number(first["mean"]) - _number(second["mean"]), first, second)
        for first, second in pairwise(point for point in _points(name, rows) if int(str(point["to_decision"])) <= 0)
        if first["mean"] is not None
        and second["mean"] is not None
        and min(_number(first["n"]), _number(second["n"])) >= enough
    ]
    if not pairs:
        return []
    fall, first, second = max(pairs, key=lambda pair: pair[0])
    is_certain = first["low"] is None or second["high"] is None or _number(first["low"]) > _number(second["high"])
    return [first, second] if fall > 0 and is_certain else []


def _finite(value: object) -> float | None:
    """Return a number; None for what is none, which JSON could not hold."""
    number = float("nan") if value is None else _number(value)
    return number if abs(number) < float("inf") else None


def _number(value: object) -> float:
    return float(value)  # type: ignore[arg-type]
