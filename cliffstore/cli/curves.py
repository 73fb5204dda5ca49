"""`cliffstore curve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Config, Json, MaybeStoreUrl, open_store, print_json, print_table
from cliffstore.cli.plots import Line, draw_lines
from cliffstore.cli.results import FORMATS, show, write
from cliffstore.errors import QueryError

if TYPE_CHECKING:
    import pyarrow as pa

_HELP = """Mean score by distance from the decision position, aligned there and never padded.

A curve is that of the thinking, from its first token to the decision, averaged at each distance over the examples that
have a score there; n says how many. Bands are bootstrap intervals over examples. Without --format, curves are drawn.
"""
_TABLE = "curve_table"
_MOST_ROWS = 1_000
_PICTURES = (".png", ".svg")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="curve", help=_HELP)(curve)


def curve(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Annotated[list[str] | None, typer.Option("--probe", help="Name of a probe; repeatable. Required.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column of examples, or SQL expression: a curve for each value.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Distances from the decision position. Default: -64..0.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over examples.")] = None,
    resamples: Annotated[int | None, typer.Option(min=0, help="Of the bootstrap; 0: no bands. Default: 1000.")] = None,
    level: Annotated[
        float | None, typer.Option(help="Share of the resampled means that the band holds. Default: 0.95.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the bootstrap. Default: 0.")] = None,
    all_tokens: Annotated[
        bool, typer.Option("--all-tokens", help="Prompts, and examples without thinking, too.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help=f"{', '.join(FORMATS)}. Default: as -o ends, else a drawing.")
    ] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write to a file or URL, in one piece.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import CurveConfig
    from cliffstore.run.pipeline import IN_STORE
    from cliffstore.settings import read_config

    wanted = "json" if json else format or (_format_of(output) if output else None)
    if wanted is not None and wanted not in FORMATS:
        raise QueryError(f"format {wanted!r} is not known: choose from {', '.join(FORMATS)}")
    if output is not None and output.lower().endswith(_PICTURES):
        raise QueryError(f"{output}: a table is written here; `cliffstore plot curve` draws pictures")
    given = {
        "store": store,
        "probe": tuple(dict.fromkeys(probe)) if probe else None,
        "positions": positions,
        "group_by": group_by,
        "where": where,
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "all_tokens": all_tokens or None,
    }
    settings = read_config(CurveConfig, config, given)
    with open_store(settings) as opened:
        table = opened.curves(**settings.model_dump(exclude=IN_STORE))
        if wanted is None:
            _draw(table)
            return
        if json and output is None:
            print_json(table.to_pylist())
            return
        opened.register(_TABLE, table)
        with opened.catalog.batches(f"SELECT * FROM {_TABLE}") as batches:
            if output is None:
                show(batches, wanted, _MOST_ROWS)
            else:
                from cliffstore.run.saving import saving

                with saving(output, opened.storage_options_for(output)) as sink:
                    rows = write(batches, wanted, sink)
                print(f"{output}: {rows} rows")


def _draw(table: pa.Table) -> None:
    """Print the curves as a plot, and figures of each below it."""
    rows = table.to_pylist()
    keys = list(dict.fromkeys((row["probe"], row["group"]) for row in rows))
    lines, ends = [], []
    for probe, group in keys:
        own = [row for row in rows if (row["probe"], row["group"]) == (probe, group)]
        name = probe if group is None else f"{probe}, {group}"
        lines.append(Line(name, [row["to_decision"] for row in own], [row["mean"] for row in own]))
        last = own[-1]
        ends.append(
            [probe, group, own[0]["n"], last["n"], last["to_decision"], last["mean"], last["low"], last["high"]]
        )
    print(draw_lines(lines, "to_decision", "score"))
    print()
    print_table(["probe", "group", "n at first", "n at last", "last to_decision", "mean there", "low", "high"], ends)


def _format_of(output: str) -> str:
    suffix = output.rpartition(".")[2].lower()
    return suffix if suffix in FORMATS else "table"
