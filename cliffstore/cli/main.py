"""The `cliffstore` command: its parts put together, and how every error leaves it.

A user's mistake is one line on standard error and exit code 2; failed work exits 1, Ctrl-C 130. Modules that load
torch, Ray or scikit-learn are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cliffstore import __version__
from cliffstore.cli import analysis, demo, extraction, inspection, publication, query
from cliffstore.errors import CliffstoreError

app = typer.Typer(
    name="cliffstore",
    help="Residual-stream activations of language models: computed once, kept in Zarr, queried with SQL.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for module in (demo, extraction, inspection, query, analysis, publication):
    module.add_to(app)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        result = app(args=given or ["--help"], standalone_mode=False)
        return result if isinstance(result, int) else 0
    except CliffstoreError as error:
        _say(str(error))
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except OSError as error:
        _say(f"{type(error).__name__}: {error}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return 130
    except TyperException as error:
        _say(error.format_message())
        return 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())


def _say(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _terminate(_signal: int, _frame: object) -> None:
    """A polite kill is an interrupt: the unit at work ends, what is committed stays."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
