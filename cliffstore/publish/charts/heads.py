"""Attention heads: a value for each layer and head, blue below zero, orange above it, at equal steps on both sides."""

from __future__ import annotations

import math
from collections.abc import Collection

import altair as alt
import pyarrow as pa

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.theme import Chart, Size, Spec, drawn_from, title_of, with_data
from cliffstore.text import printable

_CELL = 18
"""Pixels of a cell, where the width is not that of a page."""


def head_chart(
    heads: pa.Table,
    value: str,
    title: str,
    *,
    size: Size | None = None,
    marked: Collection[tuple[int, int]] = (),
    details: Collection[str] = (),
) -> Chart:
    """Return the heat map of layers and heads; the scale is symmetrical around zero.

    Parameters
    ----------
    heads : columns layer, head, and the value; a line a head
    value : name of its column
    title : what the value is, with its unit, such as `direct contribution (logits)`
    size : a cell has 18 pixels each way if it is not said
    marked : (layer, head) of heads to frame
    details : further columns, shown where a head is pointed at

    Raises
    ------
    ConfigError
        No head has a value, or two lines are of the same head.
    """
    rows = heads.to_pylist()
    places = [(row["layer"], row["head"]) for row in rows]
    if len(set(places)) < len(places):
        raise ConfigError("heads to draw: some layer and head has several lines; choose one probe and one kind")
    drawn = [row for row in rows if row[value] is not None and math.isfinite(row[value])]
    if not drawn:
        raise ConfigError(f"none of {len(rows):,} heads has a value of {value}: there is nothing to draw")
    most = max(abs(row[value]) for row in drawn) or 1.0
    layers, numbers = sorted({place[0] for place in places}, reverse=True), sorted({place[1] for place in places})
    extra = {f"detail_{number}": name for number, name in enumerate(details)}
    cells = [
        {"layer": row["layer"], "head": row["head"], "value": row[value]}
        | {field: _plain(row[name]) for field, name in extra.items()}
        for row in drawn
    ]
    drawn_places = {(cell["layer"], cell["head"]) for cell in cells}
    nothing = [{"layer": layer, "head": head} for layer, head in places if (layer, head) not in drawn_places]
    framed = [cell for cell in cells if (cell["layer"], cell["head"]) in set(marked)]
    x = alt.X("head:O", title="head", sort=numbers, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("layer:O", title="layer", sort=layers, axis=alt.Axis(labelOverlap=True))
    scale = alt.Scale(domain=[-most, most], range="diverging", interpolate="rgb", nice=False)
    color = alt.Color("value:Q", title=title_of(title), scale=scale)
    tooltip = [
        alt.Tooltip("layer:O", title="layer"),
        alt.Tooltip("head:O", title="head"),
        alt.Tooltip("value:Q", title=title_of(title), format=".4g"),
        *(alt.Tooltip(f"{field}:N", title=title_of(name)) for field, name in extra.items()),
    ]
    parts = [
        drawn_from("nothing").mark_rect(style="nothing").encode(x=x, y=y),
        drawn_from("heads").mark_rect().encode(x=x, y=y, color=color, tooltip=tooltip),
        drawn_from("marked").mark_rect(style="frame").encode(x=x, y=y, tooltip=tooltip),
    ]
    width = _CELL * len(numbers) if size is None else size.width
    height = _CELL * len(layers) if size is None else size.height
    spec: Spec = alt.layer(*parts).properties(width=width, height=height).to_dict()
    notes = [f"{len(nothing):,} of {len(rows):,} heads have no value and are grey."] if nothing else []
    captions = [f"Framed: {len(framed):,} heads."] if framed else []
    return with_data(spec, {"heads": cells, "nothing": nothing, "marked": framed}, captions=captions, notes=notes)


def _plain(value: object) -> object:
    """Return a value that JSON has."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, int) else printable(str(value), 80)
