"""`cliffstore pipeline`."""

from __future__ import annotations

from typing import Annotated

import typer

from cliffstore.cli.output import Json, describe_rows, print_json

_HELP = """From corpus to training set: extract, probe, score, cliff, select, export.

The YAML file has `store`, `storage_options`, and a section for each stage with the options of its command. Run the
same command again to go on after a crash or an interrupt: what is there already is not done again.
"""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="pipeline", help=_HELP)(pipeline)


def pipeline(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="YAML file with a section for each stage.")],
    set: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.OPTION=VALUE, over what the file says; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import PipelineConfig
    from cliffstore.run.pipeline import run_pipeline
    from cliffstore.run.progress import choose_reporter
    from cliffstore.settings import parse_overrides, read_config

    settings = read_config(PipelineConfig, config, parse_overrides(set or []))
    report = run_pipeline(settings, choose_reporter())
    if json:
        print_json(report.to_dict())
    else:
        print(f"{report.export.path}: {describe_rows(report.export)}; card: {report.export.card}")
