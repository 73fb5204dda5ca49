"""Probe quality by layer: AUROC at each layer that was tried, with what it has to be held against.

One position gives lines: validation and, where there is one, the unseen test set, both with their 95 % intervals, and
rules at what shuffled labels and a bag of tokens reach, and at chance. Several positions give a heat map of layers and
positions, in which every cell has its value written while there is room. The probe's own cell is framed.
"""

from __future__ import annotations

import altair as alt

from cliffstore.errors import ProbeError
from cliffstore.publish.charts.series import Series
from cliffstore.publish.charts.theme import USUAL_SIZE, Chart, Size, Spec, drawn_from, title_of, with_data
from cliffstore.schema import CellMetrics, ProbeDocument

_MOST_VALUES = 400
"""Cells, up to which values are written."""
_MOST_TICKS = 20
_LAYER_HEIGHT, _POSITION_WIDTH, _CAPTION_HEIGHT = 18, 56, 13

_OWN = "Framed: the probe's own position and layer."

Records = list[dict[str, object]]


def layer_chart(document: ProbeDocument, *, size: Size = USUAL_SIZE, positions: str | None = None) -> Chart:
    """Return the chart of a probe's figures by layer: lines, or a heat map where there are several positions.

    Parameters
    ----------
    positions : one of those that were tried; lines of it, however many there are

    Raises
    ------
    ProbeError
        The probe was imported as it is and has no figures; or that position was not tried.
    """
    places = _places(document)
    if positions is not None and positions not in places:
        raise ProbeError(f"probe {document.name!r} was not tried at {positions!r}: choose from {', '.join(places)}")
    if positions is None and len(places) > 1:
        return layer_heat_map(document, size=size)
    return _lines(document, positions or places[0], size)


def _places(document: ProbeDocument) -> list[str]:
    places = list(dict.fromkeys(cell.positions for cell in document.cells))
    if not places:
        raise ProbeError(f"probe {document.name!r} was imported as it is: it has no figures to draw")
    return places


