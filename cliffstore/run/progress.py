"""What a run tells its user: stages, notices, and how far it is.

On a terminal a progress bar with rate and time left; elsewhere log lines, at most one every few seconds, or events
(see `events`). Everything goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cliffstore.text import printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG_VARIABLE = "CLIFFSTORE_LOG"
"""`json` in this environment variable: events in place of log lines."""
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, slots=True)
class Piece:
    """More work that has ended: what was in it (`bytes` before compression), and whether it failed.

    Attributes
    ----------
    count : pieces that it is, called by `noun`
    """

    tokens: int = 0
    bytes: int = 0
    failed: bool = False
    noun: str = "units"
    count: int = 1


@dataclass(slots=True)
class Tally:
    """How far a piece-by-piece work is. Rates are over what was done since it began.

    Attributes
    ----------
    done : pieces that have ended well, those included that needed no doing
    """

    total: int
    done: int
    failed: int = 0
    tokens: int = 0
    bytes: int = 0
    begun: float = field(default_factory=time.monotonic)
    noun: str = "units"
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.done

    def add(self, piece: Piece) -> None:
        """Count a piece."""
        self.failed += piece.count * piece.failed
        self.done += piece.count * (not piece.failed)
        self.tokens += piece.tokens
        self.bytes += piece.bytes
        self.noun = piece.noun

    @property
    def ended(self) -> int:
        return self.done + self.failed

    @property
    def queue_depth(self) -> int:
        """Pieces that have not ended: they wait, or are being worked on."""
        return max(self.total - self.ended, 0)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.begun, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds

    @property
    def pieces_per_second(self) -> float:
        return (self.ended - self.before) / self.seconds

    def figures(self) -> str:
        """Return the rates and failures, for people; empty where there are none."""
        failed = f", {self.failed} failed" if self.failed else ""
        pieces = f", {self.pieces_per_second:,.1f} {self.noun}/s" if self.noun == "examples" else ""
        rate = f", {self.tokens_per_second:,.0f} tokens/s" if self.tokens else ""
        return f"{failed}{pieces}{rate}"

    def left(self) -> str:
        """Return the time that is left at the rate so far, for people; empty where pieces are no measure of it."""
        rate = self.pieces_per_second if self.noun == "examples" else 0.0
        return f", about {self.queue_depth / rate:,.0f} s left" if rate and self.queue_depth else ""


PIECE = Piece()


class Reporter(Protocol):
    """Receives what a run has to say."""

    def stage(self, text: str) -> None:
        """A step is done or begins; `text` holds its figures."""

    def notice(self, text: str, event: str = "notice") -> None:
        """Something that the user did not ask for, and must know; `event` names its kind for machines."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Work of `total` pieces begins, `done` of which need no doing."""

    def advance(self, piece: Piece = PIECE) -> None:
        """One more piece has ended."""

    def end(self) -> None:
        """The work that `begin` announced has ended."""

    def ask(self, question: str) -> bool | None:
        """Ask yes or no; None where there is nobody to ask."""


class LineReporter:
    """Log lines on standard error."""

    def __init__(self) -> None:
        self._what, self._tally = "", Tally(0, 0)
        self._last = 0.0

    def stage(self, text: str) -> None:
        self._line(text)

    def notice(self, text: str, event: str = "notice") -> None:
        self._line(f"note: {text}")

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._tally = what, Tally(total, done)
        self._last = time.monotonic()

    def advance(self, piece: Piece = PIECE) -> None:
        tally = self._tally
        tally.add(piece)
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or tally.ended == tally.total:
            self._last = now
            done = f"{self._what}: {tally.done}/{tally.total} {piece.noun}"
            self._line(f"{done}, {tally.seconds:.0f} s{tally.figures()}{tally.left()}")

    def end(self) -> None:
        self._what = ""

    def ask(self, question: str) -> bool | None:
        return None

    def _line(self, text: str) -> None:
        print(printable_lines(text), file=sys.stderr, flush=True)


class TerminalReporter:
    """A progress bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._tally = Tally(0, 0)

    def stage(self, text: str) -> None:
        self._console.print(printable_lines(text), markup=False)

    def notice(self, text: str, event: str = "notice") -> None:
        self._console.print(f"note: {printable_lines(text)}", style="yellow", markup=False)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[detail]}"), console=self._console, transient=True)
        self._task = self._progress.add_task(what, total=total, completed=done, detail="")
        self._tally = Tally(total, done)
        self._progress.start()

    def advance(self, piece: Piece = PIECE) -> None:
        self._tally.add(piece)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=piece.count, detail=self._tally.figures().removeprefix(", "))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def ask(self, question: str) -> bool | None:
        answer = self._console.input(f"{printable_lines(question)} [y/N] ", markup=False)
        return answer.strip().lower() in ("y", "yes")


def wants_events() -> bool:
    """Return whether events are wanted in place of log lines; a terminal has people in front of it."""
    return os.environ.get(LOG_VARIABLE, "").lower() == "json" and not sys.stderr.isatty()


def choose_reporter() -> Reporter:
    """Return the reporter that fits standard error and the environment."""
    if wants_events():
        from cliffstore.run.events import EventReporter

        return EventReporter()
    return TerminalReporter() if sys.stderr.isatty() else LineReporter()


class Clock:
    """Says how far a long step is, from time to time."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._last = reporter, time.monotonic()

    def tell(self, text: str) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._reporter.stage(text)
