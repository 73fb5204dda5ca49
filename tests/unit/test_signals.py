"""A polite kill is one interrupt, also where `timeout` tells it twice."""

from __future__ import annotations

import signal

import pytest

from cliffstore.cli import main


def test_a_signal_that_comes_twice_at_once_interrupts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(main.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(main, "_terminated", [float("-inf")])
    with pytest.raises(KeyboardInterrupt):
        main._terminate(signal.SIGTERM, None)
    now[0] += 0.1
    try:
        main._terminate(signal.SIGTERM, None)
    except KeyboardInterrupt:  # which would end all tests, not fail this one
        pytest.fail("interrupted twice")
    now[0] += 10
    with pytest.raises(KeyboardInterrupt):
        main._terminate(signal.SIGTERM, None)
