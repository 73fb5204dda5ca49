"""What commands print: tables for people, one JSON object for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.text import printable, quiet_json

if TYPE_CHECKING:
    from cliffstore.config import StoreConfig
    from cliffstore.publish.export import ExportReport
    from cliffstore.publish.selection import SelectionReport
    from cliffstore.run.store import Store
    from cliffstore.store.session import QueryLimits

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Config = Annotated[
    str | None, typer.Option("--config", help="YAML file with any of these options; the command line wins.")
]
OptionsFrom = Annotated[
    str | None,
    typer.Option("--config", help="YAML file with storage_options, such as a pipeline's; the rest is not read."),
]
MaybeStoreUrl = Annotated[str | None, typer.Argument(metavar="STORE", help="Path or URL of a store.")]
"""For commands that take it from `--config` too."""
StoreUrl = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of a store.")]

_WIDEST_CELL = 60
_WIDEST_LINE = 10_000


def open_store(settings: StoreConfig, limits: QueryLimits | None = None) -> Store:
    """Open the store that settings name, with a reporter that fits where the command runs."""
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.store import Store

    return Store(settings.store, settings.storage_options, choose_reporter(), limits)


def open_to_read(store: str, config: str | None) -> Store:
    """Open a store with the storage options that a YAML file has."""
    from cliffstore.config import StoreConfig, read_storage_options

    return open_store(StoreConfig(store=store, storage_options=read_storage_options(config)))


def describe_selection(report: SelectionReport) -> str:
    """Return the figures of a selection, for people."""
    from cliffstore.publish.selection import told

    probe = f" of probe {report.probe}" if report.probe else ""
    left_out = f"; {told(report)}" if report.left_out else ""
    return (
        f"selection {report.name}: {report.chosen} of {report.candidates} candidates by {report.strategy}{probe} "
        f"(last value {report.last:.3f}){left_out}"
    )


def describe_rows(report: ExportReport) -> str:
    """Return how many rows a training set has, for people."""
    parts = [f"{report.mixed} mixed in"] * bool(report.mixed) + [f"{report.validation} validate"] * bool(
        report.validation
    )
    return f"{report.rows} rows" + (f" ({', '.join(parts)})" if parts else "")


def print_json(value: object) -> None:
    """Print one value as JSON on standard output."""
    print(to_json(value))


def to_json(value: object) -> str:
    """Return a value as JSON; numbers that JSON has no type of its own for stay numbers, NaN and Inf are null."""
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), default=_plain, ensure_ascii=False)
    return quiet_json(text)


def _finite(value: object) -> object:
    """Return a value without the numbers that readers of JSON stumble over."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def print_lines(facts: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}}  {printable(as_words(value))}")


def as_words(value: object) -> str:
    """Return a value as people write it: `-` for none, commas between several, `name value` for what has names."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(as_words, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, full: bool = False) -> None:
    """Print rows as a table. Long cells are cut, unless `full`: then a terminal folds them, a file has long lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    elsewhere = _WIDEST_LINE if full else 200
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else elsewhere)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(cell_text(column, full=True)), overflow="fold" if full else "ellipsis", no_wrap=not full)
    for row in rows:
        table.add_row(*(Text(cell_text(cell, full=full)) for cell in row))
    console.print(table)


def cell_text(value: object, *, full: bool = False) -> str:
    """Return a value as one line of printable text."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    line = printable(text)
    return line if full or len(line) <= _WIDEST_CELL else line[: _WIDEST_CELL - 1] + "…"
