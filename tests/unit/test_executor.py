"""Units in this process: attempts, units that are given up, how many are worked on at once, and being stopped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from cliffstore.errors import ExtractionError, InterruptedRunError, StorageError
from cliffstore.records import UnitReport
from cliffstore.run.executor import MOST_ATTEMPTS, LocalExecutor, UnitOutcome, from_anywhere


@dataclass
class Job:
    """Says what becomes of units: `fails` how often one fails, `final` those for which trying again is no use."""

    fails: Mapping[int, int] = field(default_factory=dict)
    final: frozenset[int] = frozenset()
    raises: BaseException | None = None
    store: str = "s"
    storage_options: Mapping[str, object] = field(default_factory=dict)
    receipts_name: str = "scores"

    def record_failure(self, unit: int, attempt: int, worker: str, error: str) -> None:
        raise AssertionError("a worker that lives writes down its failures itself")


class Worker:
    name = "host:1"

    def __init__(self, at_once: int) -> None:
        self.attempts: Counter[int] = Counter()
        self.stopped = False
        self._together = threading.Barrier(at_once, timeout=30)

    def begin(self, job: Job) -> None:
        self._job = job

    def run(self, unit: int, attempt: int) -> UnitReport:
        self._together.wait()  # as many units at once as was said, or this breaks
        self.attempts[unit] += 1
        assert attempt == self.attempts[unit]
        if self._job.raises is not None:
            raise self._job.raises
        if attempt <= self._job.fails.get(unit, 0):
            error = ExtractionError(f"unit {unit}: no")
            error.final = unit in self._job.final
            raise error
        return UnitReport(unit, 1, 1, 1, 0.0, self.name)

    def stop(self) -> None:
        self.stopped = True


class Spec:
    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def make(self, threads: int) -> Worker:
        assert threads >= 1
        return Worker(self.at_once)

    def in_flight(self, threads: int) -> int:
        return self.at_once


def run(job: Job, units: range, at_once: int = 1) -> tuple[dict[int, UnitOutcome], list[str], Worker]:
    executor: LocalExecutor[Job] = LocalExecutor()
    executor.start(Spec(at_once))
    worker = executor.ask(lambda worker: worker)
    done: list[UnitOutcome] = []
    told: list[str] = []
    executor.run(job, units, done.append, lambda text, event="notice": told.append(text))
    executor.close()
    assert len({outcome.unit for outcome in done}) == len(done) == len(units)
    return {outcome.unit: outcome for outcome in done}, told, worker


def test_a_unit_is_tried_again_behind_the_others_and_given_up() -> None:
    job = Job(fails={1: 1, 2: MOST_ATTEMPTS, 3: 99}, final=frozenset({3}))
    done, told, worker = run(job, range(5))
    assert [unit for unit, outcome in done.items() if outcome.error] == [3, 2]
    assert worker.attempts == {0: 1, 1: 2, 2: MOST_ATTEMPTS, 3: 1, 4: 1}
    assert told == [f"unit {unit}: no; tried again behind the other units" for unit in (1, 2, 2)]
    assert done[2].error == "unit 2: no"


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_as_many_units_at_once_as_the_spec_says(at_once: int) -> None:
    done, _, _ = run(Job(), range(8), at_once)
    assert all(outcome.report for outcome in done.values())


def test_what_is_no_units_fault_ends_the_run() -> None:
    with pytest.raises(StorageError, match="full"):
        run(Job(raises=StorageError("full")), range(3))


def test_being_stopped_stops_the_worker() -> None:
    executor: LocalExecutor[Job] = LocalExecutor()
    executor.start(Spec(1))

    def stop(outcome: UnitOutcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        executor.run(Job(), range(3), stop, lambda text, event="notice": None)
    assert executor.ask(lambda worker: worker).stopped


def test_from_anywhere_is_each_unit_once() -> None:
    assert {tuple(from_anywhere([3, 5, 8])) for _ in range(200)} == {(3, 5, 8), (5, 8, 3), (8, 3, 5)}
