"""The distribution of cliffs: how many examples fall how far, a line of steps for each probe and group.

Examples are counted here, in bins that all lines share, so a chart has as many numbers for a million examples as for a
hundred. Those of a selection are counted a second time, filled, and each has a tick on the axis while they are few.

Legend: E examples with a cliff, B bins.
"""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.series import Key, Series
from cliffstore.publish.charts.theme import USUAL_SIZE, Chart, Size, Spec, drawn_from, with_data
from cliffstore.text import printable

MOST_TICKS = 500
"""Selected examples, up to which each has a tick."""
_BINS = 40
_WIDEST_ID = 40

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Records = Iterator[dict[str, object]]


def cliff_chart(
    cliffs: pa.Table, *, size: Size = USUAL_SIZE, group_title: str | None = None, bins: int = _BINS
) -> Chart:
    """Return the chart of the distribution of cliffs.

    Parameters
    ----------
    cliffs : columns probe, group (may be null), id, cliff (logits; null where there is none) and, where there is a
        selection, selected (boolean)
    group_title : what the groups are values of, such as `label`
    bins : of equal width, over all cliffs

    Raises
    ------
    ConfigError
        No example has a cliff, or there are more lines than can be told apart.
    """
    held = cliffs.filter(pc.is_finite(pc.fill_null(cliffs["cliff"], float("nan"))))
    if not held.num_rows:
        raise ConfigError(f"none of {cliffs.num_rows:,} examples has a cliff: there is nothing to draw")
    cliff_E = held["cliff"].to_numpy().astype(np.float64)
    keys: list[Key] = list(zip(held["probe"].to_pylist(), held["group"].to_pylist(), strict=True))
    series = Series.of(sorted(set(keys), key=_in_order), group_title)
    names = list(series.names.values())
    number_of = {key: number for number, key in enumerate(series.names)}
    number_E = np.fromiter((number_of[key] for key in keys), dtype=np.int64, count=len(keys))
    is_selected_E = _selected(held)
    edges = _edges(cliff_E, bins)
    counts, steps, chosen = [], [], []
    for number, name in enumerate(names):
        is_own_E = number_E == number
        n_B = np.histogram(cliff_E[is_own_E], edges)[0]
        n_selected_B = np.histogram(cliff_E[is_own_E & is_selected_E], edges)[0]
        counts += list(_bins(name, edges, n_B, n_selected_B))
        steps += list(_steps(name, edges, n_B))
        chosen += list(_steps(name, edges, n_selected_B))
    at = np.flatnonzero(is_selected_E).tolist()
    ids = held["id"].take(pa.array(at, pa.int64())).to_pylist() if len(at) <= MOST_TICKS else []
    ticks = [
        {"id": printable(str(id_), _WIDEST_ID), "cliff": float(cliff_E[i]), "series": names[number_E[i]]}
        for id_, i in zip(ids, at, strict=False)
    ]
    low, high = edges[0], edges[-1]
    reach = 0.25 * (high - low)
    zero: list[dict[str, object]] = [{"cliff": 0}] if low - reach <= 0 <= high + reach else []
    data = {"counts": counts, "steps": steps, "chosen": chosen, "ticks": ticks, "zero": zero}
    n_without = cliffs.num_rows - held.num_rows
    notes = [f"{n_without:,} of {cliffs.num_rows:,} examples have no cliff and are not drawn."] if n_without else []
    n_lost = int(_selected(cliffs).sum()) - len(at)
    notes += [f"{n_lost:,} selected examples are among them."] if n_lost else []
    captions = []
    if "selected" in cliffs.schema.names:
        captions = [f"Filled: {len(at):,} selected examples{', a tick each on the axis' if ticks else ''}."]
    return with_data(_spec(series, size), data, captions=captions, notes=notes)


def _selected(table: pa.Table) -> npt.NDArray[np.bool_]:
    if "selected" not in table.schema.names:
        return np.zeros(table.num_rows, dtype=np.bool_)
    return np.asarray(pc.fill_null(table["selected"], False), dtype=np.bool_)


def _edges(cliff_E: Floats, bins: int) -> Floats:
    low, high = float(cliff_E.min()), float(cliff_E.max())
    return np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, high + 0.5])


def _in_order(key: Key) -> tuple[str, bool, str]:
    probe, group = key
    return (probe or "", group is None, group or "")


def _bins(name: str, edges: Floats, n_B: Counts, n_selected_B: Counts) -> Records:
    """Yield what a bin says where it is pointed at."""
    for number in np.flatnonzero(n_B).tolist():
        low, high = float(edges[number]), float(edges[number + 1])
        n_selected = int(n_selected_B[number])
        yield {"series": name, "from": low, "to": high, "n": int(n_B[number]), "selected": n_selected}


def _steps(name: str, edges: Floats, n_B: Counts) -> Records:
    """Yield the corners of a line that goes up and down at the edges of bins."""
    if not n_B.any():
        return
    heights = [0, *n_B.tolist(), 0]
    for edge, before, after in zip(edges.tolist(), heights, heights[1:], strict=False):
        yield {"series": name, "cliff": edge, "n": before}
        if after != before:
            yield {"series": name, "cliff": edge, "n": after}


def _spec(series: Series, size: Size) -> Spec:
    title = "cliff: plateau − score before the answer (logits)"
    apart = alt.Axis(labelOverlap="greedy", labelSeparation=6)
    x = alt.X("cliff:Q", title=title, scale=alt.Scale(zero=False), axis=apart)
    y = alt.Y(
        "n:Q",
        title="examples",
        axis=alt.Axis(format=",d", tickMinStep=1),
        scale=alt.Scale(domainMin=0, padding=0),
        stack=None,
    )
    tooltip = [
        alt.Tooltip("series:N", title=series.title),
        alt.Tooltip("from:Q", title="cliff from", format=".3f"),
        alt.Tooltip("to:Q", title="to", format=".3f"),
        alt.Tooltip("n:Q", title="examples", format=",d"),
        alt.Tooltip("selected:Q", title="of them selected", format=",d"),
    ]
    of_a_tick = [
        alt.Tooltip("id:N", title="selected example"),
        alt.Tooltip("cliff:Q", title="cliff", format=".3f"),
        alt.Tooltip("series:N", title=series.title),
    ]
    layers = [
        drawn_from("chosen").mark_area(opacity=0.35, strokeWidth=0).encode(x=x, y=y, color=series.color),
        drawn_from("zero").mark_rule(style="zero").encode(x=x),
        drawn_from("steps").mark_line().encode(x=x, y=y, color=series.color, strokeDash=series.dash),
        drawn_from("ticks")
        .mark_tick(thickness=1.5, size=14, yOffset=-7)
        .encode(x=x, y=alt.value("height"), color=series.color, tooltip=of_a_tick),
        drawn_from("counts")
        .mark_bar(opacity=0)
        .encode(x=alt.X("from:Q", title=title, axis=apart), x2="to:Q", y=y, tooltip=tooltip),
    ]
    found: Spec = alt.layer(*layers).properties(width=size.width, height=size.height).to_dict()
    return found
