"""`cliffstore cliff`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import (
    Config,
    Json,
    MaybeStoreUrl,
    describe_selection,
    open_store,
    print_json,
    print_table,
)
from cliffstore.cli.plots import sparkline

if TYPE_CHECKING:
    from cliffstore.run.store import Store

Row = dict[str, object]

_HELP = """Rank examples by plateau minus score at the decision position.

The table shows the largest cliffs, each with its scores from the thinking to the decision, which is on the right; all
lines of a probe have one scale. With several probes, examples are those of the first, and figures of all are compared.
"""

TOP_CLIFFS = """
SELECT c.example, e.unit, c.cliff, c.plateau, c.final, c.n_think, c.n_steep, e.id, e.label, e.prompt
FROM cliffs c JOIN examples e USING (example)
WHERE c.probe = $1 AND c.cliff IS NOT NULL AND ($3 IS NULL OR e.label = $3)
ORDER BY isfinite(c.cliff) DESC, c.cliff DESC, e.id LIMIT $2
"""
_OTHERS = "SELECT probe, example, cliff FROM cliffs WHERE list_contains($1, example)"
_TOKENS_SHOWN, _NAME_WIDTH = 24, 12


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="cliff", help=_HELP)(cliff)


def cliff(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Annotated[list[str] | None, typer.Option("--probe", help="Name of a probe; repeatable. Required.")] = None,
    plateau: Annotated[
        str | None,
        typer.Option(help="Of the scores over the thinking: mean, median, max, a quantile (q0.9). Default: mean."),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Thinking tokens that it is over: all, last:32, first:50%. Default: all.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Examples to show. Default: 20.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import CliffConfig
    from cliffstore.run.pipeline import check_selection, select_in
    from cliffstore.settings import read_config
    from cliffstore.store.scores import find_scores

    probes = tuple(dict.fromkeys(probe)) if probe else None
    given = {"store": store, "probe": probes, "plateau": plateau, "window": window, "top": top}
    settings = read_config(CliffConfig, config, given)
    if settings.select is not None:
        check_selection(settings.select, "select.")
    names = settings.probe
    with open_store(settings) as opened:
        for name in names:  # before the cliffs of any are replaced
            find_scores(opened.reader, name)
        reports = [opened.cliff(name, plateau=settings.plateau, window=settings.window) for name in names]
        rows: list[Row] = opened.catalog.arrow(TOP_CLIFFS, [names[0], settings.top, None]).to_pylist()
        others = _other_cliffs(opened, names[1:], rows)
        compared = opened.compare_cliffs(names) if len(names) > 1 else []
        lines = {} if json else _sparklines(opened, names[0], rows)
        selected = select_in(opened, settings.select) if settings.select is not None else None
    if json:
        top_rows = [
            {name: value for name, value in row.items() if name != "unit"}
            | ({"cliffs": others.get(row["example"], {})} if compared else {})
            for row in rows
        ]
        several = {"probes": [asdict(one) for one in reports]} if compared else {}
        comparison = {"compared": [asdict(one) for one in compared]} if compared else {}
        selection = {"select": asdict(selected)} if selected is not None else {}
        print_json({**asdict(reports[0]), **several, **comparison, "top": top_rows, **selection})
        return
    figures, texts = ["plateau", "final", "n_think", "n_steep"], ["id", "label", "prompt"]
    cells = [
        [
            row["cliff"],
            *others.get(row["example"], {}).values(),
            *(row[name] for name in figures),
            lines.get(row["example"], ""),
            *(row[name] for name in texts),
        ]
        for row in rows
    ]
    print_table(["cliff", *map(_heading, names[1:]), *figures, "curve", *texts], cells)
    if compared:
        print()
        figures_of = [asdict(one) for one in compared]
        print_table(list(figures_of[0]), [list(one.values()) for one in figures_of])
    if selected is not None:
        print(f"\n{describe_selection(selected)}")


def _heading(probe: str) -> str:
    """Return what the column of another probe's cliffs is called; a long name is cut in its middle."""
    return (
        f"by {probe}" if len(probe) <= _NAME_WIDTH else f"by {probe[: _NAME_WIDTH // 2]}…{probe[-_NAME_WIDTH // 2 :]}"
    )


def _other_cliffs(store: Store, probes: Sequence[str], rows: Sequence[Row]) -> dict[object, dict[str, object]]:
    """Return the cliffs of other probes, by example and by probe."""
    if not probes:
        return {}
    found: dict[object, dict[str, object]] = {row["example"]: dict.fromkeys(probes) for row in rows}
    for row in store.catalog.arrow(_OTHERS, [list(found)]).to_pylist():
        if row["probe"] in probes:
            found[row["example"]][row["probe"]] = row["cliff"]
    return found


def _sparklines(store: Store, probe: str, rows: Sequence[Row]) -> dict[object, str]:
    """Return the last scores to the decision of each example."""
    import numpy as np

    from cliffstore.analyze.aligned import Distances, align

    if not rows:
        return {}
    examples_E = np.sort(np.array([row["example"] for row in rows], dtype=np.int64))
    units = {row["unit"] for row in rows}
    distances = Distances(1 - _TOKENS_SHOWN, 0)
    score_EW = align(store.reader, probe, examples_E, distances, units=units).score_EW
    finite_N = score_EW[np.isfinite(score_EW)]
    low, high = (float(finite_N.min()), float(finite_N.max())) if len(finite_N) else (0.0, 0.0)
    lines = (sparkline(score_W.tolist(), low, high) for score_W in score_EW)
    return dict(zip(examples_E.tolist(), lines, strict=True))
