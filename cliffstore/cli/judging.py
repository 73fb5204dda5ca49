"""`cliffstore judge`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Config, Json, print_json, print_table

if TYPE_CHECKING:
    from cliffstore.run.judging.judging import JudgeReport

_HELP = """Say which responses refuse: attack success and over-refusal, with 95 % intervals.

CORPUS is files with responses, or a store. Judges are rules (wordings of refusals), an endpoint (another model), or a
column of the corpus, such as a person's verdict; several are held against each other. With -o, rows are written with
the columns refused, judge, verdict and reason.
"""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="judge", help=_HELP)(judge)


def judge(
    corpus: Annotated[
        list[str] | None, typer.Argument(metavar="CORPUS", help="Files, folders or URLs; or a store.")
    ] = None,
    config: Config = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File that ends in .jsonl or .parquet; path or URL.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", help="rules, endpoint, column:NAME; repeatable. Default: the endpoint, or rules."),
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option("--map", help="KNOWN=COLUMN, such as response=output; repeatable.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over columns.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Column that tells harmful requests from benign ones. Default: label.")
    ] = None,
    harmful_value: Annotated[str | None, typer.Option(help="Its value for harmful requests. Default: 1.")] = None,
    benign_value: Annotated[str | None, typer.Option(help="For benign ones. Default: every other value.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Column whose values have rates of their own.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Of the names of the columns that are written.")] = None,
    rules: Annotated[
        str | None, typer.Option(help="File of phrases that refusals begin with, one a line. Default: built-in ones.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL up to /v1 of a model that judges. Its key is read from CLIFFSTORE_ENDPOINT_KEY."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model that the endpoint is asked for.")] = None,
    template: Annotated[
        str | None, typer.Option(help="File with a Jinja template over columns: what the endpoint is asked.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that finds the verdict in an answer: its first group.")
    ] = None,
    verdict: Annotated[
        list[str] | None, typer.Option("--verdict", help="WORD=refused or WORD=answered; repeatable.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of one answer. Default: 256.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once. Default: 8.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one of its answers. Default: 120.")] = None,
    answers: Annotated[
        str | None, typer.Option(help="File of the endpoint's answers, to go on with. Default: beside the output.")
    ] = None,
    json: Json = False,
) -> None:
    from cliffstore.cli.extraction import parse_map
    from cliffstore.run.judging.config import JudgeConfig
    from cliffstore.run.judging.judging import run_judging
    from cliffstore.run.progress import choose_reporter
    from cliffstore.settings import read_config

    given: dict[str, object] = {
        "corpus": tuple(corpus) if corpus else None,
        "output": output,
        "judge": tuple(judge) if judge else None,
        "map": parse_map(map) if map else None,
        "where": where,
        "limit": limit,
        "label": label,
        "harmful_value": harmful_value,
        "benign_value": benign_value,
        "group_by": group_by,
        "suffix": suffix,
        "rules": rules,
        "endpoint": endpoint,
        "model": model,
        "template": template,
        "pattern": pattern,
        "verdict": tuple(verdict) if verdict else None,
        "max_tokens": max_tokens,
        "concurrency": concurrency,
        "timeout": timeout,
        "answers": answers,
    }
    report = run_judging(read_config(JudgeConfig, config, given), choose_reporter())
    if json:
        print_json(asdict(report))
        return
    _show(report, grouped=any(one.group is not None for one in report.rates))


def _show(report: JudgeReport, *, grouped: bool) -> None:
    rows: list[list[object]] = []
    for one in report.rates:
        group: list[object] = ["(all)" if one.group is None else one.group or "(none)"] if grouped else []
        rates = [[rate.n, str(rate)] for rate in (one.attack_success, one.over_refusal)]
        rows.append(
            [one.judge, *group, one.examples, str(one.refused), *rates[0], *rates[1], one.missing, one.undecided]
        )
    group_name = ["group"] if grouped else []
    print_table(
        ["judge", *group_name, "rows", "refused", "harmful", "attack success", "benign", "over-refusal", "missing",
         "undecided"],
        rows,
    )  # fmt: skip
    if report.agreements:
        print()
        print_table(
            ["judges", "rows", "agreement", "Cohen's kappa", "first alone refused", "second alone refused"],
            [
                [
                    f"{one.first}, {one.second}",
                    one.agreement.n,
                    str(one.agreement),
                    "not defined" if one.kappa is None else f"{one.kappa:.3f}",
                    one.first_only,
                    one.second_only,
                ]
                for one in report.agreements
            ],
        )
    if report.output is not None:
        print(f"\n{report.output}: {report.examples} rows")
