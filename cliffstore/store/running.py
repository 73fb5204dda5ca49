"""Statements while they run: the errors of what DuckDB calls for them, and how they are stopped.

An exception that leaves a Python function inside DuckDB may end the process when it is freed on one of DuckDB's own
threads, and Ctrl-C inside `execute` leaves DuckDB hanging. So functions never raise: they note the error and give NULL,
and whoever runs the statement asks for the error before anything of the result is shown. A time limit, Ctrl-C and a
polite kill note an error too, and interrupt the connection.
"""

from __future__ import annotations

import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock, Timer, current_thread, main_thread
from types import FrameType
from typing import TypeAlias

import duckdb
import pyarrow as pa

from cliffstore.errors import QueryStoppedError

Column: TypeAlias = "pa.Array | pa.ChunkedArray"


class FailedCalls:
    """The statements of one catalog that are running. DuckDB does not tell for which of them a function is called.

    So an error is noted for all of them: where several run, one may fail with another's error, and none ever shows the
    NULLs that stand for an error.
    """

    def __init__(self) -> None:
        # Weak: who leaves a result half-read and lets go of it has no more use for its statement.
        self._running: weakref.WeakSet[Running] = weakref.WeakSet()
        self._lock = Lock()

    def guard(self, function: Callable[..., pa.Array], gives: pa.DataType) -> Callable[..., pa.Array]:
        """Return a function of the same arguments that notes its errors, and does nothing for failed statements."""

        @wraps(function)
        def guarded(*columns: Column) -> pa.Array:
            if self.wanted:
                try:
                    return function(*columns)
                except BaseException as error:  # noqa: BLE001  # raised again by `Running.check`, see above
                    self.note(error)
            return pa.nulls(len(columns[0]), gives)

        return guarded

    @property
    def wanted(self) -> bool:
        """Whether a statement is running that has not failed."""
        return any(running.error is None for running in tuple(self._running))

    def note(self, error: BaseException) -> None:
        """Keep an error for each running statement that has none."""
        with self._lock:
            for running in tuple(self._running):
                running.fail(error)

    def begin(self, connection: duckdb.DuckDBPyConnection, seconds: float | None) -> Running:
        """Note that a statement begins to run on a connection, for some seconds at most. Call `end` after it."""
        running = Running(connection, seconds)
        with self._lock:
            self._running.add(running)
        return running

    def end(self, running: Running) -> None:
        """Note that a statement has ended."""
        with self._lock:
            self._running.discard(running)


class Running:
    """One statement that is running."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, seconds: float | None) -> None:
        self.error: BaseException | None = None
        self._connection, self._limit, self._left = connection, seconds, seconds

    def fail(self, error: BaseException) -> None:
        """Keep the error, if it is the first."""
        self.error = self.error or error

    def stop(self, error: QueryStoppedError) -> None:
        """Stop the statement, which then fails with this error."""
        self.fail(error)
        self._connection.interrupt()

    def check(self) -> None:
        """Raise the error of the statement, if there is one."""
        if self.error is not None:
            raise self.error.with_traceback(None)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Stop the statement, while DuckDB works at it, at its time limit and by signals; then a signal is passed on.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C was pressed.
        """
        begun = time.monotonic()
        timer = None
        if self._left is not None:
            too_long = QueryStoppedError(f"the statement was stopped after {self._limit:g} s (--timeout)")
            timer = Timer(max(self._left, 0.001), self.stop, [too_long])
            timer.daemon = True
            timer.start()
        try:
            with _signals(lambda: self.stop(QueryStoppedError("the statement was interrupted"))):
                yield
        finally:
            if timer is not None:
                # It must not interrupt what runs next.
                timer.cancel()
                timer.join()
            if self._left is not None:
                self._left -= time.monotonic() - begun


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in place of the handlers of SIGINT and SIGTERM; these are called at the end.

    A second signal goes to its handler at once: what runs may be Python that waits for storage.
    """
    if current_thread() is not main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append((number, frame))
        stop()
        if len(caught) > 1:
            replaced[number](number, frame)

    handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in replaced:
        signal.signal(number, catch)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        for number, frame in caught[:1]:
            replaced[number](number, frame)
