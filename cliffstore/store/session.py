"""A DuckDB connection for the SQL of users: closed to the world outside, bounded in memory, and what it may run.

Two walls stand before files, network, extensions and settings: DuckDB's own settings, which are locked, and a list of
the kinds of statements that only read, or change no more than what is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
from duckdb import ExpectedResultType, StatementType

from cliffstore.errors import ConfigError, QueryError, QueryStoppedError
from cliffstore.records import SITES

_MAY_RUN = {
    getattr(StatementType, name)
    for name in ("SELECT", "EXPLAIN", "CREATE", "INSERT", "UPDATE", "DELETE", "DROP", "ALTER", "MULTI", "RELATION")
    if hasattr(StatementType, name)
}
_GAP = re.compile(r"[\s;]+|--[^\n]*(?:\n|$)")
_WORD = re.compile(r"\w+|.", re.DOTALL)
_EXPLAINED = re.compile(r"explain (?:analyze |verbose |\( [^()]*\) )*", re.IGNORECASE)
_SECRET = re.compile(r"create (or replace )?((temp|temporary|persistent) )?secret\b", re.IGNORECASE)
_NO_FUNCTION = re.compile(r"Catalog Error: Scalar Function with name (?:\S+\.)?(\w+) does not exist")
_WORDS_LOOKED_AT = 200
_CLOSED: dict[str, bool] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
}


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What SQL may use.

    Attributes
    ----------
    memory : as DuckDB writes it: '4GB', '500MiB'; more than that is spilled to a temporary folder, or fails. None for
        80 % of the machine's
    seconds : that each statement may run
    external : whether SQL may reach files, network, extensions and settings
    """

    memory: str | None = None
    seconds: float | None = None
    external: bool = False

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < 1e9:
            raise ConfigError(f"timeout {self.seconds:g}: say a number of seconds above 0")


@dataclass(frozen=True, slots=True)
class Statement:
    """One parsed statement.

    Attributes
    ----------
    gives_rows : whether it has a result to show; the others say how many rows they changed, or nothing
    """

    text: str
    parsed: duckdb.Statement
    gives_rows: bool


def connect(limits: QueryLimits) -> tuple[duckdb.DuckDBPyConnection, Callable[[], None]]:
    """Open a connection, not yet locked. The second value removes what it spilled to disk.

    Raises
    ------
    ConfigError
        The memory limit cannot be read.
    """
    # Where a signal ends this half-way, the folder goes with the object.
    folder = TemporaryDirectory(prefix="cliffstore-sql-", ignore_cleanup_errors=True)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": False,
        "temp_directory": folder.name,
    }
    if not limits.external:
        settings |= _CLOSED
    if limits.memory is not None:
        settings["memory_limit"] = limits.memory
    try:
        connection = duckdb.connect(config=settings)
        _draw_no_bar(connection)
    except duckdb.Error as error:
        folder.cleanup()
        if limits.memory is None:
            raise
        raise ConfigError(f"memory limit {limits.memory!r}: say a size such as 4GB ({one_line(error)})") from None
    return connection, folder.cleanup


