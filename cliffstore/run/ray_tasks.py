"""Functions over parts of a store as Ray tasks: the same order, bounds and errors as in processes of one machine.

A task whose process or node dies is run again by Ray, elsewhere where need be; what a function raises is not tried
again. Tasks hold no state, so nodes may come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import ray
from threadpoolctl import threadpool_limits

from cliffstore.errors import ConfigError
from cliffstore.run.ray_executor import connect
from cliffstore.run.ray_pool import result_of

P = TypeVar("P")
R = TypeVar("R")

_AHEAD = 2
"""Payloads that are under way for each worker: one is computed while the next is on its way."""
_MOST_DEATHS = 3
"""Deaths of its worker after which a task is given up."""


class RayTasks:
    """Maps functions over payloads on the cluster that RAY_ADDRESS names, or on a Ray started here.

    Use as a context manager. Each task has one CPU and one thread.

    Parameters
    ----------
    workers : tasks that run at once; by default one for each CPU of the cluster

    Raises
    ------
    ConfigError
        The cluster cannot be reached, or has no CPU.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._begun_here = not ray.is_initialized()
        if self._begun_here:
            connect()
        found = int(ray.cluster_resources().get("CPU", 0))
        if not found:
            self.__exit__()
            raise ConfigError("the Ray cluster has no CPU to run on")
        self.n_workers = workers or found
        self._task = ray.remote(_one_thread).options(
            num_cpus=1, max_retries=_MOST_DEATHS, retry_exceptions=False, scheduling_strategy="SPREAD"
        )

    def __enter__(self) -> RayTasks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun_here:
            ray.shutdown()

    def map(self, function: Callable[[P], R], payloads: Iterable[P]) -> Iterator[R]:
        """Yield results in the order of the payloads. What a function raises is raised here."""
        window: deque = deque()
        shared = ray.put(function)
        try:
            for payload in payloads:
                window.append(self._task.remote(shared, payload))
                if len(window) >= self.n_workers * _AHEAD:
                    yield result_of(window[0])
                    window.popleft()
            while window:
                yield result_of(window[0])
                window.popleft()
        finally:
            if ray.is_initialized():  # else its tasks have ended with it, and to ask would start another
                for reference in window:
                    ray.cancel(reference, force=True)


def _one_thread(function: Callable[[P], R], payload: P) -> R:
    with threadpool_limits(1):
        return function(payload)
