"""Units on a Ray cluster: a pool of actors, each around one worker. The only module that imports ray.

Only the worker's spec and unit numbers travel through Ray; corpora and vectors go between a worker and the store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray

from cliffstore.errors import CliffstoreError, ConfigError, InterruptedRunError, UserError
from cliffstore.extract.calibration import CorpusShape, PassWish
from cliffstore.extract.job import Job, Prepared, WorkerSpec
from cliffstore.extract.unit import UnitWorker
from cliffstore.run.executor import IN_FLIGHT, OnDone, UnitOutcome, run_unit

_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class ActorShare:
    """How many actors run, and what each may use."""

    actors: int
    cpus: float
    gpus: float


class UnitActor:
    """Wraps a worker for Ray. An actor that Ray has restarted takes up its job again with the next unit."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = UnitWorker(spec)
        self._begin = threading.Lock()
        self._begun = False

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        """Choose passes."""
        return self._worker.prepare(wish, shape)

    def run(self, job: Job, unit: int) -> UnitOutcome:
        """Run one unit; failures of the unit are outcomes, not exceptions."""
        with self._begin:
            if not self._begun:
                self._worker.begin(job)
                self._begun = True
        return run_unit(self._worker, unit)


class RayExecutor:
    """Runs units on the cluster that RAY_ADDRESS names, or on a Ray started here.

    Parameters
    ----------
    actors : workers; by default one for every `gpus_per_actor` GPUs, or one a node where there is no GPU
    gpus_per_actor : GPUs that one copy of the model is spread over
    """

    def __init__(self, actors: int | None = None, gpus_per_actor: int = 1) -> None:
        self._begun_here = not ray.is_initialized()
        if self._begun_here:
            _connect()
        try:
            self.share = share_out(ray.nodes(), actors, gpus_per_actor)
        except ConfigError:
            self.close()
            raise
        self.n_workers = self.share.actors
        where = os.environ.get("RAY_ADDRESS") or "a Ray started for this run"
        self.description = f"on {self.share.actors} Ray actor(s), {where}"
        self._pool: list[object] = []

    def start(self, spec: WorkerSpec) -> None:
        self._spec = replace(spec, threads=spec.threads or max(int(self.share.cpus), 1))
        self._pool = [self._actor()]

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        return _result(self._pool[0].prepare.remote(wish, shape))  # type: ignore[attr-defined]

    def run(self, job: Job, units: Sequence[int], on_done: OnDone) -> None:
        self._pool += [self._actor() for _ in range(min(self.share.actors, len(units)) - len(self._pool))]
        try:
            _drain(self._pool, ray.put(job), units, on_done)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted") from None

    def close(self) -> None:
        for actor in self._pool:
            ray.kill(actor)
        self._pool = []
        if self._begun_here:
            ray.shutdown()

    def _actor(self) -> object:
        remote = ray.remote(UnitActor).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_concurrency=IN_FLIGHT,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        return remote.remote(self._spec)


def share_out(nodes: Sequence[dict[str, object]], actors: int | None, gpus_per_actor: int = 1) -> ActorShare:
    """Share a cluster's devices among actors: whole GPUs each, or equal parts of the CPUs.

    Parameters
    ----------
    nodes : as `ray.nodes()` gives them
    actors : number of actors asked for, None for the default
    gpus_per_actor : GPUs of one actor, all on one node

    Raises
    ------
    ConfigError
        There is nothing to run on, or no node has that many GPUs.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(resources.get("CPU", 0)) for resources in alive if isinstance(resources, dict)]
    gpus = [int(resources.get("GPU", 0)) for resources in alive if isinstance(resources, dict)]
    if sum(gpus):
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
    return ActorShare(actors, max(min(with_cpus) / per_node // 1, 1.0), 0.0)


def _connect() -> None:
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, logging_level="ERROR"
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise ConfigError(f"Ray at {os.environ.get('RAY_ADDRESS', 'this machine')}: {first}") from None


def _drain(pool: Sequence[object], job: ray.ObjectRef, units: Sequence[int], on_done: OnDone) -> None:
    waiting = iter(units)
    running: dict[ray.ObjectRef, tuple[object, int]] = {}

    def submit(actor: object) -> None:
        unit = next(waiting, None)
        if unit is not None:
            running[actor.run.remote(job, unit)] = (actor, unit)  # type: ignore[attr-defined]

    for _ in range(IN_FLIGHT):
        for actor in pool:
            submit(actor)
    while running:
        ready, _ = ray.wait(list(running), num_returns=1)
        actor, _ = running.pop(ready[0])
        on_done(_result(ready[0]))
        submit(actor)


def _result(reference: ray.ObjectRef):  # type: ignore[no-untyped-def]  # whatever the actor's method returns
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CliffstoreError):
            raise error.cause from None
        raise CliffstoreError(f"a worker failed: {str(error.cause).strip().splitlines()[-1][:300]}") from None
    except ray.exceptions.RayActorError as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        first = str(error).strip().splitlines()
        raise CliffstoreError(f"a worker could not start or died {_RESTARTS + 1} times: {first[-1][:300]}") from None
