"""Where units run: the protocol of an executor, and the one that runs them in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol

from cliffstore.errors import ExtractionError, InterruptedRunError
from cliffstore.extract.unit import UnitWorker, WorkerSpec
from cliffstore.schema import Receipt

IN_FLIGHT = 2
"""Units that a worker has at once: one is computed while the one before is written."""


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How one unit ended: with a receipt, or with an error."""

    unit: int
    receipt: Receipt | None
    error: str | None


OnDone = Callable[[UnitOutcome], None]


class Executor(Protocol):
    """Runs the units of one capture, in any order, each until it has an outcome."""

    description: str

    def run(self, spec: WorkerSpec, units: Sequence[int], on_done: OnDone) -> None:
        """Run all units. Raises `InterruptedRunError` where the user stops it; committed units stay committed."""


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

    def run(self, spec: WorkerSpec, units: Sequence[int], on_done: OnDone) -> None:
        worker = UnitWorker(replace(spec, threads=spec.threads or available_cpus()))
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
