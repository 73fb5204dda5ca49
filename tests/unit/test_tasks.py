"""Functions mapped over payloads by processes: order, errors, bounds, threads, and nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info

from cliffstore.analyze.mapping import InTurn
from cliffstore.errors import CliffstoreError, InterruptedRunError, ProbeError
from cliffstore.run.tasks import LocalTasks, open_tasks


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def _square(number: int) -> int:
    time.sleep(0.05 if number % 4 == 0 else 0)  # results of others are there earlier
    if number == 13:
        raise ProbeError("probe thirteen")
    if number == 99:
        os._exit(9)
    return number * number


def _process(_payload: int) -> tuple[int, int, bool]:
    np.ones((8, 8)) @ np.ones((8, 8))
    threads = max(library["num_threads"] for library in threadpool_info())
    return os.getpid(), threads, sys.modules.get("torch") is None


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_as_they_are(workers: int) -> None:
    with open_tasks("local", workers) as tasks:
        assert list(tasks.map(_square, range(12))) == [number * number for number in range(12)]
        with pytest.raises(ProbeError, match="probe thirteen"):
            list(tasks.map(_square, range(20)))
        assert list(tasks.map(_square, range(3))) == [0, 1, 4], "one error does not end the others"


def test_one_worker_is_this_process() -> None:
    with open_tasks("local", 1) as tasks:
        assert isinstance(tasks, InTurn)
        assert [pid for pid, _, _ in tasks.map(_process, range(2))] == [os.getpid()] * 2


def test_processes_compute_with_one_thread_without_torch_and_end() -> None:
    with open_tasks("auto", 2) as tasks:
        assert tasks.n_workers == 2
        found = set(tasks.map(_process, range(20)))
        pids = {pid for pid, _, _ in found}
        assert os.getpid() not in pids
        assert {(threads, light) for _, threads, light in found} == {(1, True)}
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert not alive, gone


def test_payloads_are_taken_only_a_few_ahead() -> None:
    taken = 0

    def payloads() -> Iterator[int]:
        nonlocal taken
        for number in range(100, 200):
            taken += 1
            yield number

    with LocalTasks(2) as tasks:
        results = tasks.map(_square, payloads())
        for number in range(8):
            next(results)
            assert taken <= number + 4


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(CliffstoreError, match="one of 2 worker processes died"), open_tasks("local", 2) as tasks:
        list(tasks.map(_square, [1, 99, 2]))


def test_the_user_may_stop_it() -> None:
    def stopped() -> None:
        with open_tasks("local", 2) as tasks:
            list(tasks.map(_square, range(4)))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            list(tasks.map(time.sleep, [60.0] * 4))

    with pytest.raises(InterruptedRunError):
        stopped()
