"""Where a run computes: in this process, or on a Ray cluster."""

from __future__ import annotations

import os
from typing import Any, Protocol

from cliffstore.analyze.score import ScoreJob
from cliffstore.errors import ConfigError
from cliffstore.model.loader import choose_device, device_count, gpu_memory, spread
from cliffstore.run.executor import Executor, LocalExecutor


class Placement(Protocol):
    """The settings that say where models run."""

    @property
    def executor(self) -> str: ...

    @property
    def actors(self) -> int | None: ...

    @property
    def device(self) -> str: ...

    @property
    def gpus_per_actor(self) -> int: ...


def check_placement(config: Placement) -> None:
    """Find early what cannot work on this machine; a cluster's machines are asked when they are there.

    Raises
    ------
    ModelError, ConfigError
        The device, the GPUs or the workers that are asked for are not here.
    """
    if _wants_ray(config):
        return
    _check_one_worker(config.actors)
    choose_device(config.device)
    if config.gpus_per_actor > 1:
        spread(gpu_memory(), config.gpus_per_actor)


def choose_executor(config: Placement) -> Executor[Any]:
    """Return the executor that the configuration asks for.

    `auto` is Ray where RAY_ADDRESS names a cluster, or where this machine has GPUs for more than one worker.
    """
    if not _wants_ray(config):
        return LocalExecutor()
    from cliffstore.run.ray_executor import RayExecutor

    return RayExecutor(config.actors, config.gpus_per_actor)


def choose_scoring_executor(executor: str, actors: int | None) -> Executor[ScoreJob]:
    """Return the executor that scores units; `auto` is Ray where RAY_ADDRESS names a cluster. GPUs are left to others.

    Raises
    ------
    ConfigError
        Several workers are asked for in this process, or the cluster has no room.
    """
    if not (executor == "ray" or (executor == "auto" and os.environ.get("RAY_ADDRESS"))):
        _check_one_worker(actors)
        return LocalExecutor()
    from cliffstore.run.ray_executor import RayExecutor

    return RayExecutor(actors, 0)


def _check_one_worker(actors: int | None) -> None:
    if actors is not None and actors > 1:
        raise ConfigError(f"--actors {actors} needs --executor ray: in this process there is one worker")


def _wants_ray(config: Placement) -> bool:
    if config.executor == "auto":
        return bool(os.environ.get("RAY_ADDRESS")) or _several_gpus(config)
    return config.executor == "ray"


def _several_gpus(config: Placement) -> bool:
    return config.device in ("auto", "cuda") and device_count("cuda") >= 2 * config.gpus_per_actor
