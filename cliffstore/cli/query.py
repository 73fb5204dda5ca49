"""`cliffstore sql`: statements from the command line, from a file or from a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Json, OptionsFrom, StoreUrl, open_store
from cliffstore.cli.results import FORMATS, show, write
from cliffstore.errors import ConfigError, QueryError

if TYPE_CHECKING:
    from cliffstore.run.store import Store
    from cliffstore.store.results import Batches
    from cliffstore.store.session import Statement

_HELP = """Query a store: one statement or several, a file of them, or a prompt where neither is given.

Views: examples, tokens, units, skipped, captures, scores, cliffs, heads, experiments, probes, probe_metrics,
selections.

Functions: resid_post(row, layer[, model]) and so on for each site, score(probe, row), probe_weight(probe); vectors of
one width can be subtracted and added. SQL only reads the store.
"""
_ROWS_ON_A_PROMPT, _ROWS_ELSEWHERE = 100, 1_000


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="sql", help=_HELP)(sql)


def sql(
    store: StoreUrl,
    statement: Annotated[str | None, typer.Argument(help="SQL; statements end with `;`.")] = None,
    file: Annotated[
        str | None, typer.Option("-f", "--file", help="Read SQL from a file; - for standard input.")
    ] = None,
    attach: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="Another store, as NAME.tokens, NAME.resid_post(...); repeatable."),
    ] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}. Default: as -o ends, else table.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write to a file or URL, in one piece.")] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(min=0, help="Rows of a table that are shown; 0: all. Default: 1000, at the prompt 100."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the plan; run nothing.")] = False,
    memory_limit: Annotated[
        str | None, typer.Option(help="Such as 4GB; more is spilled to a temporary folder, or fails.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a statement may run.")] = None,
    allow_external: Annotated[
        bool, typer.Option("--allow-external", help="Let SQL reach files, network, extensions and settings.")
    ] = False,
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    from cliffstore.config import StoreConfig, read_storage_options
    from cliffstore.store.session import QueryLimits

    if statement is not None and file is not None:
        raise ConfigError("say a statement or --file, not both")
    format = "json" if json else format or _format_of(output)
    if format not in FORMATS:
        raise QueryError(f"format {format!r} is not known: choose from {', '.join(FORMATS)}")
    limits = QueryLimits(memory_limit, timeout, allow_external)
    settings = StoreConfig(store=store, storage_options=read_storage_options(config))
    text = statement if statement is not None else _read(file)
    with open_store(settings, limits) as opened:
        for pair in attach or ():
            name, found, url = pair.partition("=")
            if not found:
                raise ConfigError(f"--attach {pair}: write NAME=URL")
            opened.attach(name, url)
        if text is None:
            from cliffstore.cli.shell import Shell

            if output is not None:
                raise ConfigError("-o needs a statement or --file")
            Shell(opened, format, _ROWS_ON_A_PROMPT if max_rows is None else max_rows, explain=explain).run()
        elif output is not None:
            _save(opened, text, format, output, explain=explain)
        else:
            most = _ROWS_ELSEWHERE if max_rows is None else max_rows
            left_out = show_all(opened, text, format, most, explain=explain)
            if left_out:
                say = f"{left_out:,} more rows are not shown: --max-rows 0 shows all, --format csv or -o FILE has all"
                print(say, file=sys.stderr)


def show_all(store: Store, text: str, format: str, most: int, *, explain: bool = False) -> int:
    """Run the statements of a text in turn and print their results. Return how many rows were not shown."""
    catalog = store.catalog
    left_out = shown = 0
    for statement in _planned(store, text, format, explain=explain):
        with catalog.run(statement) as batches:
            if statement.gives_rows:
                if shown:
                    print()
                left_out += show(batches, format, most)
                shown += 1
            else:
                _to_the_end(batches)
    return left_out


def _save(store: Store, text: str, format: str, output: str, *, explain: bool) -> None:
    from cliffstore.run.saving import saving

    options = store.storage_options_for(output)
    statements = _planned(store, text, "text", explain=explain)
    if not any(statement.gives_rows for statement in statements):
        raise QueryError("no statement gives rows to write")
    for statement in statements:
        if not statement.gives_rows:
            with store.catalog.run(statement) as batches:
                _to_the_end(batches)
            continue
        with saving(output, options) as sink, store.catalog.run(statement) as batches:
            rows = write(batches, format, sink)
        print(f"{output}: {rows} rows")


def _to_the_end(batches: Batches) -> None:
    for _ in batches:
        pass


def _planned(store: Store, text: str, format: str, *, explain: bool) -> list[Statement]:
    """Return the statements of a text, or those that explain them."""
    catalog = store.catalog
    statements = catalog.statements(text)
    if not statements:
        raise QueryError("there is no statement")
    if explain:
        texts = [one.text if one.text.lower().startswith("explain") else f"EXPLAIN {one.text}" for one in statements]
        statements = [one for text in texts for one in catalog.statements(text)]
    results = sum(one.gives_rows for one in statements)
    if format != "table" and results > 1:
        raise QueryError(f"{results} statements give rows: one result fits {format}, --format table shows them all")
    return statements


def _read(file: str | None) -> str | None:
    """Return the text of a file, None where statements come from a prompt."""
    if file == "-" or (file is None and not sys.stdin.isatty()):
        return sys.stdin.read()
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def _format_of(output: str | None) -> str:
    suffix = Path(output or "").suffix.lstrip(".").lower()
    return suffix if suffix in FORMATS else "table"
