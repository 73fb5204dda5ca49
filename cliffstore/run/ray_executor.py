"""Units on a Ray cluster: a pool of actors, each around one worker. The only module that imports ray.

Only the worker's spec and unit numbers travel through Ray; corpora and vectors go between a worker and the store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray

from cliffstore.errors import CliffstoreError, ConfigError, InterruptedRunError, UserError
from cliffstore.extract.unit import UnitWorker, WorkerSpec
from cliffstore.run.executor import IN_FLIGHT, OnDone, UnitOutcome, run_unit

_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class ActorShare:
    """How many actors run, and what each may use."""

    actors: int
    cpus: float
    gpus: float


class UnitActor:
    """Wraps a worker for Ray."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = UnitWorker(spec)

    def run(self, unit: int) -> UnitOutcome:
        """Run one unit; failures of the unit are outcomes, not exceptions."""
        return run_unit(self._worker, unit)


class RayExecutor:
    """Runs units on the cluster that RAY_ADDRESS names, or on a Ray started here.

    Parameters
    ----------
    actors : workers; by default one a GPU, or one a node where there is no GPU
    """

    def __init__(self, actors: int | None = None) -> None:
        self._actors = actors
        self._begun_here = not ray.is_initialized()
        if self._begun_here:
            _connect()
        self.share = share_out(ray.nodes(), actors)
        where = os.environ.get("RAY_ADDRESS") or "a Ray started for this run"
        self.description = f"on {self.share.actors} Ray actor(s), {where}"

    def run(self, spec: WorkerSpec, units: Sequence[int], on_done: OnDone) -> None:
        n_actors = min(self.share.actors, len(units))
        remote = ray.remote(UnitActor).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_concurrency=IN_FLIGHT,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        threads = spec.threads or max(int(self.share.cpus), 1)
        pool = [remote.remote(replace(spec, threads=threads)) for _ in range(n_actors)]
        try:
            _drain(pool, units, on_done)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted") from None
        finally:
            for actor in pool:
                ray.kill(actor)
            if self._begun_here:
                ray.shutdown()


def share_out(nodes: Sequence[dict[str, object]], actors: int | None) -> ActorShare:
    """Share a cluster's devices among actors: a GPU each, or equal parts of the CPUs.

    Parameters
    ----------
    nodes : as `ray.nodes()` gives them
    actors : number of actors asked for, None for the default
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(resources.get("CPU", 0)) for resources in alive if isinstance(resources, dict)]
    gpus = sum(int(resources.get("GPU", 0)) for resources in alive if isinstance(resources, dict))
    if gpus:
        n_actors = min(actors or gpus, gpus)
        return ActorShare(n_actors, 1.0, 1.0)
    with_cpus = [count for count in cpus if count]
    if not with_cpus:
        raise ConfigError("the Ray cluster has neither CPUs nor GPUs to run on")
    if actors is None:
        return ActorShare(len(with_cpus), float(min(with_cpus)), 0.0)
    per_node = -(-actors // len(with_cpus))
    return ActorShare(actors, max(min(with_cpus) / per_node // 1, 1.0), 0.0)


def _connect() -> None:
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, logging_level="ERROR"
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise ConfigError(f"Ray at {os.environ.get('RAY_ADDRESS', 'this machine')}: {first}") from None


def _drain(pool: Sequence[object], units: Sequence[int], on_done: OnDone) -> None:
    waiting = iter(units)
    running: dict[ray.ObjectRef, tuple[object, int]] = {}

    def submit(actor: object) -> None:
        unit = next(waiting, None)
        if unit is not None:
            running[actor.run.remote(unit)] = (actor, unit)  # type: ignore[attr-defined]

    for _ in range(IN_FLIGHT):
        for actor in pool:
            submit(actor)
    while running:
        ready, _ = ray.wait(list(running), num_returns=1)
        actor, unit = running.pop(ready[0])
        on_done(_outcome(ready[0], unit))
        submit(actor)


def _outcome(reference: ray.ObjectRef, unit: int) -> UnitOutcome:
    try:
        outcome: UnitOutcome = ray.get(reference)
    except ray.exceptions.RayActorError as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        first = str(error).strip().splitlines()
        raise CliffstoreError(f"a worker could not start or died {_RESTARTS + 1} times: {first[-1][:300]}") from None
    return outcome