def _draw_no_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep DuckDB's progress bar off standard output, where answers go.

    In a notebook without ipywidgets there is no bar, and DuckDB refuses to switch it off.
    """
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() != [(False,)]:
        connection.execute("SET enable_progress_bar = false")


def relation_of(table: pa.Table, limits: QueryLimits) -> duckdb.DuckDBPyRelation:
    """Return a table as a relation, which lives on when its store is closed or gone."""
    return _beside_stores(limits.external).cursor().from_arrow(table)


@cache
def _beside_stores(external: bool) -> duckdb.DuckDBPyConnection:
    settings: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": False,
        "temp_directory": "",
        **({} if external else _CLOSED),
    }
    connection = duckdb.connect(config=settings)
    _draw_no_bar(connection)
    lock(connection, QueryLimits(external=external))
    return connection


def lock(connection: duckdb.DuckDBPyConnection, limits: QueryLimits) -> None:
    """Keep settings as they are, unless SQL may reach them."""
    if not limits.external:
        connection.execute("SET lock_configuration = true")


def parse(connection: duckdb.DuckDBPyConnection, text: str, limits: QueryLimits) -> list[Statement]:
    """Return the statements of a text; none has run.

    Raises
    ------
    QueryError
        One is malformed, or may not run.
    """
    try:
        parsed = connection.extract_statements(text)
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from None
    if not limits.external:
        for one in parsed:
            refused = _refused(one)
            if refused is not None:
                raise QueryError(
                    f"{refused} may not run here: SQL reads the store, and reaches no files, network, extensions or "
                    "settings, unless with --allow-external"
                )
    return [Statement(one.query.strip(), one, _gives_rows(one)) for one in parsed]


def _refused(parsed: duckdb.Statement) -> str | None:
    """Return what a statement is called that may not run."""
    words = " ".join(_first_words(parsed.query)) + " "
    explained = _EXPLAINED.match(words)
    if _SECRET.match(words, explained.end() if explained else 0):
        return "CREATE SECRET"
    if _kind(parsed) in _MAY_RUN:
        return None
    first = words.partition(" ")[0]
    return first.upper() if first.isidentifier() else "such a statement"


def _first_words(text: str) -> Iterator[str]:
    """Yield words and signs of a statement, without comments; those of `/* */` may hold others."""
    at = found = 0
    while at < len(text) and found < _WORDS_LOOKED_AT:
        if gap := _GAP.match(text, at):
            at = gap.end()
        elif text.startswith("/*", at):
            at = _behind_comment(text, at)
        else:
            word = _WORD.match(text, at)
            assert word is not None
            yield word[0]
            at, found = word.end(), found + 1


def _behind_comment(text: str, at: int) -> int:
    depth = 0
    for mark in re.finditer(r"/\*|\*/", text[at:]):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return at + mark.end()
    return len(text)


def _gives_rows(parsed: duckdb.Statement) -> bool:
    """Return whether a statement has a result to show; DuckDB says of CREATE, too, that it may have one."""
    expected = parsed.expected_result_type
    if expected == [ExpectedResultType.QUERY_RESULT] or _kind(parsed) == StatementType.MULTI:
        return True
    return ExpectedResultType.QUERY_RESULT in expected and "returning" in parsed.query.lower()


def _kind(parsed: duckdb.Statement) -> StatementType | None:
    """Return the kind of a statement, None for one that has no name in Python."""
    try:
        return parsed.type
    except ValueError:
        return None


def is_complete(text: str) -> bool:
    """Return whether the last statement of a text ends with a semicolon that is not inside a string or a comment."""
    try:
        tokens = [(at, kind) for at, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]
    except duckdb.Error:
        return False
    if not tokens:
        return False
    at, kind = tokens[-1]
    return kind == duckdb.token_type.operator and text.encode()[at : at + 1] == b";"


def error_of(error: Exception, limits: QueryLimits) -> QueryError | QueryStoppedError:
    """Return what DuckDB's error is for the user."""
    text = one_line(error)
    if "INTERRUPT Error" in text:
        return QueryStoppedError("the statement was interrupted")
    if isinstance(error, duckdb.OutOfMemoryException) or text.startswith("Out of Memory"):
        limit = f"its limit of {limits.memory} (--memory-limit)" if limits.memory else "there is"
        return QueryStoppedError(f"the statement needs more memory than {limit}: {text.partition('; ')[0]}")
    if text.startswith("Permission Error") and not limits.external:
        return QueryError(f"{text[:400]} (--allow-external opens files and network)")
    missing = _NO_FUNCTION.match(text)
    if missing and missing[1] in SITES:
        return QueryError(
            f"no vectors of {missing[1]} are stored: `cliffstore extract --sites {missing[1]}` adds them, and "
            "`cliffstore info` shows what there is"
        )
    return QueryError(text)


def one_line(error: Exception) -> str:
    """Return DuckDB's message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not set(line.strip()) <= {"^"}]
    return "; ".join(lines)[:600]
