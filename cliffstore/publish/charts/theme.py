"""How charts look, light and dark: colours, lines and type, as a Vega-Lite configuration.

Colours tell classes apart for all common kinds of colour vision: Okabe and Ito's set for categories (lighter on dark),
`cividis` for what runs from low to high, blue to orange for what lies on both sides of a middle, which is the colour of
the ground. Categories differ by dashes or by a name beside them too, so colour is never the only sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import altair as alt

from cliffstore.errors import ConfigError
from cliffstore.text import printable

Theme = Literal["light", "dark"]
Spec = dict[str, Any]
"""A Vega-Lite specification, JSON."""

CATEGORIES: dict[Theme, tuple[str, ...]] = {
    "light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9", "#5f5f5f", "#7a4ea3"),
    "dark": ("#4da3e0", "#f28a3c", "#2fbf93", "#e29ac4", "#e6c33d", "#8fd0ff", "#b8b8b8", "#b795e0"),
}
"""Okabe and Ito's colours (jfly.uni-koeln.de/color), those that would be faint on the ground darkened or lightened."""
DIVERGING: dict[Theme, tuple[str, ...]] = {
    "light": ("#08519c", "#3182bd", "#9ecae1", "#f2f2f2", "#fdbe85", "#e6740c", "#8c3d04"),
    "dark": ("#7cc4ff", "#3b86c6", "#1f4a70", "#262a31", "#7a4312", "#d0741a", "#ffb366"),
}
"""Blue below the middle, orange above it, at equal steps."""
SEGMENTS = ("response", "end", "user", "think_close", "think_open", "think", "header", "system")
"""In the order of the categories whose colours they have, pale."""
GROUND: dict[Theme, str] = {"light": "#ffffff", "dark": "#16181d"}
INK: dict[Theme, str] = {"light": "#1f2328", "dark": "#e6e8eb"}
_FAINT: dict[Theme, str] = {"light": "#d7dbe0", "dark": "#3a4048"}
_QUIET: dict[Theme, str] = {"light": "#57606a", "dark": "#a3abb5"}
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', 'Noto Sans', sans-serif"
_WIDEST_TITLE = 60
MONOSPACE = "'DejaVu Sans Mono', ui-monospace, Menlo, Consolas, monospace"


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn.

    Attributes
    ----------
    spec : Vega-Lite, without `config`; its data lie under `datasets`
    captions : what its marks are; a sentence each
    notes : what is not drawn, and why; a sentence each
    """

    spec: Spec
    captions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Size:
    """Of the plotting area in pixels; the width may be that of what contains it (on a page)."""

    width: int | Literal["container"] = 640
    height: int = 320


USUAL_SIZE, LOW_SIZE = Size(), Size(height=240)


def check_theme(theme: str) -> Theme:
    """Return the theme of that name. Raises `ConfigError` where there is none."""
    for known in get_args(Theme):
        if theme == known:
            return known
    raise ConfigError(f"theme {theme!r} is not known: choose light or dark")


def config(theme: Theme, *, ground: bool = False) -> Spec:
    """Return the configuration; the background is transparent unless `ground`."""
    ink, faint, quiet = INK[theme], _FAINT[theme], _QUIET[theme]
    text = {"labelColor": quiet, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "background": GROUND[theme] if ground else "transparent",
        "font": FONT,
        "padding": 8,
        "view": {"stroke": None},
        "range": {
            "category": list(CATEGORIES[theme]),
            "diverging": list(DIVERGING[theme]),
            "heatmap": {"scheme": "cividis"},
            "ramp": {"scheme": "cividis"},
        },
        "axis": {**text, "gridColor": faint, "domainColor": quiet, "tickColor": quiet, "gridOpacity": 0.6},
        "legend": {**text, "labelLimit": 260, "titleLimit": 260},
        "title": {"color": ink, "subtitleColor": quiet, "anchor": "start", "fontSize": 14, "subtitleFontSize": 11},
        "header": {"labelColor": ink, "titleColor": ink},
        "area": {"opacity": 0.18},
        "style": {
            "decision": {"color": ink, "strokeDash": [5, 4], "strokeWidth": 1},
            "zero": {"color": quiet, "strokeWidth": 1},
            "control": {"color": quiet, "strokeDash": [2, 3], "strokeWidth": 1.5},
            "frame": {"color": ink, "strokeWidth": 2, "filled": False},
            "caption": {"color": ink, "fontSize": 11},
            "quiet_caption": {"color": quiet, "fontSize": 10},
            "token": {"color": ink, "font": MONOSPACE, "fontSize": 12},
            "token_on_colour": {"color": GROUND[theme], "font": MONOSPACE, "fontSize": 12},
            "curve": {"color": ink},
            "nothing": {"color": faint, "opacity": 0.5},
        },
    }


def themed(chart: Chart, theme: Theme, *, ground: bool = True, title: str | None = None) -> Spec:
    """Return a specification that stands alone: with its configuration, and its title, captions and notes above."""
    below = [*chart.captions, *chart.notes]
    heading: Spec = {"text": title or "", "subtitle": below} if title or below else {}
    given = {"title": heading} if heading else {}
    return {**chart.spec, **given, "config": config(theme, ground=ground)}


def title_of(text: str, most: int = _WIDEST_TITLE) -> str:
    """Return text as a title of an axis, a legend or a tooltip: printable, and without backslashes.

    Vega-Lite makes expressions of titles, and escapes quotes in them but not backslashes, so that `\\"` would end the
    text and begin code.
    """
    return printable(text, most).replace("\\", "∖")


def drawn_from(name: str) -> alt.Chart:
    """Return an empty chart over a data set of that name."""
    return alt.Chart(alt.Data(name=name))  # type: ignore[no-untyped-call]


def with_data(
    spec: Spec,
    datasets: Mapping[str, Sequence[Mapping[str, object]]],
    *,
    captions: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Chart:
    """Return a chart of a specification and its data by name."""
    data = {name: list(rows) for name, rows in datasets.items()}
    return Chart({**spec, "datasets": data}, tuple(captions), tuple(notes))
