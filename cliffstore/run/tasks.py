"""Functions over parts of a store in several processes here, or on a Ray cluster: what analysis calls a `Mapper`.

A function reads from the store by itself; only its payloads and its results travel. Results come in the order of the
payloads, and a few payloads a worker are taken ahead, so memory is bounded however many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from joblib.externals.loky.process_executor import BrokenProcessPool

from cliffstore.analyze.mapping import InTurn, Mapper
from cliffstore.errors import CliffstoreError, InterruptedRunError
from cliffstore.run import executor as cpus
from cliffstore.run.parallel import BlockPool

P = TypeVar("P")
R = TypeVar("R")

TaskExecutor = Literal["auto", "local", "ray"]


@contextmanager
def open_tasks(executor: TaskExecutor = "auto", workers: int | None = None) -> Iterator[Mapper]:
    """Give a mapper whose workers end with the context.

    Parameters
    ----------
    executor : `auto` is Ray where RAY_ADDRESS names a cluster, else processes of this machine
    workers : how many payloads are worked on at once; by default as many as there are CPUs. With one, and without
        Ray, everything is done in this process

    Raises
    ------
    ConfigError
        The Ray cluster cannot be reached, or has no CPU.
    InterruptedRunError
        The user stopped it (Ctrl-C).
    CliffstoreError
        A worker died, again and again where Ray could start another.
    """
    try:
        if executor == "ray" or (executor == "auto" and os.environ.get("RAY_ADDRESS")):
            from cliffstore.run.ray_tasks import RayTasks

            with RayTasks(workers) as tasks:
                yield tasks
        elif (wanted := workers or cpus.available_cpus()) == 1:
            yield InTurn()
        else:
            with LocalTasks(wanted) as tasks:
                yield tasks
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted") from None


class LocalTasks:
    """Several processes of this machine, started with the first payload. Use as a context manager."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._pool = BlockPool(n_workers, blocks_here=0)

    def __enter__(self) -> LocalTasks:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def map(self, function: Callable[[P], R], payloads: Iterable[P]) -> Iterator[R]:
        """Yield results in the order of the payloads. What a function raises is raised here."""
        try:
            yield from self._pool.map(function, payloads)
        except BrokenProcessPool:
            raise CliffstoreError(
                f"one of {self.n_workers} worker processes died, most likely for lack of memory: use fewer workers"
            ) from None
