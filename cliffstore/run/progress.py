"""What a run tells its user: stages, notices, and how far it is.

On a terminal a progress bar with rate and time left; elsewhere log lines, at most one every few seconds. Everything
goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0


class Reporter(Protocol):
    """Receives what a run has to say."""

    def stage(self, text: str) -> None:
        """A step is done or begins; `text` holds its figures."""

    def notice(self, text: str) -> None:
        """Something that the user did not ask for, and must know."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Work of `total` pieces begins, `done` of which need no doing."""

    def advance(self, detail: str = "") -> None:
        """One more piece is done."""

    def end(self) -> None:
        """The work that `begin` announced has ended."""

    def ask(self, question: str) -> bool | None:
        """Ask yes or no; None where there is nobody to ask."""


class LineReporter:
    """Log lines on standard error."""

    def __init__(self) -> None:
        self._what, self._total, self._done = "", 0, 0
        self._begun = self._last = 0.0

    def stage(self, text: str) -> None:
        self._line(text)

    def notice(self, text: str) -> None:
        self._line(f"note: {text}")

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done = what, total, done
        self._begun = self._last = time.monotonic()

    def advance(self, detail: str = "") -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last = now
            self._line(f"{self._what}: {self._done}/{self._total} units, {now - self._begun:.0f} s{detail}")

    def end(self) -> None:
        self._what = ""

    def ask(self, question: str) -> bool | None:
        return None

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class TerminalReporter:
    """A progress bar on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def stage(self, text: str) -> None:
        self._console.print(text, markup=False)

    def notice(self, text: str) -> None:
        self._console.print(f"note: {text}", style="yellow", markup=False)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[detail]}"), console=self._console, transient=True)
        self._task = self._progress.add_task(what, total=total, completed=done, detail="")
        self._progress.start()

    def advance(self, detail: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, detail=detail)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def ask(self, question: str) -> bool | None:
        answer = self._console.input(f"{question} [y/N] ", markup=False)
        return answer.strip().lower() in ("y", "yes")


def choose_reporter() -> Reporter:
    """Return the reporter that fits standard error."""
    return TerminalReporter() if sys.stderr.isatty() else LineReporter()
