"""`cliffstore select` and `cliffstore export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import Json, StoreUrl, print_json


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="select", help="Choose training examples, the largest cliffs first.")(select)
    app.command(name="export", help="Write a selection as a Parquet training set with its dataset card.")(export)


def select(
    store: StoreUrl,
    name: Annotated[str, typer.Option("--name", help="Name of the selection.")],
    top: Annotated[str, typer.Option(help="A number such as 700, or a share such as 1.7%.")],
    strategy: Annotated[str, typer.Option(help="cliff.")] = "cliff",
    probe: Annotated[str | None, typer.Option(help="Probe, where several have cliffs.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over examples.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a selection of that name.")] = False,
    json: Json = False,
) -> None:
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    with Store(store, reporter=choose_reporter()) as opened:
        report = opened.select(name, top=top, probe=probe, strategy=strategy, where=where, replace=replace)
    if json:
        print_json(asdict(report))
        return
    unranked = f", {report.not_ranked} more have no cliff" if report.not_ranked else ""
    print(
        f"selection {name}: {report.chosen} of {report.candidates} examples by {report.strategy} of probe "
        f"{report.probe} (lowest {report.lowest:.3f}{unranked})"
    )


def export(
    store: StoreUrl,
    selection: Annotated[str, typer.Option(help="Name of a selection.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder, or file that ends in .parquet; path or URL.")],
    format: Annotated[str, typer.Option(help="messages.")] = "messages",
    target_column: Annotated[str, typer.Option(help="Column with the answer to learn.")] = "response",
    target_text: Annotated[str | None, typer.Option(help="One answer to learn for all examples.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    with Store(store, reporter=choose_reporter()) as opened:
        report = opened.export(selection, output, format=format, target_column=target_column, target_text=target_text)
    if json:
        print_json(asdict(report))
        return
    print(f"{report.path}: {report.rows} rows; card: {report.card}")
