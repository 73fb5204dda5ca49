"""The prompt of `cliffstore sql`: statements over several lines, dot-commands, history, completion.

A mistake is one line on standard error, and the prompt goes on. Ctrl-C drops what is being typed, or stops what runs.
Lines that were typed are kept in a file that only the user can read: `CLIFFSTORE_HISTORY`, by default
`cliffstore/sql_history` in the user's folder for state; none where that variable is empty.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cliffstore import __version__
from cliffstore.cli.output import print_table
from cliffstore.cli.results import FORMATS
from cliffstore.errors import CliffstoreError, QueryError
from cliffstore.text import printable

if TYPE_CHECKING:
    from cliffstore.run.store import Store

_PROMPT, _MORE = "cliffstore> ", "       ...> "
_LINES_KEPT = 10_000
_NAME = re.compile(r"\w+(\.\w+)?")
_KEYWORDS = (
    *("SELECT", "FROM", "WHERE", "GROUP", "BY", "ORDER", "LIMIT", "JOIN", "LEFT", "USING", "ON", "AS", "AND", "OR"),
    *("NOT", "NULL", "IS", "IN", "BETWEEN", "DISTINCT", "HAVING", "WITH", "UNION", "ALL", "CASE", "WHEN", "THEN"),
    *("ELSE", "END", "DESC", "ASC", "DESCRIBE", "EXPLAIN", "CREATE", "TEMP", "TABLE", "avg", "count", "sum", "min"),
    *("max", "array_inner_product", "array_cosine_similarity", "array_distance"),
)
_HELP = """Statements end with `;` and may span lines. Ctrl-C stops one, Ctrl-D leaves.
.tables              views and tables
.schema NAME         columns of a view, or arguments of a function
.format FORMAT       table, csv, json, jsonl
.explain on|off      show plans, run nothing
.timing on|off       show how long a statement took
.read FILE           run the statements of a file
.help  .quit"""


class Shell:
    """A prompt over one store.

    Parameters
    ----------
    format : of results
    most : rows of a table that are shown; 0 for all
    """

    def __init__(self, store: Store, format: str, most: int, *, explain: bool = False) -> None:
        self._store, self._most = store, most
        self._format, self._explain, self._timing = "", explain, False
        self._set_format(format)
        self._commands: dict[str, Callable[[str], None]] = {
            ".help": lambda _: print(_HELP),
            ".tables": lambda _: print(*self._store.catalog.names(), sep="\n"),
            ".schema": self._describe,
            ".format": self._set_format,
            ".explain": self._set_explain,
            ".timing": self._set_timing,
            ".read": self._read,
            ".quit": self._quit,
            ".exit": self._quit,
        }

    def run(self) -> None:
        """Read and run statements until the input ends."""
        from cliffstore.store.session import is_complete

        history = _History()
        complete_with(self._words)
        if sys.stdout.isatty():
            print(f"cliffstore {__version__}, store {self._store.reader.url}. Statements end with `;`. Try .help")
        previous = signal.signal(signal.SIGTERM, _leave)
        text = ""
        try:
            while True:
                try:
                    line = input((_MORE if text else _PROMPT) if sys.stdout.isatty() else "")
                    history.keep(line)
                    if not text and line.lstrip().startswith("."):
                        self._command(line.strip())
                        continue
                    text += line + "\n"
                    if is_complete(text):
                        statements, text = text, ""
                        self._show(statements)
                    elif not text.strip():
                        text = ""
                except (CliffstoreError, OSError) as error:
                    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
                except KeyboardInterrupt:
                    text = ""
                    print("\ninterrupted", file=sys.stderr)
        except EOFError:
            print()
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _show(self, text: str) -> None:
        from cliffstore.cli.query import show_all

        begun = time.monotonic()
        left_out = show_all(self._store, text, self._format, self._most, explain=self._explain)
        if left_out:
            print(f"({left_out:,} more rows; LIMIT or .format csv, or start with --max-rows)")
        if self._timing:
            print(f"({time.monotonic() - begun:.2f} s)")

    def _command(self, line: str) -> None:
        name, _, argument = line.rstrip(";").partition(" ")
        if name not in self._commands:
            raise QueryError(f"{name} is not known: {' '.join(sorted(self._commands))}")
        self._commands[name](argument.strip())

    def _describe(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise QueryError("say .schema NAME, such as .schema tokens")
        catalog = self._store.catalog
        if name.lower() in catalog.names():
            quoted = ".".join(f'"{part}"' for part in name.split("."))
            table = catalog.arrow(f"SELECT column_name, column_type FROM (DESCRIBE {quoted})")
        else:
            table = catalog.arrow(
                f"SELECT name, array_to_string(parameters, ', ') AS arguments FROM ({_FUNCTIONS}) WHERE name = ?",
                [name.lower()],
            )
        if not table.num_rows:
            raise QueryError(f"there is no view and no function {name!r}: see .tables")
        print_table(table.column_names, [list(row.values()) for row in table.to_pylist()])

    def _set_format(self, format: str) -> None:
        if format not in FORMATS:
            raise QueryError(f"format {format!r} is not known: choose from {', '.join(FORMATS)}")
        if format == "parquet":
            raise QueryError("Parquet goes to a file: cliffstore sql STORE STATEMENT -o FILE.parquet")
        self._format = format

    def _set_explain(self, value: str) -> None:
        self._explain = _is_on(value)

    def _set_timing(self, value: str) -> None:
        self._timing = _is_on(value)

    def _read(self, path: str) -> None:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise QueryError(f"cannot read {path or 'nothing'}: {getattr(error, 'strerror', None) or error}") from None
        self._show(text)

    @staticmethod
    def _quit(_: str) -> None:
        raise EOFError

    def _words(self) -> list[str]:
        """Return what a word may be completed to."""
        catalog = self._store.catalog
        functions = catalog.arrow(f"SELECT DISTINCT name FROM ({_FUNCTIONS})")["name"].to_pylist()
        columns = catalog.arrow("SELECT DISTINCT column_name FROM duckdb_columns() WHERE NOT internal")
        names = [*catalog.names(), *functions, *columns["column_name"].to_pylist()]
        return [*_KEYWORDS, *sorted({name for name in names if name[0] not in "_-+"}), *self._commands]


_FUNCTIONS = (
    "SELECT lower(CASE schema_name WHEN 'main' THEN '' ELSE schema_name || '.' END || function_name) AS name, "
    "parameters FROM duckdb_functions() WHERE NOT internal AND function_type = 'macro'"
)


def complete_with(words: Callable[[], list[str]]) -> None:
    """Let the tabulator complete words, where there is a library for it. They are looked up when first asked for."""
    try:
        import readline
    except ImportError:
        return
    known: list[str] = []

    def complete(begun: str, index: int) -> str | None:
        if not known:
            try:
                known.extend(words())
            except CliffstoreError:
                return None
        found = [word for word in known if word.lower().startswith(begun.lower())]
        return found[index] if index < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n()[]{},;=<>+-*/|&!'\"")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


class _History:
    """The file of lines that were typed; each is written at once, so that a prompt that is killed loses none."""

    def __init__(self) -> None:
        self._path: Path | None = None
        path = _history_path()
        try:
            import readline
        except ImportError:
            return
        readline.clear_history()
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            readline.read_history_file(str(path))
            if readline.get_current_history_length() > _LINES_KEPT:
                readline.set_history_length(_LINES_KEPT)
                readline.write_history_file(str(path))
        except OSError as error:
            print(f"notice: no history is kept in {path}: {error.strerror or error}", file=sys.stderr)
            return
        self._path = path

    def keep(self, line: str) -> None:
        """Add the line that was read last."""
        if self._path is None or not line.strip():
            return
        import readline

        try:
            readline.append_history_file(1, str(self._path))
        except OSError as error:
            print(f"notice: no history is kept any more: {error.strerror or error}", file=sys.stderr)
            self._path = None


def _history_path() -> Path | None:
    given = os.environ.get("CLIFFSTORE_HISTORY")
    if given is not None:
        return Path(given).expanduser() if given else None
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "cliffstore" / "sql_history"


def _is_on(value: str) -> bool:
    if value not in ("on", "off"):
        raise QueryError(f"say on or off, not {value!r}")
    return value == "on"


def _leave(_signal: int, _frame: object) -> None:
    """A polite kill ends the prompt; Ctrl-C does not."""
    raise typer.Exit(130)
