"""Where a run computes: in this process, or on a Ray cluster."""

from __future__ import annotations

import os

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError
from cliffstore.model.loader import choose_device, device_count, gpu_memory, spread
from cliffstore.run.executor import Executor, LocalExecutor


def check_placement(config: ExtractConfig) -> None:
    """Find early what cannot work on this machine; a cluster's machines are asked when they are there.

    Raises
    ------
    ModelError, ConfigError
        The device, the GPUs or the workers that are asked for are not here.
    """
    if _wants_ray(config):
        return
    if config.actors is not None and config.actors > 1:
        raise ConfigError(f"--actors {config.actors} needs --executor ray: in this process there is one worker")
    choose_device(config.device)
    if config.gpus_per_actor > 1:
        spread(gpu_memory(), config.gpus_per_actor)


def choose_executor(config: ExtractConfig) -> Executor:
    """Return the executor that the configuration asks for.

    `auto` is Ray where RAY_ADDRESS names a cluster, or where this machine has GPUs for more than one worker.
    """
    if not _wants_ray(config):
        return LocalExecutor()
    from cliffstore.run.ray_executor import RayExecutor

    return RayExecutor(config.actors, config.gpus_per_actor)


def _wants_ray(config: ExtractConfig) -> bool:
    if config.executor == "auto":
        return bool(os.environ.get("RAY_ADDRESS")) or _several_gpus(config)
    return config.executor == "ray"


def _several_gpus(config: ExtractConfig) -> bool:
    return config.device in ("auto", "cuda") and device_count("cuda") >= 2 * config.gpus_per_actor
