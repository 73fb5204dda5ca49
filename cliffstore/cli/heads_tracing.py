"""`cliffstore heads trace`, `heads ablate` and `heads show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import (
    Json,
    OptionsFrom,
    StoreUrl,
    cell_text,
    open_to_read,
    print_json,
    print_lines,
    print_table,
)

if TYPE_CHECKING:
    from cliffstore.run.store import Store
    from cliffstore.schema import HeadsDocument

_TRACE = """What each head adds to a probe's score by itself: its output along the probe's direction.

From stored z (extract --sites z) nothing is computed but one product a layer; otherwise one pass of the model, which
ends where the probe reads. Heads above the probe's layer add nothing and are not listed. Norms behind the heads, and
the final norm where the probe reads behind it, are frozen at each token's own scale. What later blocks make of a head
is not in its share: `heads ablate` measures that.
"""
_ABLATE = """How a probe's score at the decision changes when heads are switched off.

The mean is score with the head ablated minus score as it is: a head that holds refusal down has a positive one. By
default every head up to the probe's layer, one at a time, at the template's tokens between thinking and answer; what
comes before is computed once a prompt. A shortlist is measured head by head, as a set, and beside random sets of as
many heads in the same layers.

Run the same command again to go on after a crash or an interrupt.
"""
_SHOW = "Show what was measured of heads: a map of layers and heads, and the largest figures."
_COLUMNS = ("heads", "to_decision", "group", "n", "mean", "low", "high", "control_mean", "control_low", "control_high")

Probe = Annotated[str, typer.Option("--probe", help="Name of a probe.")]
Where = Annotated[str | None, typer.Option(help="SQL condition over examples.")]
GroupBy = Annotated[str | None, typer.Option(help="Column of examples, or SQL expression: figures for each value.")]
Model = Annotated[str | None, typer.Option(help="Where the probe's model is, if not where the store says.")]
Adapter = Annotated[str | None, typer.Option(help="Where its adapter is.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Resamples = Annotated[int, typer.Option(min=0, help="Of the bootstrap over examples; 0: no intervals.")]
Level = Annotated[float, typer.Option(help="Share of the resampled means that an interval holds.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap and of random sets.")]
Top = Annotated[int, typer.Option(min=1, help="Heads to list.")]
Replace = Annotated[bool, typer.Option("--replace", help="Put it in the place of figures of the same name.")]


def add_to(group: typer.Typer) -> None:
    """Add the commands."""
    group.command(name="trace", help=_TRACE)(trace)
    group.command(name="ablate", help=_ABLATE)(ablate)
    group.command(name="show", help=_SHOW)(show)


def trace(
    store: StoreUrl,
    probe: Probe,
    config: OptionsFrom = None,
    name: Annotated[str | None, typer.Option(help="Name of the result. Default: <probe>-direct.")] = None,
    where: Where = None,
    group_by: GroupBy = None,
    positions: Annotated[str, typer.Option(help="decision, or distances from it such as -8..0.")] = "decision",
    source: Annotated[str | None, typer.Option("--from", help="z or model. Default: z where it is stored.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = "auto",
    resamples: Resamples = 1_000,
    level: Level = 0.95,
    seed: Seed = 0,
    top: Top = 10,
    replace: Replace = False,
    json: Json = False,
) -> None:
    from cliffstore.errors import ConfigError

    if source not in (None, "z", "model"):
        raise ConfigError(f"--from {source!r}: choose z or model")
    with open_to_read(store, config) as opened:
        report = opened.trace_heads(
            probe,
            name=name,
            where=where,
            group_by=group_by,
            positions=positions,
            source=source,  # type: ignore[arg-type]
            model=model,
            adapter=adapter,
            device=device,
            resamples=resamples,
            level=level,
            seed=seed,
            replace=replace,
        )
        _print(opened, report.name, asdict(report), top, json=json)


def ablate(
    store: StoreUrl,
    probe: Probe,
    config: OptionsFrom = None,
    name: Annotated[str | None, typer.Option(help="Name of the result. Default: <probe>-knockout.")] = None,
    heads: Annotated[str | None, typer.Option(help="layer:head with commas, such as 3:1,4:0. Default: all.")] = None,
    shortlist: Annotated[
        int | None, typer.Option(min=1, help="So many heads with the most negative shares of a trace.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Name of that trace. Default: <probe>-direct.")] = None,
    positions: Annotated[str, typer.Option(help="template, all or decision: where heads are off.")] = "template",
    ablation: Annotated[str, typer.Option(help="zero or mean: what replaces z.")] = "zero",
    controls: Annotated[int, typer.Option(min=0, help="Random sets beside a shortlist.")] = 20,
    where: Where = None,
    group_by: GroupBy = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = "auto",
    executor: Annotated[
        str, typer.Option(help="auto, local, ray. auto is ray where RAY_ADDRESS is set, or with several GPUs.")
    ] = "auto",
    actors: Annotated[int | None, typer.Option(help="Ray actors. Default: one a GPU, else one a node.")] = None,
    resamples: Resamples = 1_000,
    level: Level = 0.95,
    seed: Seed = 0,
    top: Top = 10,
    replace: Replace = False,
    json: Json = False,
) -> None:
    with open_to_read(store, config) as opened:
        report = opened.ablate_heads(
            probe,
            name=name,
            where=where,
            group_by=group_by,
            heads=heads,
            shortlist=shortlist,
            trace=trace,
            positions=positions,  # type: ignore[arg-type]
            ablation=ablation,  # type: ignore[arg-type]
            controls=controls,
            model=model,
            adapter=adapter,
            device=device,
            executor=executor,  # type: ignore[arg-type]
            actors=actors,
            resamples=resamples,
            level=level,
            seed=seed,
            replace=replace,
        )
        _print(opened, report.name, asdict(report), top, json=json)


def show(
    store: StoreUrl,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the figures.")],
    config: OptionsFrom = None,
    top: Top = 10,
    heatmap: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the map of layers and heads: .png, .svg, .json.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Which group to draw, where figures are of several.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.errors import ConfigError

    if group is not None and heatmap is None:
        raise ConfigError("--group says what --heatmap draws: give both")
    with open_to_read(store, config) as opened:
        document, _ = opened.heads(name)
        if heatmap is not None:
            opened.draw_heads(name, heatmap, group=group)
        _print(opened, name, document.model_dump(), top, json=json)


def _print(store: Store, name: str, facts: dict[str, object], top: int, *, json: bool) -> None:
    """Print facts, the map of each group, and the largest figures."""
    from cliffstore.cli.head_map import largest_first, print_head_map

    document, table = store.heads(name)
    rows = table.to_pylist()
    if json:
        print_json({**facts, "figures": rows})
        return
    print_lines({key: value for key, value in facts.items() if value not in (None, (), [])})
    at_last = []
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        last = max(row["to_decision"] for row in mine)  # a group may end before another
        mine = [row for row in mine if row["to_decision"] == last]
        values = {(row["layer"], row["head"]): row["mean"] for row in mine if row["layer"] is not None}
        print()
        print_head_map(values, _title(document, group, last))
        at_last += mine
    print()
    _print_largest(largest_first(at_last, top))
    if document.frozen:
        print(f"\nFrozen at each token's own scale: {', '.join(document.frozen)}.")


def _title(document: HeadsDocument, group: str | None, distance: int) -> str:
    of = f", {cell_text(group)}" if group is not None else ""
    if document.kind == "direct":
        return f"share of each head in the score of {document.probe}, {distance} from the decision{of}"
    return f"change of the score of {document.probe} without each head ({document.positions} positions{of})"


def _print_largest(rows: Sequence[Mapping[str, object]]) -> None:
    columns = [name for name in _COLUMNS if any(row[name] is not None for row in rows)]
    print_table(columns, [[row[name] for name in columns] for row in rows])
