"""`cliffstore plot`: charts as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Config, Json, MaybeStoreUrl, open_store, print_json

if TYPE_CHECKING:
    from cliffstore.run.report.plotting import Plot

_HELP = """Draw what a store holds: .png, .svg, or .json, which is the chart with its data as Vega-Lite to edit.

Colours are told apart by all common kinds of colour vision. No browser and no network are needed.
"""
_CURVE = """Draw the mean score by distance from the decision position, with bootstrap bands; nothing is padded."""
_CLIFFS = """Draw how many examples fall how far; examples of a selection are marked."""
_LAYERS = """Draw the AUROC of a probe by layer, with its intervals, test set and controls.

Where several positions were tried it is a heat map, unless --positions chooses one.
"""
_TOKENS = """Draw the score at each token of one example: a curve over its segments, and the tokens on their colours."""

Output = Annotated[
    str, typer.Option("-o", "--output", metavar="FILE", help="Path or URL that ends in .png, .svg or .json.")
]
Probes = Annotated[list[str] | None, typer.Option("--probe", help="Name of a probe; repeatable. Required.")]
OneProbe = Annotated[str | None, typer.Option("--probe", help="Name of a probe. Required.")]
GroupBy = Annotated[str | None, typer.Option(help="Column of examples, or SQL expression: a line for each value.")]
Where = Annotated[str | None, typer.Option(help="SQL condition over examples.")]
Distances = Annotated[str | None, typer.Option(help="Distances from the decision position, such as -64..0.")]
Theme = Annotated[str | None, typer.Option(help="light or dark. Default: light.")]
Title = Annotated[str | None, typer.Option(help="Above the chart; '' for none.")]
Scale = Annotated[float | None, typer.Option(help="Size of a PNG: 2 is sharp on most screens. Default: 2.")]
Transparent = Annotated[bool, typer.Option("--transparent", help="No ground behind the chart.")]
Width = Annotated[int | None, typer.Option(help="Of the plotting area, in pixels before --scale.")]
Height = Annotated[int | None, typer.Option(help="As --width.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(name="plot", help=_HELP, rich_markup_mode=None)
    group.command(name="curve", help=_CURVE)(curve)
    group.command(name="cliffs", help=_CLIFFS)(cliffs)
    group.command(name="layers", help=_LAYERS)(layers)
    group.command(name="tokens", help=_TOKENS)(tokens)
    app.add_typer(group)


def curve(
    output: Output,
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Probes = None,
    group_by: GroupBy = None,
    where: Where = None,
    positions: Distances = None,
    resamples: Annotated[int | None, typer.Option(min=0, help="Of the bootstrap; 0: no bands. Default: 1000.")] = None,
    level: Annotated[float | None, typer.Option(help="Share that the band holds. Default: 0.95.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the bootstrap. Default: 0.")] = None,
    all_tokens: Annotated[
        bool, typer.Option("--all-tokens", help="Prompts, and examples without thinking, too.")
    ] = False,
    theme: Theme = None,
    title: Title = None,
    width: Width = None,
    height: Height = None,
    scale: Scale = None,
    transparent: Transparent = False,
    json: Json = False,
) -> None:
    own = {
        "probe": probe, "group_by": group_by, "where": where, "positions": positions, "resamples": resamples,
        "level": level, "seed": seed, "all_tokens": all_tokens or None,
    }  # fmt: skip
    look = _look(theme, title, width, height, scale, transparent)
    _draw("curve", store, output, config, own | look, json)


def cliffs(
    output: Output,
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Probes = None,
    group_by: GroupBy = None,
    where: Where = None,
    selection: Annotated[str | None, typer.Option(help="Name of a selection, whose examples are marked.")] = None,
    theme: Theme = None,
    title: Title = None,
    width: Width = None,
    height: Height = None,
    scale: Scale = None,
    transparent: Transparent = False,
    json: Json = False,
) -> None:
    own = {"probe": probe, "group_by": group_by, "where": where, "selection": selection}
    look = _look(theme, title, width, height, scale, transparent)
    _draw("cliffs", store, output, config, own | look, json)


def layers(
    output: Output,
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: OneProbe = None,
    positions: Annotated[str | None, typer.Option(help="A position that was tried: lines of it alone.")] = None,
    theme: Theme = None,
    title: Title = None,
    width: Width = None,
    height: Height = None,
    scale: Scale = None,
    transparent: Transparent = False,
    json: Json = False,
) -> None:
    own = {"probe": probe, "positions": positions}
    look = _look(theme, title, width, height, scale, transparent)
    _draw("layers", store, output, config, own | look, json)


def tokens(
    output: Output,
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: OneProbe = None,
    example: Annotated[str | None, typer.Option(help="Id of an example, or # and its number. Required.")] = None,
    positions: Distances = None,
    theme: Theme = None,
    title: Title = None,
    width: Width = None,
    height: Height = None,
    scale: Scale = None,
    transparent: Transparent = False,
    json: Json = False,
) -> None:
    own = {"probe": probe, "example": example, "positions": positions}
    look = _look(theme, title, width, height, scale, transparent)
    _draw("tokens", store, output, config, own | look, json)


def _look(
    theme: str | None, title: str | None, width: int | None, height: int | None, scale: float | None, transparent: bool
) -> dict[str, object]:
    """Return what all plots are asked for: how they look."""
    return {
        "theme": theme, "title": title, "width": width, "height": height, "scale": scale,
        "transparent": transparent or None,
    }  # fmt: skip


def _draw(
    kind: str, store: str | None, output: str, config: str | None, options: dict[str, object], json: bool
) -> None:
    from cliffstore.config import PlotConfig
    from cliffstore.run.pipeline import IN_STORE
    from cliffstore.settings import read_config

    settings = read_config(PlotConfig, config, {"store": store, "kind": kind, "output": output, **options})
    with open_store(settings) as opened:
        plot: Plot = opened.plot(**settings.model_dump(exclude=IN_STORE, exclude_unset=True))
    if json:
        print_json({"kind": plot.kind, "output": plot.output, "bytes": plot.size, "notes": plot.notes})
    else:
        print(f"{plot.output}: {plot.size:,} bytes")
