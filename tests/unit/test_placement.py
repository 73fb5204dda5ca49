"""Where a run computes, and what each of its workers may use."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError, ModelError
from cliffstore.run import placement, ray_executor
from cliffstore.run.executor import LocalExecutor
from cliffstore.run.placement import check_placement, choose_executor, choose_scoring_executor
from cliffstore.run.ray_executor import ActorShare, share_out


def _nodes(*resources: tuple[int, int], dead: Sequence[int] = ()) -> list[dict[str, object]]:
    """Return nodes of (CPUs, GPUs), as Ray lists them: a node has no key for what it has none of."""
    return [
        {
            "Alive": number not in dead,
            "Resources": {name: float(n) for name, n in (("CPU", cpus), ("GPU", gpus)) if n} | {"memory": 1e9},
        }
        for number, (cpus, gpus) in enumerate(resources)
    ]


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "expected"),
    [
        (_nodes((8, 0)), None, 1, ActorShare(1, 8.0, 0.0)),
        (_nodes((8, 0), (4, 0)), None, 1, ActorShare(2, 4.0, 0.0)),
        (_nodes((8, 0)), 3, 1, ActorShare(3, 2.0, 0.0)),
        (_nodes((2, 0)), 5, 1, ActorShare(2, 1.0, 0.0)),  # the others wait for nodes
        (_nodes((8, 0), (8, 0), dead=[1]), None, 1, ActorShare(1, 8.0, 0.0)),
        (_nodes((0, 0), (8, 0)), None, 1, ActorShare(1, 8.0, 0.0)),  # a head that takes no work
        (_nodes((64, 8)), None, 1, ActorShare(8, 1.0, 1.0)),
        (_nodes((64, 8)), 2, 1, ActorShare(2, 1.0, 1.0)),
        (_nodes((64, 8)), 99, 1, ActorShare(8, 1.0, 1.0)),
        (_nodes((64, 8), (16, 0)), None, 1, ActorShare(8, 1.0, 1.0)),
        (_nodes((64, 8), (64, 8)), None, 4, ActorShare(4, 1.0, 4.0)),
        (_nodes((64, 3), (64, 5)), None, 2, ActorShare(3, 1.0, 2.0)),  # an actor's GPUs are on one node
        (_nodes((64, 8), (16, 0)), None, 0, ActorShare(2, 16.0, 0.0)),  # work that needs no GPU
        (_nodes((64, 8)), 4, 0, ActorShare(4, 16.0, 0.0)),
    ],
)
def test_a_cluster_is_shared_out(
    nodes: list[dict[str, object]], actors: int | None, gpus: int, expected: ActorShare
) -> None:
    assert share_out(nodes, actors, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "gpus", "message"),
    [
        (_nodes((64, 2), (64, 2)), 4, r"--gpus-per-actor 4: no node of the Ray cluster has that many GPUs \(most: 2\)"),
        (_nodes((8, 0)), 2, "--gpus-per-actor 2: the Ray cluster has no GPU"),
        (_nodes((0, 0)), 1, "neither CPUs nor GPUs"),
        (_nodes((8, 8), dead=[0]), 1, "neither CPUs nor GPUs"),
    ],
)
def test_what_a_cluster_lacks_is_said(nodes: list[dict[str, object]], gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        share_out(nodes, None, gpus)


def test_a_ray_that_does_not_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nIt may be overloaded.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_executor.ray, "init", start)
    with pytest.raises(ConfigError, match=r"^Ray at this machine: The current node timed out during startup\.$"):
        ray_executor.connect()


def _config(**options: object) -> ExtractConfig:
    return ExtractConfig.model_validate({"corpus": ("a",), "model": "m", "store": "s", **options})


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_several_workers_need_ray() -> None:
    with pytest.raises(ConfigError, match="--actors 2 needs --executor ray"):
        check_placement(_config(actors=2, executor="local"))
    check_placement(_config(actors=1, executor="local"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_devices_of_this_machine_are_looked_for_early() -> None:
    with pytest.raises(ModelError, match="device 'cuda' is not on this machine"):
        check_placement(_config(device="cuda", executor="local"))
    with pytest.raises(ModelError, match="--gpus-per-actor 2: only 0 GPU"):
        check_placement(_config(gpus_per_actor=2, executor="local"))


def test_devices_of_a_cluster_are_not_looked_for_here() -> None:
    check_placement(_config(device="cuda", gpus_per_actor=2, actors=4, executor="ray"))


def test_ray_is_used_where_there_is_a_cluster_or_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int | None, int]] = []
    monkeypatch.setattr("cliffstore.run.ray_executor.RayExecutor", lambda actors, gpus: used.append((actors, gpus)))
    monkeypatch.setattr(placement, "device_count", lambda _kind: 1)
    assert isinstance(choose_executor(_config()), LocalExecutor)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    choose_executor(_config())
    assert isinstance(choose_executor(_config(executor="local")), LocalExecutor)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(placement, "device_count", lambda _kind: 4)
    choose_executor(_config(gpus_per_actor=2, actors=7))
    assert isinstance(choose_executor(_config(gpus_per_actor=4)), LocalExecutor), "one worker needs all four"
    assert isinstance(choose_executor(_config(device="cpu")), LocalExecutor)
    assert used == [(None, 1), (7, 2)]


def test_scoring_is_on_a_cluster_where_there_is_one_and_leaves_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int | None, int]] = []
    monkeypatch.setattr("cliffstore.run.ray_executor.RayExecutor", lambda actors, gpus: used.append((actors, gpus)))
    monkeypatch.setattr(placement, "device_count", lambda _kind: 4)
    assert isinstance(choose_scoring_executor("auto", None), LocalExecutor)
    with pytest.raises(ConfigError, match="--actors 2 needs --executor ray"):
        choose_scoring_executor("auto", 2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    choose_scoring_executor("auto", None)
    assert isinstance(choose_scoring_executor("local", 1), LocalExecutor)
    monkeypatch.delenv("RAY_ADDRESS")
    choose_scoring_executor("ray", 7)
    assert used == [(None, 0), (7, 0)]
