"""Where units run: the protocol of an executor, and the one that runs them in this process."""

from __future__ import annotations

import os
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


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How one unit ended: with a report, or with an error."""

    unit: int
    report: UnitReport | None
    error: str | None


OnDone = Callable[[UnitOutcome], None]


class Executor(Protocol):
    """Runs the units of a job, in any order, each until it has an outcome: `start`, `prepare`, `run`, `close`."""

    description: str
    n_workers: int

    def start(self, spec: WorkerSpec) -> None:
        """Load the model into a first worker."""

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        """Choose passes on the first worker."""

    def run(self, job: Job, units: Sequence[int], on_done: OnDone) -> None:
        """Run all units. Raises `InterruptedRunError` where the user stops it; committed units stay committed."""

    def close(self) -> None:
        """Let go of workers."""


def run_unit(worker: UnitWorker, unit: int) -> UnitOutcome:
    """Extract one unit and turn its failure into an outcome."""
    try:
        return UnitOutcome(unit, worker.extract(unit), None)
    except ExtractionError as error:
        return UnitOutcome(unit, None, str(error))


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

    def run(self, job: Job, units: Sequence[int], on_done: OnDone) -> None:
        worker = self._started()
        worker.begin(job)
        waiting = iter(units)
        running: set[Future[UnitOutcome]] = set()
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="unit") as pool:
            try:
                while True:
                    while len(running) < IN_FLIGHT and (unit := next(waiting, None)) is not None:
                        running.add(pool.submit(run_unit, worker, unit))
                    if not running:
                        return
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        on_done(future.result())
            except KeyboardInterrupt:
                worker.stop()
                raise InterruptedRunError("interrupted") from None

    def close(self) -> None:
        self._worker = None

    def _started(self) -> UnitWorker:
        assert self._worker is not None
        return self._worker
