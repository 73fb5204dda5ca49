"""What a run tells machines: one JSON object a line on standard error, for logs that are collected and searched.

Every line has `time` (ISO 8601, UTC), `event` and, where it belongs to one, `stage`:

| event | further fields |
|---|---|
| stage | text: a step and its figures |
| notice, worker_lost, log | text |
| begin | units_total, units_done |
| progress | units_total, units_done, units_failed, tokens, bytes, tokens_per_s, bytes_per_s, queue_depth |
| end | as progress |
| exit | exit_code, and text where it is not 0 |

`queue_depth` counts units that have not ended; rates are over what was done since `begin`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from cliffstore.run.progress import PIECE, Piece, Tally
from cliffstore.text import quiet_json

_STAGE = re.compile(r"([a-z]+): ")


def emit(event: str, **fields: object) -> None:
    """Write one event."""
    known = {name: value for name, value in fields.items() if value is not None}
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **known}
    # One write: the log of a job holds lines of several processes.
    sys.stderr.write(quiet_json(json.dumps(line, ensure_ascii=False, default=str)) + "\n")
    sys.stderr.flush()


class EventReporter:
    """A reporter whose every word is an event. What the package logs becomes events too."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._tally = Tally(0, 0)
        _log_as_events()

    def stage(self, text: str) -> None:
        found = _STAGE.match(text)
        self._stage = found.group(1) if found else self._stage
        emit("stage", stage=self._stage, text=text)

    def notice(self, text: str, event: str = "notice") -> None:
        emit(event, stage=self._stage, text=text)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._stage, self._tally = what, Tally(total, done)
        emit("begin", stage=what, units_total=total, units_done=done)

    def advance(self, piece: Piece = PIECE) -> None:
        self._tally.add(piece)
        self._tell("progress")

    def end(self) -> None:
        self._tell("end")

    def ask(self, question: str) -> bool | None:
        return None

    def _tell(self, event: str) -> None:
        tally = self._tally
        emit(
            event,
            stage=self._stage,
            units_total=tally.total,
            units_done=tally.done,
            units_failed=tally.failed,
            tokens=tally.tokens,
            bytes=tally.bytes,
            tokens_per_s=round(tally.tokens_per_second, 1),
            bytes_per_s=round(tally.bytes_per_second, 1),
            queue_depth=tally.queue_depth,
        )


class _EventHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit("log", level=record.levelname.lower(), text=record.getMessage())


def _log_as_events() -> None:
    logger = logging.getLogger("cliffstore")
    if not any(isinstance(handler, _EventHandler) for handler in logger.handlers):
        logger.addHandler(_EventHandler())
