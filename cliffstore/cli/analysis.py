"""`cliffstore score`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import (
    Config,
    Json,
    MaybeStoreUrl,
    open_store,
    print_json,
)

_SCORE = """Score every stored token with probes, from stored activations.

Run the same command again to go on after a crash or an interrupt. Several probes are scored together: vectors are
read once for all probes of a layer.
"""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="score", help=_SCORE)(score)


def score(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", help="Name of a probe; repeatable. all: every probe of the store. Required."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Alias of the model to score, where it is another than the probe's: tuned, or under interventions. "
            "The scores are those of probe PROBE.ALIAS."
        ),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="auto, local, ray. Default: auto, which is ray where RAY_ADDRESS is set.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors. Default: one a node.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import ScoreConfig
    from cliffstore.settings import read_config

    given: dict[str, object] = {
        "store": store,
        "probe": tuple(probe) if probe else None,
        "model": model,
        "executor": executor,
        "actors": actors,
    }
    settings = read_config(ScoreConfig, config, given)
    with open_store(settings) as opened:
        report = opened.score(settings.probe, model=settings.model, executor=settings.executor, actors=settings.actors)
    if json:
        print_json(asdict(report))
        return
    for one in report.probes:
        print(
            f"probe {one.probe}: {one.tokens:,} tokens of {one.units} units scored now, "
            f"{one.units_done_before} units had scores"
        )
