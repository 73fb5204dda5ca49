"""`cliffstore heads planted`: the group of commands about attention heads. Others add theirs with `add_to(group)`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli import heads_attention, heads_experiment, heads_tracing
from cliffstore.cli.output import Json, print_json, print_lines

_PLANTED = """Write a small hand-built model whose mechanism is known, with its corpus, probe and truth.

A ground truth for probes, cliffs, tracing and ablation: k planted heads take a refusal direction away before the
answer, where the prompt has a jailbreak word. The folder loads as any local model does.
"""


def add_to(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(help="Attention heads: what each does to a probe's score.", rich_markup_mode=None)
    group.command(name="planted", help=_PLANTED)(planted)
    heads_tracing.add_to(group)
    heads_attention.add_to(group)
    heads_experiment.add_to(group)
    # A group of one command would be that command, without a name.
    group.callback()(_group)
    app.add_typer(group, name="heads")


def _group() -> None:
    pass


def planted(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="New or empty folder.")],
    seed: Annotated[
        int, typer.Option(help="Where heads stand, how the basis is turned, which words a prompt has.")
    ] = 0,
    layers: Annotated[int, typer.Option(help="Blocks, at least 3.")] = 6,
    heads: Annotated[int, typer.Option(help="Attention heads of each layer, at least 4.")] = 8,
    suppressors: Annotated[int, typer.Option(help="Planted heads that take the refusal away.")] = 3,
    examples: Annotated[int, typer.Option(help="Rows of the corpus.")] = 96,
    json: Json = False,
) -> None:
    from cliffstore.run.heads.planting import plant_folder

    report = plant_folder(folder, seed=seed, layers=layers, heads=heads, suppressors=suppressors, examples=examples)
    if json:
        print_json(asdict(report))
        return
    facts = {name.replace("_", " "): _listed(value) for name, value in asdict(report).items() if name != "next"}
    print_lines(facts)
    print("\nTry next:")
    for command in report.next:
        print(f"  {command}")


def _listed(value: object) -> object:
    """Return names with commas; heads as layer:head."""
    if not isinstance(value, tuple):
        return value
    return ", ".join(f"{one[0]}:{one[1]}" if isinstance(one, tuple) else str(one) for one in value)
