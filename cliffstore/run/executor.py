"""Where units run: the protocol of an executor, and the one that runs them in this process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol

from cliffstore.errors import ExtractionError, InterruptedRunError
from cliffstore.extract.calibration import CorpusShape, PassWish
from cliffstore.extract.job import Job, Prepared, UnitReport, WorkerSpec
from cliffstore.extract.unit import UnitWorker

IN_FLIGHT = 2
"""Units that a worker has at once: one is computed while the one before is written."""
MOST_ATTEMPTS = 3
"""Attempts, on different workers where there are several, after which a unit is given up."""


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How one unit ended: with a report, or with an error; `final` where trying again would end in the same way."""

    unit: int
    report: UnitReport | None
    error: str | None
    final: bool = False


OnDone = Callable[[UnitOutcome], None]


class OnNotice(Protocol):
    """Called with what the user must know; `event` names its kind for machines."""

    def __call__(self, text: str, event: str = "notice") -> None: ...


class Executor(Protocol):
    """Runs the units of a job, in any order, each until it has an outcome: `start`, `prepare`, `run`, `close`."""

    description: str
    n_workers: int

    def start(self, spec: WorkerSpec) -> None:
        """Load the model into a first worker."""

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        """Choose passes on the first worker."""

    def run(self, job: Job, units: Sequence[int], on_done: OnDone, on_notice: OnNotice) -> None:
        """Run all units; each is tried again where it fails, up to `MOST_ATTEMPTS` times.

        Raises
        ------
        InterruptedRunError
            The user stopped it; committed units stay committed.
        StorageError, StoreError
            The store cannot be reached any longer, or is full.
        """

    def close(self) -> None:
        """Let go of workers."""


def run_unit(worker: UnitWorker, unit: int, attempt: int = 1) -> UnitOutcome:
    """Extract one unit and turn its failure into an outcome."""
    try:
        return UnitOutcome(unit, worker.extract(unit, attempt), None)
    except ExtractionError as error:
        return UnitOutcome(unit, None, str(error), error.final)


def available_cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """One worker in this process; a second thread writes while the first computes."""

    def __init__(self) -> None:
        self.description = "in this process"
        self.n_workers = 1
        self._worker: UnitWorker | None = None

    def start(self, spec: WorkerSpec) -> None:
        self._worker = UnitWorker(replace(spec, threads=spec.threads or available_cpus()))

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        return self._started().prepare(wish, shape)

    def run(self, job: Job, units: Sequence[int], on_done: OnDone, on_notice: OnNotice) -> None:
        worker = self._started()
        worker.begin(job)
        waiting = deque((unit, 1) for unit in units)
        running: dict[Future[UnitOutcome], int] = {}
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="unit") as pool:
            try:
                while waiting or running:
                    while len(running) < IN_FLIGHT and waiting:
                        unit, attempt = waiting.popleft()
                        running[pool.submit(run_unit, worker, unit, attempt)] = attempt
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        outcome, attempt = future.result(), running.pop(future)
                        if outcome.error is None or outcome.final or attempt >= MOST_ATTEMPTS:
                            on_done(outcome)
                        else:
                            on_notice(f"{outcome.error}; tried again behind the other units")
                            waiting.append((outcome.unit, attempt + 1))
            except KeyboardInterrupt:
                worker.stop()
                raise InterruptedRunError("interrupted") from None

    def close(self) -> None:
        self._worker = None

    def _started(self) -> UnitWorker:
        assert self._worker is not None
        return self._worker
