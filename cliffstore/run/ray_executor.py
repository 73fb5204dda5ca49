"""Units on a Ray cluster: the actor around a worker, and what the cluster has room for. `ray_pool` works with them,
`ray_metrics` counts, `ray_tasks` runs functions without a model; no other module imports ray.

Only the workers' spec, the job and unit numbers travel through Ray; corpora and vectors go between a worker and the
store.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import ray

from cliffstore.errors import ConfigError, InterruptedRunError
from cliffstore.run.executor import J, OnDone, OnNotice, R, Spec, UnitOutcome, run_unit
from cliffstore.run.ray_metrics import RunMetrics
from cliffstore.run.ray_pool import LONELY_SECONDS, Actor, RayPool, result_of

log = logging.getLogger("cliffstore.ray")


@dataclass(frozen=True, slots=True)
class ActorShare:
    """How many actors run, and what each may use."""

    actors: int
    cpus: float
    gpus: float


class UnitActor(Generic[J]):
    """Wraps a worker for Ray."""

    def __init__(self, spec: Spec[J], threads: int) -> None:
        self._worker = spec.make(threads)

    def ask(self, question: Callable[..., R], *arguments: object) -> R:
        """Call a method of the worker's class on it."""
        return question(self._worker, *arguments)

    def begin(self, job: J) -> str:
        """Take up a job; return the worker's name."""
        self._worker.begin(job)
        return self._worker.name

    def run(self, unit: int, attempt: int) -> UnitOutcome:
        """Run one unit; failures of the unit are outcomes, not exceptions."""
        return run_unit(self._worker, unit, attempt)


class RayExecutor(Generic[J]):
    """Runs units on the cluster that RAY_ADDRESS names, or on a Ray started here.

    Parameters
    ----------
    actors : workers; by default one for every `gpus_per_actor` GPUs, or one a node where there is no GPU. Those that
        there is no room for wait for nodes to join: to Ray's autoscaler they are what it starts nodes for
    gpus_per_actor : GPUs that one copy of the model is spread over; 0 for work that needs none
    """

    def __init__(self, actors: int | None = None, gpus_per_actor: int = 1) -> None:
        self._begun_here = not ray.is_initialized()
        if self._begun_here:
            connect()
        try:
            self.share = share_out(ray.nodes(), actors, gpus_per_actor)
        except ConfigError:
            self.close()
            raise
        self.n_workers = self.share.actors
        where = os.environ.get("RAY_ADDRESS") or "a Ray started for this run"
        waiting = (actors or 0) - self.share.actors
        others = f" and {waiting} more as nodes join" if waiting > 0 else ""
        self.description = f"on {self.share.actors} Ray actor(s){others}, {where}"
        self._asked = actors
        self._actors: list[Actor] = []

    def start(self, spec: Spec[J]) -> None:
        self._spec, self._threads = spec, max(int(self.share.cpus), 1)
        self._in_flight = spec.in_flight(self._threads)
        self._actors = [self._actor()]

    def ask(self, question: Callable[..., R], *arguments: object) -> R:
        reference = self._actors[0].ask.remote(question, *arguments)
        if not ray.wait([reference], timeout=LONELY_SECONDS)[0]:
            log.warning("the first worker has not answered yet: it is starting, or waits for room on the cluster")
        answer: R = result_of(reference)
        return answer

    def run(self, job: J, units: Sequence[int], on_done: OnDone, on_notice: OnNotice) -> None:
        def record(outcome: UnitOutcome, attempt: int, worker: str) -> None:
            # The worker died of its unit, and cannot write down why that is given up.
            job.record_failure(outcome.unit, attempt, worker, outcome.error or "")

        metrics = RunMetrics(job, len(units))

        def done(outcome: UnitOutcome) -> None:
            metrics.take(outcome)
            on_done(outcome)

        pool = RayPool(
            self._actors[0], self._actor, self._wanted, ray.put(job), done, on_notice, record, in_flight=self._in_flight
        )
        for actor in self._actors[1:]:
            pool.adopt(actor)  # of the job before
        try:
            pool.run(units)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted") from None
        finally:
            self._actors = pool.actors

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._begun_here:
            ray.shutdown()

    def _wanted(self) -> int:
        """Return how many actors there should be now: as many as the user said, or as many as there is room for."""
        return self._asked or places(ray.nodes(), self.share)

    def _actor(self) -> Actor:
        # Not restarted by Ray: the pool replaces an actor and knows what it was doing.
        remote = ray.remote(UnitActor).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_concurrency=self._in_flight,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        return remote.remote(self._spec, self._threads)


def places(nodes: Sequence[dict[str, object]], share: ActorShare) -> int:
    """Return how many actors of this share have room on the nodes that are alive."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    rooms = [resources for resources in alive if isinstance(resources, dict)]
    if share.gpus:
        return sum(int(float(room.get("GPU", 0)) // share.gpus) for room in rooms)
    return sum(1 for room in rooms if float(room.get("CPU", 0)) >= share.cpus)


def share_out(nodes: Sequence[dict[str, object]], actors: int | None, gpus_per_actor: int = 1) -> ActorShare:
    """Share a cluster's devices among actors: whole GPUs each, or equal parts of the CPUs.

    Parameters
    ----------
    nodes : as `ray.nodes()` gives them
    actors : number of actors asked for, None for the default
    gpus_per_actor : GPUs of one actor, all on one node; with 0, GPUs are left to others

    Raises
    ------
    ConfigError
        There is nothing to run on, or no node has that many GPUs.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(resources.get("CPU", 0)) for resources in alive if isinstance(resources, dict)]
    gpus = [int(resources.get("GPU", 0)) for resources in alive if isinstance(resources, dict)]
    if sum(gpus) and gpus_per_actor:
        places = sum(count // gpus_per_actor for count in gpus)
        if not places:
            raise ConfigError(
                f"--gpus-per-actor {gpus_per_actor}: no node of the Ray cluster has that many GPUs (most: {max(gpus)})"
            )
        return ActorShare(min(actors or places, places), 1.0, float(gpus_per_actor))
    if gpus_per_actor > 1:
        raise ConfigError(f"--gpus-per-actor {gpus_per_actor}: the Ray cluster has no GPU")
    with_cpus = [count for count in cpus if count]
    if not with_cpus:
        raise ConfigError("the Ray cluster has neither CPUs nor GPUs to run on")
    if actors is None:
        return ActorShare(len(with_cpus), float(min(with_cpus)), 0.0)
    per_node = -(-actors // len(with_cpus))
    share = max(min(with_cpus) // per_node, 1)
    return ActorShare(min(actors, sum(count // share for count in with_cpus)), float(share), 0.0)


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray here. Raises `ConfigError` where it cannot."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, logging_level="ERROR"
        )
    except Exception as error:  # noqa: BLE001  # a node that does not start in time is a bare Exception of Ray's
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ConfigError(f"Ray at {os.environ.get('RAY_ADDRESS', 'this machine')}: {first}") from None
    finally:
        # Ray takes the signal for itself and would end the driver at once: a job that is stopped says what is stored.
        if callable(on_terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
