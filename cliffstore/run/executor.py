"""Where units run: what executors and workers are to each other, and the executor that runs units in this process.

A spec, small enough to send anywhere, makes workers; a job says what is done with units; a worker takes up a job and
then units of it. Extraction and scoring each have a spec, a worker and a job of their own, and share all else:
attempts, lost workers, units that are given up, progress.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cliffstore.errors import ExtractionError, InterruptedRunError
from cliffstore.records import UnitReport

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


class UnitJob(Protocol):
    """What is done with units of a store. Pickles, and is sent to each worker once."""

    @property
    def store(self) -> str: ...

    @property
    def storage_options(self) -> Mapping[str, object]: ...

    @property
    def receipts_name(self) -> str:
        """What the work is called in metrics: a capture, or `scores`."""

    def record_failure(self, unit: int, attempt: int, worker: str, error: str) -> None:
        """Write down why a unit is given up, where its worker no longer can."""


J = TypeVar("J", bound=UnitJob)
J_contra = TypeVar("J_contra", bound=UnitJob, contravariant=True)
R = TypeVar("R")


class Worker(Protocol[J_contra]):
    """Takes up a job, and then units of it, several at once from threads."""

    @property
    def name(self) -> str:
        """Host and process."""

    def begin(self, job: J_contra) -> None: ...

    def run(self, unit: int, attempt: int) -> UnitReport:
        """Compute and commit one unit; one that is committed already is left alone.

        Raises
        ------
        ExtractionError
            The unit cannot be computed; why is recorded in the store.
        InterruptedRunError
            `stop` was called.
        StorageError, StoreError
            The store cannot be reached, or is full: no unit's fault, and no other unit would fare better.
        """

    def stop(self) -> None:
        """Make running and later calls of `run` end soon."""


class Spec(Protocol[J_contra]):
    """Makes workers."""

    def make(self, threads: int) -> Worker[J_contra]:
        """Return a worker that may use so many threads."""

    def in_flight(self, threads: int) -> int:
        """Return how many units such a worker has at once."""


class Executor(Protocol[J]):
    """Runs the units of a job, in any order, each until it has an outcome: `start`, `ask`, `run`, `close`."""

    description: str
    n_workers: int

    def start(self, spec: Spec[J]) -> None:
        """Make a first worker."""

    def ask(self, question: Callable[..., R], *arguments: object) -> R:
        """Call a method of the workers' class on the first worker."""

    def run(self, job: J, units: Sequence[int], on_done: OnDone, on_notice: OnNotice) -> None:
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


def run_unit(worker: Worker[J], unit: int, attempt: int = 1) -> UnitOutcome:
    """Run one unit and turn its failure into an outcome."""
    try:
        return UnitOutcome(unit, worker.run(unit, attempt), None)
    except ExtractionError as error:
        return UnitOutcome(unit, None, str(error), error.final)


def available_cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def from_anywhere(units: Sequence[int]) -> list[int]:
    """Return units in their order, from a random one on: two runs of one command then share the work between them."""
    first = random.randrange(len(units))
    return [*units[first:], *units[:first]]


class LocalExecutor(Generic[J]):
    """One worker in this process, with threads for the units that it has at once."""

    def __init__(self) -> None:
        self.description = "in this process"
        self.n_workers = 1
        self._worker: Worker[J] | None = None
        self._in_flight = 1

    def start(self, spec: Spec[J]) -> None:
        threads = available_cpus()
        self._worker, self._in_flight = spec.make(threads), spec.in_flight(threads)

    def ask(self, question: Callable[..., R], *arguments: object) -> R:
        return question(self._started(), *arguments)

    def run(self, job: J, units: Sequence[int], on_done: OnDone, on_notice: OnNotice) -> None:
        worker = self._started()
        worker.begin(job)
        waiting = deque((unit, 1) for unit in units)
        running: dict[Future[UnitOutcome], int] = {}
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="unit") as pool:
            try:
                while waiting or running:
                    while len(running) < self._in_flight and waiting:
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

    def _started(self) -> Worker[J]:
        assert self._worker is not None
        return self._worker
