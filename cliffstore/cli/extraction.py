"""`cliffstore extract`."""

from __future__ import annotations

from typing import Annotated

import typer

from cliffstore.cli.output import Json, print_json
from cliffstore.errors import ConfigError

_HELP = """Compute the activations of a corpus once and store them.

Run the same command again to go on after a crash or an interrupt.
"""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="extract", help=_HELP)(extract)


def extract(
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            help="JSONL, JSON, CSV, Parquet, a datasets folder; paths or URLs. Without: the plans that the store holds."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Local folder, hub name, or .gguf file. Required.")] = None,
    store: Annotated[str | None, typer.Option(help="Path or URL of the store. Required.")] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with any of these options; the command line wins.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add the corpus to a store that holds others.")] = False,
    map: Annotated[
        list[str] | None, typer.Option("--map", help="KNOWN=COLUMN, such as prompt=instruction; repeatable.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over the corpus's columns.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, 0-29, or 8,16. Default: all.")] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, final_norm; joined by commas. "
            "Default: resid_post."
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(help="all, decision, think, last:N, stride:K; joined by commas. Default: all."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            help="Score with this probe while the model runs and store no activation; repeatable. "
            "A probe of the store, or STORE/probes/NAME of another.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, bfloat16, float16, float32. Default: the checkpoint's.")
    ] = None,
    model_alias: Annotated[str | None, typer.Option(help="Name of the model in the store. Default: main.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="auto, local, ray. Default: auto, which is ray where RAY_ADDRESS is set.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors. Default: one a GPU, else one a node.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda ... Default: auto.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter over the model: folder or hub name.")] = None,
    intervene: Annotated[
        str | None,
        typer.Option(
            help="YAML or JSON file of interventions: heads scaled, directions taken out, vectors added; needs "
            "--model-alias."
        ),
    ] = None,
    gpus_per_actor: Annotated[
        int | None, typer.Option(help="GPUs that one copy of the model is spread over. Default: 1.")
    ] = None,
    passes: Annotated[
        str | None, typer.Option(help="auto, tree, padded: how forward passes are made. Default: measured.")
    ] = None,
    pass_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass. Default: measured.")] = None,
    unit_rows: Annotated[int | None, typer.Option(help="Rows of a unit. Default: about 1 GiB of vectors.")] = None,
    confirm_gb: Annotated[float | None, typer.Option(help="Ask above this many GB of vectors. Default: 100.")] = None,
    confirm_hours: Annotated[float | None, typer.Option(help="Ask above this many hours. Default: 12.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin, however large the estimate is.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Skip longer examples. Default: the model's context.")] = None,
    think_open: Annotated[str | None, typer.Option(help="Text before thinking. Default: the template's.")] = None,
    think_close: Annotated[str | None, typer.Option(help="Text after thinking. Default: the template's.")] = None,
    template_date: Annotated[
        str | None, typer.Option(help="Date for templates that print one. Default: 2024-07-26.")
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Store NaN and Inf instead of failing.")
    ] = False,
    json: Json = False,
) -> None:
    from cliffstore.config import load_config
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.stages import run_extraction

    given: dict[str, object] = {
        "corpus": tuple(corpus) if corpus else None,
        "model": model,
        "store": store,
        "append": append or None,
        "map": parse_map(map) if map else None,
        "where": where,
        "limit": limit,
        "layers": layers,
        "sites": tuple(site.strip() for site in sites.split(",")) if sites else None,
        "dtype": dtype,
        "model_alias": model_alias,
        "revision": revision,
        "executor": executor,
        "actors": actors,
        "device": device,
        "positions": positions,
        "probe": tuple(probe) if probe else None,
        "adapter": adapter,
        "intervene": intervene,
        "gpus_per_actor": gpus_per_actor,
        "passes": passes,
        "pass_tokens": pass_tokens,
        "unit_rows": unit_rows,
        "confirm_gb": confirm_gb,
        "confirm_hours": confirm_hours,
        "yes": yes or None,
        "max_tokens": max_tokens,
        "think_open": unescaped(think_open),
        "think_close": unescaped(think_close),
        "template_date": template_date,
        "allow_nonfinite": allow_nonfinite or None,
    }
    report = run_extraction(load_config(config, given), choose_reporter())
    if json:
        print_json(report.to_dict())
        return
    rate = f", {report.bytes / 1e6:,.0f} MB in {report.seconds:,.1f} s" if report.units_done_now else ""
    print(
        f"{report.store}: {report.examples:,} examples, {report.tokens:,} tokens in {report.rows:,} rows, "
        f"{report.skipped} skipped; {report.units_done_now} of {report.units} units extracted now{rate}"
    )


def parse_map(pairs: list[str]) -> dict[str, str]:
    """Return `--map prompt=instruction` values as a mapping. Raises `ConfigError` where one has no `=`."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        known, equals, column = pair.partition("=")
        if not (known and equals and column):
            raise ConfigError(f"--map {pair!r}: write KNOWN=COLUMN, such as prompt=instruction")
        if known.strip() in mapping:
            raise ConfigError(f"--map {known.strip()} is said twice: {mapping[known.strip()]} and {column.strip()}")
        mapping[known.strip()] = column.strip()
    return mapping


def unescaped(text: str | None) -> str | None:
    r"""Turn a typed \n into a line break: shells make it hard to type one."""
    return text.replace("\\n", "\n") if text is not None else None
