"""A program on a pseudo-terminal: what is typed, what is shown, and how it ends, all bounded in time."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import pytest

SECONDS = 30.0
INTERRUPT, END = "\x03", "\x04"


class Terminal:
    """One program that believes that a user sits before it. Ended by its process id at the latest on leaving."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._screen, inner = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**environment, "TERM": "dumb", "COLUMNS": "200"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(inner)
        self._shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._screen)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, text: str, nudge: str = "") -> str:
        """Read until `text` is shown, typing `nudge` each second. Return what was shown since the last call."""
        while text not in self._shown:
            found = self._read(nudge)
            if found is None:
                pytest.fail(f"{text!r} is not shown; this is: {self._shown[-2000:]!r}")
            self._shown += found
        before, _, self._shown = self._shown.partition(text)
        return before + text

    def wait(self) -> tuple[int, str]:
        """Wait for the end. Return the exit code and what was still shown."""
        while (found := self._read()) is not None:
            self._shown += found
        return self._process.wait(SECONDS), self._shown

    @property
    def process_id(self) -> int:
        return self._process.pid

    def _read(self, nudge: str = "") -> str | None:
        """Return what is shown next, None where the program has ended or nothing comes."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if select.select([self._screen], [], [], 1.0)[0]:
                try:
                    return os.read(self._screen, 65_536).decode(errors="replace") or None
                except OSError:  # its other end is closed
                    return None
            self.type(nudge)
        return None


def _take_terminal() -> None:
    """Make standard input the terminal that Ctrl-C belongs to."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