def _lines(document: ProbeDocument, place: str, size: Size) -> Chart:
    cells = sorted((cell for cell in document.cells if cell.positions == place), key=lambda cell: cell.layer)
    points: Records = [point for cell in cells for point in _figures(cell)]
    names = list(dict.fromkeys(str(point["series"]) for point in points))
    is_own = place == document.positions
    controls = _controls(document) if is_own else [("chance", 0.5)]
    chosen = [point for point in points if (place, point["layer"]) == (document.positions, document.layer)]
    notes = [] if is_own else [f"The controls are of the probe's own position, {document.positions}: not drawn."]
    ticks = {"values": [cell.layer for cell in cells]} if len(cells) <= _MOST_TICKS else {"tickMinStep": 1}
    x = alt.X(
        "layer:Q",
        title=f"layer ({document.site} at {title_of(place)})",
        axis=alt.Axis(format="d", grid=False, **ticks),
        scale=alt.Scale(domain=[cells[0].layer - 0.5, cells[-1].layer + 0.5], nice=False),
    )
    values = [float(str(point[edge])) for point in points for edge in ("low", "high", "auroc")]
    values += [value for _, value in controls]
    lowest = max(min(values) - 0.02, 0.0)
    up = alt.Scale(domain=[lowest, 1.0], nice=False)
    y = alt.Y("auroc:Q", title="AUROC", scale=up)
    series = Series({(name, None): name for name in names}, "examples")
    tooltip = [
        alt.Tooltip("series:N", title="examples"),
        alt.Tooltip("layer:Q", title="layer", format="d"),
        alt.Tooltip("auroc:Q", title="AUROC", format=".3f"),
        alt.Tooltip("low:Q", title="95 % interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("n:Q", title="samples", format=",d"),
    ]
    base, rules = drawn_from("layers"), drawn_from("controls")
    layers = [
        base.mark_area(strokeWidth=0)
        .encode(x=x, y=alt.Y("low:Q", title="AUROC", scale=up), y2="high:Q", color=series.color),
        rules.mark_rule(style="control").encode(y=y, tooltip=["control:N", "auroc:Q"]),
        rules.mark_text(style="quiet_caption", align="right", baseline="bottom", dy=-2)
        .encode(x=alt.value("width"), y=alt.Y("at:Q", title="AUROC", scale=up), text="caption:N"),
        base.mark_line().encode(x=x, y=y, color=series.color, strokeDash=series.dash),
        base.mark_point(filled=True, size=34).encode(x=x, y=y, color=series.color, tooltip=tooltip),
        drawn_from("chosen")
        .mark_point(style="frame", size=170, shape="square").encode(x=x, y=y, tooltip=tooltip),
    ]  # fmt: skip
    spec = alt.layer(*layers).properties(width=size.width, height=size.height).to_dict()
    rows = _captioned(controls, gap=_CAPTION_HEIGHT / size.height * (1 - lowest))
    return with_data(
        spec, {"layers": points, "controls": rows, "chosen": chosen}, captions=[_OWN] * is_own, notes=notes
    )


def _figures(cell: CellMetrics) -> Records:
    """Return the figures of a cell: on validation, and on the test set where there is one."""
    found: Records = [
        {
            "series": "validation", "layer": cell.layer, "auroc": cell.auroc, "low": cell.auroc_low,
            "high": cell.auroc_high, "n": cell.n_validation,
        }
    ]  # fmt: skip
    if cell.test_auroc is not None:
        low = cell.test_auroc if cell.test_auroc_low is None else cell.test_auroc_low
        high = cell.test_auroc if cell.test_auroc_high is None else cell.test_auroc_high
        found.append(
            {
                "series": "unseen test set", "layer": cell.layer, "auroc": cell.test_auroc, "low": low, "high": high,
                "n": cell.n_test,
            }
        )  # fmt: skip
    return found


def _controls(document: ProbeDocument) -> list[tuple[str, float]]:
    """Return what the probe has to be better than."""
    found = {
        "chance": 0.5,
        "shuffled labels": document.shuffled_auroc,
        "words alone": document.bag_auroc,
        "words alone, test set": document.bag_test_auroc,
    }
    return [(name, value) for name, value in found.items() if value is not None]


def _captioned(controls: list[tuple[str, float]], gap: float) -> Records:
    """Return controls from the lowest up, with the place of each caption: on its line, or clear of the one below."""
    found: Records = []
    at = float("-inf")
    for name, auroc in sorted(controls, key=lambda control: control[1]):
        at = max(auroc, at + gap)
        found.append({"control": name, "auroc": auroc, "at": at, "caption": f"{name} {auroc:.2f}"})
    return found


def layer_heat_map(document: ProbeDocument, *, size: Size = USUAL_SIZE) -> Chart:
    """Return the heat map of layers and positions; cells have one size unless the width is that of a page.

    Raises
    ------
    ProbeError
        The probe was imported as it is and has no figures.
    """
    places = _places(document)
    lowest = min(0.5, *(cell.auroc for cell in document.cells))
    middle = (1 + lowest) / 2
    cells: Records = [
        {
            "layer": cell.layer, "positions": cell.positions, "auroc": cell.auroc, "low": cell.auroc_low,
            "high": cell.auroc_high, "test_auroc": cell.test_auroc, "value": f"{cell.auroc:.3f}",
        }
        for cell in document.cells
    ]  # fmt: skip
    numbers = sorted({cell.layer for cell in document.cells}, reverse=True)
    chosen = [cell for cell in cells if (cell["positions"], cell["layer"]) == (document.positions, document.layer)]
    n_missing = len(numbers) * len(places) - len(cells)
    notes = [f"{n_missing:,} cells have no figures."] if n_missing else []
    axis = alt.Axis(labelAngle=0 if len(places) <= 8 else -60)
    x = alt.X("positions:N", title=f"position ({document.site})", sort=places, axis=axis)
    y = alt.Y("layer:O", title="layer", sort=numbers)
    color = alt.Color("auroc:Q", title="AUROC", scale=alt.Scale(domain=[lowest, 1], range="heatmap"))
    tooltip = [
        alt.Tooltip("positions:N", title="position"),
        alt.Tooltip("layer:O", title="layer"),
        alt.Tooltip("auroc:Q", title="validation AUROC", format=".3f"),
        alt.Tooltip("low:Q", title="95 % interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("test_auroc:Q", title="test AUROC", format=".3f"),
    ]
    base = drawn_from("cells")
    is_light = alt.condition(f"datum.auroc > {middle!r}", alt.value("black"), alt.value("white"))
    layers = [base.mark_rect().encode(x=x, y=y, color=color, tooltip=tooltip)]
    if len(cells) <= _MOST_VALUES:
        layers.append(base.mark_text(fontSize=9).encode(x=x, y=y, text="value:N", color=is_light))
    layers.append(
        drawn_from("chosen")
        .mark_rect(filled=False, stroke="#ff2d2d", strokeWidth=2.5).encode(x=x, y=y)
    )  # fmt: skip
    width = size.width if size.width == "container" else _POSITION_WIDTH * len(places)
    properties = {"width": width, "height": max(_LAYER_HEIGHT * len(numbers), 60)}
    spec: Spec = alt.layer(*layers).properties(**properties).to_dict()
    return with_data(spec, {"cells": cells, "chosen": chosen}, captions=[_OWN], notes=notes)
