"""`cliffstore probe fit|list|show`, `score`, `cliff`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cliffstore.cli.output import (
    Config,
    Json,
    MaybeStoreUrl,
    OptionsFrom,
    StoreUrl,
    describe_selection,
    open_store,
    open_to_read,
    print_json,
    print_lines,
    print_table,
)

Probe = Annotated[str | None, typer.Option("--probe", help="Name of a probe.")]
Name = Annotated[str, typer.Option("--name", help="Name of the probe.")]

_SCORE = """Score every stored token with probes, from stored activations.

Run the same command again to go on after a crash or an interrupt. Several probes are scored together: vectors are
read once for all probes of a layer.
"""

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
    app.command(name="score", help=_SCORE)(score)
    app.command(name="cliff", help="Rank examples by plateau minus score at the decision position.")(cliff)


def fit(
    store: MaybeStoreUrl = None,
    config: Config = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the probe.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of examples, or SQL expression. Default: label.")] = None,
    positive: Annotated[
        str | None, typer.Option(help="Value of the positive class; needed unless 0/1 or true/false.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site to read. Default: resid_post.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, 0-29, or 8,16. Default: all.")] = None,
    model: Annotated[str | None, typer.Option(help="Model alias, where the store has several.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition: which examples to fit and validate on.")] = None,
    test_where: Annotated[str | None, typer.Option(help="SQL condition: an unseen data set to test on.")] = None,
    c: Annotated[
        float | None, typer.Option("--c", min=1e-9, help="Inverse strength of the L2 penalty. Default: 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the split. Default: 0.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a probe of that name.")] = False,
    json: Json = False,
) -> None:
    from cliffstore.config import ProbeConfig
    from cliffstore.run.pipeline import IN_STORE, describe_probe
    from cliffstore.settings import read_config

    given = {
        "store": store,
        "name": name,
        "label": label,
        "positive": positive,
        "site": site,
        "layers": layers,
        "model": model,
        "where": where,
        "test_where": test_where,
        "c": c,
        "seed": seed,
        "replace": replace or None,
    }
    settings = read_config(ProbeConfig, config, given)
    with open_store(settings) as opened:
        document = opened.fit_probe(**settings.model_dump(exclude=IN_STORE))
    if json:
        print_json(document.model_dump(mode="json"))
    else:
        print(f"probe {describe_probe(document)}")


def list_all(store: StoreUrl, config: OptionsFrom = None, json: Json = False) -> None:
    with open_to_read(store, config) as opened:
        table = opened.catalog.arrow("SELECT * EXCLUDE (digest) FROM probes ORDER BY probe")
    if json:
        print_json(table.to_pylist())
    else:
        print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])


def show(store: StoreUrl, name: Name, config: OptionsFrom = None, json: Json = False) -> None:
    from cliffstore.store.probes import read_probe

    with open_to_read(store, config) as opened:
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


def score(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="Name of a probe; repeatable. all: every probe of the store.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="auto, local, ray. auto is ray where RAY_ADDRESS is set.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors. Default: one a node.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import ScoreConfig
    from cliffstore.settings import read_config

    given = {"store": store, "probe": tuple(probe) if probe else None, "executor": executor, "actors": actors}
    settings = read_config(ScoreConfig, config, given)
    with open_store(settings) as opened:
        report = opened.score(settings.probe, executor=settings.executor, actors=settings.actors)
    if json:
        print_json(asdict(report))
        return
    for one in report.probes:
        print(
            f"probe {one.probe}: {one.tokens:,} tokens of {one.units} units scored now, "
            f"{one.units_done_before} units had scores"
        )


def cliff(
    store: MaybeStoreUrl = None,
    config: Config = None,
    probe: Probe = None,
    top: Annotated[int | None, typer.Option(min=1, help="Examples to show. Default: 20.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.config import CliffConfig
    from cliffstore.run.pipeline import check_selection, select_in
    from cliffstore.settings import read_config

    settings = read_config(CliffConfig, config, {"store": store, "probe": probe, "top": top})
    if settings.select is not None:
        check_selection(settings.select, "select.")
    with open_store(settings) as opened:
        report = opened.cliff(settings.probe)
        table = opened.catalog.arrow(TOP_CLIFFS, [settings.probe, settings.top, None])
        selected = select_in(opened, settings.select) if settings.select is not None else None
    if json:
        selection = {"select": asdict(selected)} if selected is not None else {}
        print_json({**asdict(report), "top": table.to_pylist(), **selection})
        return
    print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])
    if selected is not None:
        print(f"\n{describe_selection(selected)}")
