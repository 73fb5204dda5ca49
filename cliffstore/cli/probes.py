"""`cliffstore probe fit|list|show|import|export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import (
    Config,
    Json,
    MaybeStoreUrl,
    OptionsFrom,
    StoreUrl,
    open_store,
    open_to_read,
    print_json,
    print_lines,
    print_table,
)

if TYPE_CHECKING:
    from cliffstore.schema import ProbeDocument

Name = Annotated[str, typer.Option("--name", help="Name of the probe.")]
Positive = Annotated[str | None, typer.Option(help="Value of the positive class; needed unless 0/1 or true/false.")]
Model = Annotated[str | None, typer.Option(help="Model alias, where the store has several.")]
Site = Annotated[str | None, typer.Option(help="Site to read. Default: resid_post.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a probe of that name.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    probe = typer.Typer(help="Linear probes.", rich_markup_mode=None)
    probe.command(name="fit", help="Fit a probe at each position and layer; validation AUROC chooses one.")(fit)
    probe.command(name="list", help="List the probes of a store.")(list_all)
    probe.command(name="show", help="Show a probe and its figures for each position and layer.")(show)
    probe.command(name="import", help="Keep a direction from a NumPy or safetensors file as a probe.")(bring)
    probe.command(name="random", help="Keep random directions as probes, a control for another probe.")(random)
    probe.command(name="export", help="Write a probe to a safetensors or NumPy file.")(export)
    app.add_typer(probe, name="probe")


def fit(
    store: MaybeStoreUrl = None,
    config: Config = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the probe. Required.")] = None,
    kind: Annotated[str | None, typer.Option(help="logistic, mean_difference or lda. Default: logistic.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of examples, or SQL expression. Default: label.")] = None,
    positive: Positive = None,
    site: Site = None,
    layers: Annotated[str | None, typer.Option(help="all, 0-29, or 8,16. Default: all.")] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="decision, a distance from it (-1), a range (-8..0), a segment (think), joined by commas. "
            "Default: decision."
        ),
    ] = None,
    model: Model = None,
    where: Annotated[str | None, typer.Option(help="SQL condition: which examples to fit and validate on.")] = None,
    test_where: Annotated[str | None, typer.Option(help="SQL condition: an unseen data set to test on.")] = None,
    test_store: Annotated[
        str | None, typer.Option(help="Another store of the same model, whose examples are the unseen data set.")
    ] = None,
    c: Annotated[
        str | None,
        typer.Option("--c", help="Inverse strength of the L2 penalty; auto: by cross-validation. Default: auto."),
    ] = None,
    shrinkage: Annotated[
        str | None, typer.Option(help="Of lda, 0 to 1; auto: by cross-validation. Default: auto.")
    ] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced: both classes count the same; none. Default: balanced.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the split. Default: 0.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where layers are fitted: auto, local, ray. Default: auto.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Layers that are fitted at once. Default: one a CPU.")
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Vectors in memory at once, such as 2GB. Default: half of what is free.")
    ] = None,
    out_of_core: Annotated[
        bool, typer.Option("--out-of-core", help="Fit over units, whatever the memory budget.")
    ] = False,
    replace: Replace = False,
    json: Json = False,
) -> None:
    from cliffstore.config import ProbeConfig
    from cliffstore.run.pipeline import IN_STORE
    from cliffstore.settings import read_config

    given = {
        "store": store,
        "name": name,
        "kind": kind,
        "label": label,
        "positive": positive,
        "site": site,
        "layers": layers,
        "positions": positions,
        "model": model,
        "where": where,
        "test_where": test_where,
        "test_store": test_store,
        "c": c,
        "shrinkage": shrinkage,
        "class_weight": class_weight,
        "seed": seed,
        "executor": executor,
        "workers": workers,
        "memory_budget": memory_budget,
        "out_of_core": out_of_core or None,
        "replace": replace or None,
    }
    settings = read_config(ProbeConfig, config, given)
    with open_store(settings) as opened:
        document = opened.fit_probe(**settings.model_dump(exclude=IN_STORE))
    _print(document, json)


def list_all(store: StoreUrl, config: OptionsFrom = None, json: Json = False) -> None:
    with open_to_read(store, config) as opened:
        everything = opened.catalog.arrow("SELECT * EXCLUDE (digest) FROM probes ORDER BY probe")
        table = opened.catalog.arrow(
            "SELECT probe, kind, model, site, layer, positions, label, positive, n_train, auroc, test_auroc, "
            "shuffled_auroc, bag_auroc FROM probes ORDER BY probe"
        )
    if json:
        print_json(everything.to_pylist())
    else:
        print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])


def show(
    store: StoreUrl,
    name: Name,
    config: OptionsFrom = None,
    heatmap: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw validation AUROC by layer and position: .png, .svg, .json."),
    ] = None,
    json: Json = False,
) -> None:
    from cliffstore.store.probes import read_probe

    with open_to_read(store, config) as opened:
        document, _ = read_probe(opened.reader.objects, name)
    if heatmap is not None:
        from cliffstore.publish.charts.layers import layer_heat_map
        from cliffstore.publish.charts.pictures import kind_of, picture
        from cliffstore.publish.charts.theme import themed
        from cliffstore.run.interventions.directions import put_file

        title = f"{document.name}: {document.kind}, {document.site}"
        content = picture(themed(layer_heat_map(document), "light", title=title), kind_of(heatmap))
        put_file(heatmap, content)
    if json:
        print_json(document.model_dump(mode="json"))
        return
    print_lines(document.model_dump(exclude={"cells"}))
    if not document.cells:
        return
    print()
    columns = ["positions", "layer", "c", "auroc", "auroc_low", "auroc_high", "accuracy", "recall_at_1_fpr"]
    columns += ["calibration_error", "log_loss", "test_auroc"]
    if document.kind == "lda":
        columns[2] = "shrinkage"
    print_table(columns, [[getattr(cell, column) for column in columns] for cell in document.cells])
    if len(document.cells) > 1:
        from cliffstore.cli.heatmap import print_heatmap

        print()
        print_heatmap(document)


def bring(
    store: StoreUrl,
    file: Annotated[str, typer.Argument(metavar="FILE", help=".safetensors, .npz or .npy; path or URL.")],
    name: Name,
    layer: Annotated[int, typer.Option(min=0, help="Layer that it is a direction of.")],
    config: OptionsFrom = None,
    site: Site = None,
    model: Model = None,
    positions: Annotated[str | None, typer.Option(help="The position that it is for. Default: decision.")] = None,
    bias: Annotated[float | None, typer.Option(help="b of score = w·h + b. Default: the file's, else 0.")] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Label on which scale and offset are fitted, and measured.")
    ] = None,
    positive: Positive = None,
    where: Annotated[str | None, typer.Option(help="SQL condition: which examples to calibrate on.")] = None,
    test_where: Annotated[str | None, typer.Option(help="SQL condition: an unseen data set to test on.")] = None,
    replace: Replace = False,
    json: Json = False,
) -> None:
    from cliffstore.run.interventions.directions import read_direction

    with open_to_read(store, config) as opened:
        weights, offset = read_direction(file, opened.reader.objects.storage_options if "://" in file else None)
        document = opened.import_probe(
            name,
            weights,
            layer=layer,
            bias=bias if bias is not None or calibrate is not None else offset,
            calibrate=calibrate,
            replace=replace,
            site=site,
            model=model,
            positions=positions,
            positive=positive,
            where=where,
            test_where=test_where,
        )
    _print(document, json)


def random(
    store: StoreUrl,
    like: Annotated[str, typer.Option(help="Probe whose site, layer and norm they have.")],
    config: OptionsFrom = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the directions.")] = 0,
    replace: Replace = False,
    json: Json = False,
) -> None:
    with open_to_read(store, config) as opened:
        documents = opened.random_probes(like, n, seed=seed, replace=replace)
    if json:
        print_json([document.model_dump(mode="json") for document in documents])
        return
    for document in documents:
        print(f"probe {document.name}: random, {document.site} layer {document.layer}")


def export(
    store: StoreUrl,
    name: Name,
    output: Annotated[str, typer.Option("--output", "-o", help="File .safetensors, .npz or .npy; path or URL.")],
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    with open_to_read(store, config) as opened:
        document = opened.export_probe(name, output)
    if json:
        print_json({"name": name, "output": output, "digest": document.digest})
    else:
        print(f"probe {name} in {output}")


def _print(document: ProbeDocument, json: bool) -> None:
    from cliffstore.run.pipeline import describe_probe

    if json:
        print_json(document.model_dump(mode="json"))
        return
    print(f"probe {describe_probe(document)}")
    if len(document.cells) > 1:
        from cliffstore.cli.heatmap import print_heatmap

        print()
        print_heatmap(document)
