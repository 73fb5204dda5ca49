"""The `cliffstore` command: its parts put together, and how every error leaves it.

A user's mistake is one line on standard error and exit code 2; failed work exits 1, Ctrl-C 130. Modules that load
torch, Ray or scikit-learn are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cliffstore import __version__
from cliffstore.cli import (
    analysis,
    cliffs,
    clipping,
    curves,
    demo,
    examples,
    extraction,
    generation,
    heads,
    inspection,
    judging,
    pictures,
    pipeline,
    probes,
    publication,
    query,
    report,
)
from cliffstore.errors import CliffstoreError
from cliffstore.run.events import emit
from cliffstore.run.progress import wants_events
from cliffstore.text import printable

app = typer.Typer(
    name="cliffstore",
    help="Residual-stream activations of language models: computed once, kept in Zarr, queried with SQL.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for module in (
    demo,
    extraction,
    inspection,
    query,
    probes,
    analysis,
    cliffs,
    curves,
    pictures,
    clipping,
    generation,
    heads,
    publication,
    report,
    judging,
    pipeline,
):
    module.add_to(app)
examples.add_to(app)


_INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cliffstore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@cache
def _command() -> Callable[..., object]:
    """Put all commands together, once a process: it takes longer than many of them do."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code, message = _run(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        signal.signal(signal.SIGTERM, previous)
    message = message and " ".join(message.split())
    if message:
        print(f"error: {printable(message)}", file=sys.stderr)
    if wants_events():
        emit("exit", exit_code=code, text=message)
    return code


def _run(arguments: list[str]) -> tuple[int, str | None]:
    """Return exit code and, where something is wrong, what it is."""
    try:
        result = _command()(args=arguments or ["--help"], standalone_mode=False)
        code = result if isinstance(result, int) else 0
        return code, "interrupted" if code == _INTERRUPTED else None  # what typer makes of Ctrl-C
    except CliffstoreError as error:
        return error.exit_code, str(error)
    except typer.Exit as stop:
        return stop.exit_code, None
    except OSError as error:
        return 1, f"{type(error).__name__}: {error}"
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED, "interrupted"
    except TyperException as error:
        return 2, error.format_message()


def run() -> None:
    """Entry point of the console script."""
    _open_streams()
    sys.exit(main())


def _open_streams() -> None:
    """Put nothing in the place of standard streams that are closed (`<&-`); escape what an encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


_ONE_SIGNAL = 2.0
"""Seconds. `timeout` signals its command, then the group that the command is in: that is one wish, told twice."""
_terminated = [float("-inf")]


def _terminate(_signal: int, _frame: object) -> None:
    """A polite kill is an interrupt: the unit at work ends, what is committed stays."""
    since, _terminated[0] = time.monotonic() - _terminated[0], time.monotonic()
    if since > _ONE_SIGNAL:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run()
