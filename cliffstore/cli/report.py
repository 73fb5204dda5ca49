"""`cliffstore report`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import Config, Json, MaybeStoreUrl, open_store, print_json

_HELP = """Write what a store holds as one HTML page that needs nothing else: no network, no server.

It shows probes, curves, cliffs, heads, selections, and examples with each token coloured by its score. Curves and
distributions are over all examples; one by one are shown those of selections, then the largest cliffs and a sample.
"""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="report", help=_HELP)(report)


def report(
    store: MaybeStoreUrl = None,
    config: Config = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File; path or URL. Default: report.html.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", help="Name of a probe; repeatable. The first is shown first. Default: those scored."),
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column of examples, or SQL expression: a curve for each value. Default: label.")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="Distances of the curves. Default: -64..0.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Examples to show one by one. Default: 500.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of examples shown by chance, and of bands. Default: 0.")
    ] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import ReportConfig
    from cliffstore.run.pipeline import IN_STORE
    from cliffstore.settings import read_config

    given = {
        "store": store,
        "output": output,
        "probe": tuple(dict.fromkeys(probe)) if probe else None,
        "group_by": group_by,
        "positions": positions,
        "examples": examples,
        "seed": seed,
    }
    settings = read_config(ReportConfig, config, given)
    with open_store(settings) as opened:
        summary = opened.report(**settings.model_dump(exclude=IN_STORE))
    if json:
        print_json(asdict(summary))
        return
    print(
        f"{summary.path}: {summary.bytes / 1e6:.1f} MB, {summary.examples:,} of {summary.total:,} examples, "
        f"{summary.tokens:,} tokens, {len(summary.probes)} probes, {len(summary.selections)} selections"
    )
