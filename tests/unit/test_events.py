"""What reporters tell: events for machines, lines for logs."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
from datetime import datetime, timedelta

import pytest

from cliffstore.cli.main import main
from cliffstore.run.events import EventReporter
from cliffstore.run.progress import LOG_VARIABLE, LineReporter, Piece, Tally, choose_reporter

Captured = pytest.CaptureFixture[str]


def told(capsys: Captured) -> list[dict[str, object]]:
    out, err = capsys.readouterr()
    assert not out, "standard output is for results"
    return [json.loads(line) for line in err.splitlines()]


def test_events_of_a_run(capsys: Captured) -> None:
    reporter = EventReporter()
    reporter.stage("plan: 3 examples\nin 2 lines")
    reporter.begin("extract", 5, 2)
    reporter.advance(Piece(tokens=10, bytes=80))
    reporter.notice("worker a:1 was lost", "worker_lost")
    reporter.advance(Piece(failed=True))
    reporter.end()
    reporter.notice("done “well”")
    found = told(capsys)
    for event in found:
        moment = datetime.fromisoformat(str(event.pop("time")))
        assert moment.utcoffset() == timedelta(0)
    rates = [
        {name: event.pop(name) for name in ("tokens_per_s", "bytes_per_s")} for event in found if "tokens" in event
    ]
    assert all(rate["tokens_per_s"] > 0 for rate in rates)
    done = {"stage": "extract", "units_total": 5, "units_done": 3, "units_failed": 0, "tokens": 10, "bytes": 80}
    failed = done | {"units_failed": 1, "queue_depth": 1}
    assert found == [
        {"event": "stage", "stage": "plan", "text": "plan: 3 examples\nin 2 lines"},
        {"event": "begin", "stage": "extract", "units_total": 5, "units_done": 2},
        {"event": "progress", **done, "queue_depth": 2},
        {"event": "worker_lost", "stage": "extract", "text": "worker a:1 was lost"},
        {"event": "progress", **failed},
        {"event": "end", **failed},
        {"event": "notice", "stage": "extract", "text": "done “well”"},
    ]


def test_what_the_package_logs_is_an_event(capsys: Captured) -> None:
    for _ in range(2):
        EventReporter()
    logging.getLogger("cliffstore.storage").warning("%s does not answer, attempt %d", "store x", 6)
    (event,) = told(capsys)
    assert (event["event"], event["level"], event["text"]) == ("log", "warning", "store x does not answer, attempt 6")


def test_lines_have_figures(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliffstore.run.progress._SECONDS_BETWEEN_LINES", 0.0)
    reporter = LineReporter()
    reporter.begin("extract", 3, 1)
    reporter.advance(Piece(tokens=10))
    reporter.advance(Piece(failed=True))
    reporter.end()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"extract: 2/3 units, \d+ s, [\d,]+ tokens/s", first)
    assert re.fullmatch(r"extract: 2/3 units, \d+ s, 1 failed, [\d,]+ tokens/s", second)


def test_tally_counts_what_is_left() -> None:
    tally = Tally(total=4, done=1, begun=0.0)
    assert (tally.ended, tally.queue_depth) == (1, 3)
    tally.add(Piece(tokens=5, bytes=7))
    tally.add(Piece(failed=True))
    assert (tally.done, tally.failed, tally.ended, tally.queue_depth) == (2, 1, 3, 1)
    assert tally.bytes_per_second / tally.tokens_per_second == pytest.approx(7 / 5, rel=1e-3)


@pytest.mark.parametrize(("wanted", "kind"), [("json", EventReporter), ("JSON", EventReporter), ("", LineReporter)])
def test_environment_chooses(wanted: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, wanted)
    assert type(choose_reporter()) is kind


def test_every_end_is_an_event(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "json")
    assert main(["info", "no-such-store"]) == 2
    line, event = capsys.readouterr().err.splitlines()
    found = json.loads(event)
    assert (found["event"], found["exit_code"]) == ("exit", 2)
    assert line == f"error: {found['text']}"


def test_terminal_has_a_progress_bar_even_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(LOG_VARIABLE, "json")
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb", buffering=0) as screen:
        monkeypatch.setattr("sys.stderr", terminal)
        reporter = choose_reporter()
        reporter.begin("extract", 3, 1)
        reporter.advance(Piece(tokens=10))
        reporter.notice("mind the gap")
        reporter.end()
        print("that is all", file=terminal, flush=True)
        shown = ""
        while "that is all" not in shown:  # a terminal hands over what it has, piece by piece
            shown += screen.read(65_536).decode()
    assert "extract" in shown
    assert "2/3" in shown
    assert "tokens/s" in shown
    assert "note: mind the gap" in shown
    assert '"event"' not in shown


def test_a_lost_worker_is_an_event_of_its_own(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first actor of a pool dies of its unit, the second does it."""
    from ray.exceptions import ActorDiedError

    from cliffstore.run import ray_pool
    from cliffstore.run.executor import UnitOutcome

    class Method:
        def __init__(self, answer: object) -> None:
            self.answer = answer

        def remote(self, *_: object) -> Method:
            return Method(self.answer)

    class Actor:
        def __init__(self, name: str, outcome: object) -> None:
            self.begin, self.run = Method(name), Method(outcome)

    def get(reference: Method) -> object:
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    monkeypatch.setattr(ray_pool.ray, "kill", lambda _: None)
    monkeypatch.setattr(ray_pool.ray, "wait", lambda pending, **_: (pending[:1], pending[1:]))
    monkeypatch.setattr(ray_pool.ray, "get", get)
    done: list[UnitOutcome] = []
    pool = ray_pool.RayPool(
        Actor("w:1", ActorDiedError()), lambda: Actor("w:2", UnitOutcome(3, None, None)), lambda: 1, None,
        done.append, EventReporter().notice, lambda *_: None,
    )  # fmt: skip
    pool.run([3])
    assert [outcome.unit for outcome in done] == [3]
    (event,) = told(capsys)
    assert event["event"] == "worker_lost"
    assert str(event["text"]).startswith("worker w:1 was lost")
