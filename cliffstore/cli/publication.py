"""`cliffstore select`, `cliffstore selections` and `cliffstore export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import (
    Config,
    Json,
    MaybeStoreUrl,
    OptionsFrom,
    StoreUrl,
    describe_rows,
    describe_selection,
    open_store,
    open_to_read,
    print_json,
    print_lines,
    print_table,
)

if TYPE_CHECKING:
    from cliffstore.publish.comparison import Comparison


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="select", help="Choose training examples, by default the largest cliffs.")(select)
    selections = typer.Typer(help="Selections that were made.", rich_markup_mode=None)
    selections.command(name="compare", help="Hold two selections against each other: overlap, rank correlation.")(
        compare
    )
    app.add_typer(selections, name="selections")
    app.command(name="export", help="Write a selection as a Parquet training set with its dataset card.")(export)


def select(
    store: MaybeStoreUrl = None,
    config: Config = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the selection. Required.")] = None,
    top: Annotated[str | None, typer.Option(help="A number such as 700, or a share such as 1.7%. Required.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="cliff; final (score before the answer, lowest first); random; rules (responses that refuse by no "
            "phrase, in random order); column:NAME, sql:EXPRESSION (highest first). Default: cliff."
        ),
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest value first.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of random and rules. Default: 0.")] = None,
    rules: Annotated[
        str | None, typer.Option(help="File of phrases that refusals begin with, one a line. Default: built-in ones.")
    ] = None,
    probe: Annotated[str | None, typer.Option(help="Probe, where several have cliffs.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over examples (e) and cliffs (c).")] = None,
    min_plateau: Annotated[float | None, typer.Option(help="Least plateau, a logit.")] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="At most so many: COLUMN=50%, COLUMN=100 of any one value, COLUMN:VALUE=500. Repeatable."),
    ] = None,
    dedupe: Annotated[
        list[str] | None,
        typer.Option(help="No near-duplicates, by prompt[:0.8] (words) or activation[:0.98] (cosine). Repeatable."),
    ] = None,
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
        "ascending": ascending or None,
        "seed": seed,
        "rules": rules,
        "probe": probe,
        "where": where,
        "min_plateau": min_plateau,
        "quota": quota or None,
        "dedupe": dedupe or None,
        "replace": replace or None,
    }
    settings = read_config(SelectConfig, config, given)
    with open_store(settings) as opened:
        report = select_in(opened, settings)
    if json:
        print_json(asdict(report))
    else:
        print(describe_selection(report))


def compare(
    store: StoreUrl,
    first: Annotated[str, typer.Argument(metavar="A", help="Name of a selection.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Name of another.")],
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    with open_to_read(store, config) as opened:
        found = opened.compare_selections(first, second)
    if json:
        print_json(asdict(found))
        return
    rows = [list(asdict(side).values()) for side in (found.first, found.second)]
    print_table(["selection", "strategy", "probe", "examples", "candidates"], rows)
    print()
    print_lines(described(found))


def described(found: Comparison) -> dict[str, str]:
    """Return the figures of a comparison, for people."""
    chance = "" if found.expected_overlap is None else f" ({found.expected_overlap:.1f} by chance)"
    figures = {
        "chosen by both": f"{found.overlap}{chance}",
        "Jaccard index": f"{found.jaccard:.3f}",
        f"share of {found.first.name}": f"{found.of_first:.1%}",
        f"share of {found.second.name}": f"{found.of_second:.1%}",
        "Spearman, chosen by both": _correlation(found.rank_correlation),
    }
    if found.not_compared is not None:
        return {**figures, "Spearman, all candidates": f"not measured: {found.not_compared}"}
    value = _correlation(found.value_correlation)
    return {**figures, "Spearman, all candidates": f"{value} ({found.common_candidates} common candidates)"}


def _correlation(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def export(
    store: MaybeStoreUrl = None,
    config: Config = None,
    selection: Annotated[str | None, typer.Option(help="Name of a selection. Required.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder, or file that ends in .parquet; path or URL. Required.")
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
