"""`cliffstore score`, `cliff`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

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

Probe = Annotated[str | None, typer.Option("--probe", help="Name of a probe.")]

_SCORE = """Score every stored token with probes, from stored activations.

Run the same command again to go on after a crash or an interrupt. Several probes are scored together: vectors are
read once for all probes of a layer.
"""

TOP_CLIFFS = """
SELECT c.cliff, c.plateau, c.final, c.n_think, e.id, e.label, e.prompt
FROM cliffs c JOIN examples e USING (example)
WHERE c.probe = $1 AND c.cliff IS NOT NULL AND ($3 IS NULL OR e.label = $3)
ORDER BY c.cliff DESC, e.id LIMIT $2
"""


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="score", help=_SCORE)(score)
    app.command(name="cliff", help="Rank examples by plateau minus score at the decision position.")(cliff)


def score(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="Name of a probe; repeatable. all: every probe of the store.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="auto, local, ray. auto is ray where RAY_ADDRESS is set.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors. Default: one a node.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import ScoreConfig
    from cliffstore.settings import read_config

    given = {"store": store, "probe": tuple(probe) if probe else None, "executor": executor, "actors": actors}
    settings = read_config(ScoreConfig, config, given)
    with open_store(settings) as opened:
        report = opened.score(settings.probe, executor=settings.executor, actors=settings.actors)
    if json:
        print_json(asdict(report))
        return
    for one in report.probes:
        print(
            f"probe {one.probe}: {one.tokens:,} tokens of {one.units} units scored now, "
            f"{one.units_done_before} units had scores"
        )


def cliff(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Probe = None,
    top: Annotated[int | None, typer.Option(min=1, help="Examples to show. Default: 20.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import CliffConfig
    from cliffstore.run.pipeline import check_selection, select_in
    from cliffstore.settings import read_config

    settings = read_config(CliffConfig, config, {"store": store, "probe": probe, "top": top})
    if settings.select is not None:
        check_selection(settings.select, "select.")
    with open_store(settings) as opened:
        report = opened.cliff(settings.probe)
        table = opened.catalog.arrow(TOP_CLIFFS, [settings.probe, settings.top, None])
        selected = select_in(opened, settings.select) if settings.select is not None else None
    if json:
        selection = {"select": asdict(selected)} if selected is not None else {}
        print_json({**asdict(report), "top": table.to_pylist(), **selection})
        return
    print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])
    if selected is not None:
        print(f"\n{describe_selection(selected)}")
