"""`cliffstore generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from cliffstore.cli.extraction import parse_map, unescaped
from cliffstore.cli.output import Config, Json, print_json

_HELP = """Generate thinking and responses for a corpus; the result is a corpus for `cliffstore extract`.

Run the same command again to go on after a crash or an interrupt: what is finished is not generated again.
"""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="generate", help=_HELP)(generate)


def generate(
    corpus: Annotated[
        list[str] | None, typer.Argument(help="JSONL, JSON, CSV, Parquet, a datasets folder; paths or URLs.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Local folder, hub name, or .gguf file; with --endpoint, its name there. Required."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File that ends in .jsonl or .parquet; path or URL. Required.")
    ] = None,
    config: Config = None,
    map: Annotated[
        list[str] | None, typer.Option("--map", help="KNOWN=COLUMN, such as prompt=instruction; repeatable.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over the corpus's columns.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of thinking and response together. Default: 1024.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token. Default: 0.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Of the likeliest tokens with this probability. Default: 1.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Of so many likeliest tokens. Default: all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling: same seed, same texts. Default: 0.")] = None,
    samples: Annotated[int | None, typer.Option(help="Texts for each example. Default: 1.")] = None,
    stop_at_thinking: Annotated[bool, typer.Option("--stop-at-thinking", help="End where the thinking ends.")] = False,
    regenerate_thinking: Annotated[
        bool, typer.Option("--regenerate-thinking", help="Also where a row has thinking, which is kept otherwise.")
    ] = False,
    intervene: Annotated[str | None, typer.Option(help="File of interventions in the model.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, bfloat16, float16, float32. Default: the checkpoint's.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter over the model: folder or hub name.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="auto, local, ray. Default: auto, which is ray where RAY_ADDRESS is set.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors. Default: one a GPU, else one a node.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda ... Default: auto.")] = None,
    gpus_per_actor: Annotated[
        int | None, typer.Option(help="GPUs that one copy of the model is spread over. Default: 1.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples that are generated at once. Default: 16.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Skip longer prompts. Default: the model's context.")] = None,
    think_open: Annotated[str | None, typer.Option(help="Text before thinking. Default: the template's.")] = None,
    think_close: Annotated[str | None, typer.Option(help="Text after thinking. Default: the template's.")] = None,
    template_date: Annotated[
        str | None, typer.Option(help="Date for templates that print one. Default: 2024-07-26.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL up to /v1 that answers OpenAI's chat completions; key: CLIFFSTORE_ENDPOINT_KEY."),
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests that it has at once. Default: 8.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one of its answers. Default: 600.")] = None,
    json: Json = False,
) -> None:
    from cliffstore.run.generation.config import GenerateConfig
    from cliffstore.run.generation.generating import run_generation
    from cliffstore.run.progress import choose_reporter
    from cliffstore.settings import read_config

    given: dict[str, object] = {
        "corpus": tuple(corpus) if corpus else None,
        "model": model,
        "output": output,
        "map": parse_map(map) if map else None,
        "where": where,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "samples": samples,
        "stop_at_thinking": stop_at_thinking or None,
        "regenerate_thinking": regenerate_thinking or None,
        "intervene": intervene,
        "dtype": dtype,
        "revision": revision,
        "adapter": adapter,
        "executor": executor,
        "actors": actors,
        "device": device,
        "gpus_per_actor": gpus_per_actor,
        "batch_size": batch_size,
        "max_tokens": max_tokens,
        "think_open": unescaped(think_open),
        "think_close": unescaped(think_close),
        "template_date": template_date,
        "endpoint": endpoint,
        "concurrency": concurrency,
        "timeout": timeout,
    }
    report = run_generation(read_config(GenerateConfig, config, given), choose_reporter())
    if json:
        print_json(report.to_dict())
        return
    ends = ", ".join(f"{count:,} {reason}" for reason, count in report.finish.items())
    rate = f"; {report.generated_now:,} now, {report.tokens_per_second:,.0f} tokens/s" if report.generated_now else ""
    print(
        f"{report.output}: {report.rows:,} rows ({ends}), {report.with_thinking:,} with thinking, "
        f"{sum(report.skipped.values())} skipped{rate}"
    )
