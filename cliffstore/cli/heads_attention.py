"""`cliffstore heads attention`."""

from __future__ import annotations

from typing import Annotated

import typer

from cliffstore.cli.output import Json, OptionsFrom, StoreUrl, open_to_read, print_json, print_table
from cliffstore.cli.results import FORMATS, write
from cliffstore.errors import QueryError

_HELP = """Show where chosen heads look: the attention that they pay to each segment.

mass is the share of the attention; per_token is mass by the segment's share of the tokens seen, so 1 is as much as an
average token. Means over examples, with 95 % intervals. The model runs for this, from the tokens in the store.
"""
_TABLE = "attention_table"


def add_to(group: typer.Typer) -> None:
    """Add the command to the group `heads`."""
    group.command(name="attention", help=_HELP)(attention)


def attention(
    store: StoreUrl,
    heads: Annotated[
        str,
        typer.Option(
            help="LAYER:HEAD, joined by commas, such as 3:1,5:0; or SQL with the columns layer and head, such as "
            '"SELECT layer, head FROM heads".'
        ),
    ],
    positions: Annotated[
        str, typer.Option(help="Where from: decision, -1, -8..0, a segment; joined by commas.")
    ] = "decision",
    where: Annotated[str | None, typer.Option(help="SQL condition over examples (e).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N examples.")] = None,
    model_alias: Annotated[str | None, typer.Option(help="Model of the store, where it has several.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Where the model is, if it has moved; repeatable.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="Where its adapter is, if it has moved; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Write to a .csv, .json, .jsonl or .parquet file; path or URL.")
    ] = None,
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    format = output.rpartition(".")[2].lower() if output is not None else ""
    if output is not None and format not in FORMATS[1:]:
        raise QueryError(f"{output}: name a file that ends in .{', .'.join(FORMATS[1:])}")
    with open_to_read(store, config) as opened:
        report = opened.attention(
            heads,
            positions=positions,
            where=where,
            limit=limit,
            model=model_alias,
            models=tuple(model or ()),
            adapters=tuple(adapter or ()),
            device=device,
        )
        if output is not None:
            from cliffstore.run.saving import saving

            opened.register(_TABLE, report.table)
            with (
                opened.catalog.batches(f"SELECT * FROM {_TABLE}") as batches,
                saving(output, opened.storage_options_for(output)) as sink,
            ):
                write(batches, format, sink)
    rows = report.table.to_pylist()
    if json:
        facts = {name: getattr(report, name) for name in ("model", "positions", "examples", "without_position")}
        print_json({**facts, "attention": rows})
        return
    print_table(
        ["head", "segment", "n", "mass", "95 %", "share of tokens", "per token", "95 %"],
        [
            [
                f"{row['layer']}:{row['head']}",
                row["segment"],
                row["n"],
                row["mass"],
                _interval(row["mass_low"], row["mass_high"]),
                row["share"],
                row["per_token"],
                _interval(row["per_token_low"], row["per_token_high"]),
            ]
            for row in rows
        ],
    )
    if output is not None:
        print(f"\n{output}: {len(rows)} rows")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"
