"""`cliffstore select` and `cliffstore export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import Config, Json, MaybeStoreUrl, describe_rows, describe_selection, open_store, print_json


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="select", help="Choose training examples, the largest cliffs first.")(select)
    app.command(name="export", help="Write a selection as a Parquet training set with its dataset card.")(export)


def select(
    store: MaybeStoreUrl = None,
    config: Config = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the selection.")] = None,
    top: Annotated[str | None, typer.Option(help="A number such as 700, or a share such as 1.7%.")] = None,
    strategy: Annotated[str | None, typer.Option(help="cliff.")] = None,
    probe: Annotated[str | None, typer.Option(help="Probe, where several have cliffs.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over examples.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a selection of that name.")] = False,
    json: Json = False,
) -> None:
    from cliffstore.config import SelectConfig
    from cliffstore.run.pipeline import select_in
    from cliffstore.settings import read_config

    given = {
        "store": store,
        "name": name,
        "top": top,
        "strategy": strategy,
        "probe": probe,
        "where": where,
        "replace": replace or None,
    }
    settings = read_config(SelectConfig, config, given)
    with open_store(settings) as opened:
        report = select_in(opened, settings)
    if json:
        print_json(asdict(report))
    else:
        print(describe_selection(report))


def export(
    store: MaybeStoreUrl = None,
    config: Config = None,
    selection: Annotated[str | None, typer.Option(help="Name of a selection.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder, or file that ends in .parquet; path or URL.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="messages, prompt-completion, alpaca or raw. Default: messages.")
    ] = None,
    thinking: Annotated[
        str | None,
        typer.Option(help="keep, keep:40% (of its words, the first), drop, or replace:TEXT. Default: keep."),
    ] = None,
    target_column: Annotated[
        str | None, typer.Option(help="Column with the answer to learn. Default: response.")
    ] = None,
    target_text: Annotated[str | None, typer.Option(help="One answer to learn for all examples.")] = None,
    target_template: Annotated[
        str | None, typer.Option(help="File with a Jinja template of the answer, over columns of examples.")
    ] = None,
    target_endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL up to /v1 of a model that answers; with a template, that is what it is asked. Its key is read "
            "from CLIFFSTORE_ENDPOINT_KEY."
        ),
    ] = None,
    target_model: Annotated[str | None, typer.Option(help="Model that the endpoint is asked for.")] = None,
    target_max_tokens: Annotated[
        int | None, typer.Option(help="Longer answers of the endpoint are not taken. Default: 1024.")
    ] = None,
    target_answers: Annotated[
        str | None, typer.Option(help="File of the endpoint's answers, to use again. Default: beside the output.")
    ] = None,
    mix: Annotated[
        str | None, typer.Option(help="Share of the training set, such as 30%, that is mixed in from other examples.")
    ] = None,
    mix_where: Annotated[
        str | None, typer.Option(help="SQL condition over the examples that may be mixed in, such as \"label = '0'\".")
    ] = None,
    mix_target_column: Annotated[
        str | None, typer.Option(help="Column with the answers of what is mixed in. Default: response.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Share of rows, such as 10%, for a validation part; equal prompts never part.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column of examples whose equal values stay in one part, too.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is mixed in and what validates. Default: 0.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import ExportConfig
    from cliffstore.run.pipeline import IN_STORE
    from cliffstore.settings import read_config

    given = {
        "store": store,
        "selection": selection,
        "output": output,
        "format": format,
        "thinking": thinking,
        "target_column": target_column,
        "target_text": target_text,
        "target_template": target_template,
        "target_endpoint": target_endpoint,
        "target_model": target_model,
        "target_max_tokens": target_max_tokens,
        "target_answers": target_answers,
        "mix": mix,
        "mix_where": mix_where,
        "mix_target_column": mix_target_column,
        "validation": validation,
        "group_by": group_by,
        "seed": seed,
    }
    settings = read_config(ExportConfig, config, given)
    with open_store(settings) as opened:
        report = opened.export(**settings.model_dump(exclude=IN_STORE))
    if json:
        print_json(asdict(report))
        return
    print(f"{report.path}: {describe_rows(report)}; card: {report.card}")
