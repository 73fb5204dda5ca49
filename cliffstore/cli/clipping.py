"""`cliffstore clip make|report`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import Json, OptionsFrom, StoreUrl, open_to_read, print_json, print_table

_MAKE = """Write a corpus whose rows keep 100 to 0 % of an example's thinking.

Extract it into the same store with `cliffstore extract FILE --append`: tokens that rows of one example share are
computed once. Then score it, and see `cliffstore clip report`.
"""


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    clip = typer.Typer(
        help="Thinking cut short: how the score depends on how much of it is kept.", rich_markup_mode=None
    )
    clip.command(name="make", help=_MAKE)(make)
    clip.command(name="report", help="Show the score before the answer by fraction of thinking kept.")(report)
    app.add_typer(clip, name="clip")


def make(
    store: StoreUrl,
    output: Annotated[str, typer.Option("-o", "--output", help="File that ends in .jsonl or .parquet; path or URL.")],
    keep: Annotated[
        str, typer.Option(help="Percentages of the tokens of the thinking, joined by commas.")
    ] = "100,80,60,40,20,0",
    where: Annotated[str | None, typer.Option(help="SQL condition over examples.")] = None,
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    from cliffstore.analyze.clipping import parse_keep

    percentages = parse_keep(keep)
    with open_to_read(store, config) as opened:
        report = opened.clip(output, keep=percentages, where=where)
    if json:
        print_json(asdict(report))
    else:
        print(f"{report.path}: {report.rows} rows of {report.examples} examples")


def report(
    store: StoreUrl,
    probe: Annotated[str, typer.Option("--probe", help="Name of a probe that has scored the clipped examples.")],
    where: Annotated[
        str | None, typer.Option(help="SQL condition over clipped examples, such as \"label = '1'\".")
    ] = None,
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    with open_to_read(store, config) as opened:
        rows = [asdict(one) for one in opened.clip_report(probe, where=where)]
    if json:
        print_json(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
