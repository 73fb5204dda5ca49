"""`cliffstore probe fit|list|show`, `score`, `cliff`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import Json, StoreUrl, print_json, print_lines, print_table

Probe = Annotated[str, typer.Option("--probe", help="Name of a probe.")]
Name = Annotated[str, typer.Option("--name", help="Name of the probe.")]

TOP_CLIFFS = """
SELECT c.cliff, c.plateau, c.final, c.n_think, e.id, e.label, e.prompt
FROM cliffs c JOIN examples e USING (example)
WHERE c.probe = $1 AND c.cliff IS NOT NULL AND ($3 IS NULL OR e.label = $3)
ORDER BY c.cliff DESC, e.id LIMIT $2
"""


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    probe = typer.Typer(help="Linear probes.", rich_markup_mode=None)
    probe.command(name="fit", help="Fit logistic regression on each layer; validation AUROC chooses the layer.")(fit)
    probe.command(name="list", help="List the probes of a store.")(list_all)
    probe.command(name="show", help="Show a probe and its figures for each layer.")(show)
    app.add_typer(probe, name="probe")
    app.command(name="score", help="Score every stored token with a probe.")(score)
    app.command(name="cliff", help="Rank examples by plateau minus score at the decision position.")(cliff)


def fit(
    store: StoreUrl,
    name: Name,
    label: Annotated[str, typer.Option(help="Column of examples, or SQL expression.")] = "label",
    positive: Annotated[
        str | None, typer.Option(help="Value of the positive class; needed unless 0/1 or true/false.")
    ] = None,
    site: Annotated[str, typer.Option(help="Site to read.")] = "resid_post",
    layers: Annotated[str, typer.Option(help="all, 0-29, or 8,16.")] = "all",
    model: Annotated[str | None, typer.Option(help="Model alias, where the store has several.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition: which examples to fit and validate on.")] = None,
    test_where: Annotated[str | None, typer.Option(help="SQL condition: an unseen data set to test on.")] = None,
    c: Annotated[float, typer.Option("--c", min=1e-9, help="Inverse strength of the L2 penalty.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a probe of that name.")] = False,
    json: Json = False,
) -> None:
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    with Store(store, reporter=choose_reporter()) as opened:
        document = opened.fit_probe(
            name,
            replace=replace,
            label=label,
            positive=positive,
            site=site,
            layers=layers,
            model=model,
            where=where,
            test_where=test_where,
            c=c,
            seed=seed,
        )
    if json:
        print_json(document.model_dump(mode="json"))
        return
    chosen = next(metrics for metrics in document.layers if metrics.layer == document.layer)
    test = (
        "" if chosen.test_auroc is None else f"; unseen test AUROC {chosen.test_auroc:.4f} ({document.n_test} examples)"
    )
    print(
        f"probe {document.name}: {document.site} layer {document.layer} of {len(document.layers)} layers tried, "
        f"validation AUROC {chosen.auroc:.4f} ({document.n_train} train, {document.n_validation} validation){test}; "
        f"shuffled labels {document.shuffled_auroc:.3f}"
    )


def list_all(store: StoreUrl, json: Json = False) -> None:
    from cliffstore.run.store import Store

    with Store(store) as opened:
        table = opened.catalog.arrow("SELECT * EXCLUDE (digest) FROM probes ORDER BY probe")
    if json:
        print_json(table.to_pylist())
    else:
        print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])


def show(store: StoreUrl, name: Name, json: Json = False) -> None:
    from cliffstore.run.store import Store
    from cliffstore.store.probes import read_probe

    with Store(store) as opened:
        document, _ = read_probe(opened.reader.objects, name)
    if json:
        print_json(document.model_dump(mode="json"))
        return
    facts = document.model_dump(exclude={"layers"})
    print_lines(facts)
    print()
    print_table(
        list(type(document.layers[0]).model_fields), [list(one.model_dump().values()) for one in document.layers]
    )


def score(store: StoreUrl, probe: Probe, json: Json = False) -> None:
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    with Store(store, reporter=choose_reporter()) as opened:
        report = opened.score(probe)
    if json:
        print_json(asdict(report))
    else:
        print(
            f"probe {probe}: {report.tokens:,} tokens of {report.units} units scored now, "
            f"{report.units_done_before} units had scores"
        )


def cliff(
    store: StoreUrl,
    probe: Probe,
    top: Annotated[int, typer.Option(min=1, help="Examples to show.")] = 20,
    json: Json = False,
) -> None:
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    with Store(store, reporter=choose_reporter()) as opened:
        report = opened.cliff(probe)
        table = opened.catalog.arrow(TOP_CLIFFS, [probe, top, None])
    if json:
        print_json({**asdict(report), "top": table.to_pylist()})
        return
    print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])
