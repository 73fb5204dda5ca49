"""The cluster file for `ray up`: what Ray itself says of it, commands, tokens, spot machines."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import pytest
import yaml
from manifests import INFRA, check_command, known_variables

CLUSTER = INFRA / "aws" / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


def validated(cluster: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does before it reaches for AWS. Raises where it would end."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_takes_the_file(cluster: dict[str, Any]) -> None:
    prepared = validated(cluster)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(max_worker=3),
        lambda one: one.update(head_node_type="none"),
        lambda one: one["available_node_types"]["gpu"].update(min_workers="one"),
    ],
    ids=["misspelt", "no such type", "text for a number"],
)
def test_ray_finds_what_is_wrong(cluster: dict[str, Any], change: Any) -> None:
    wrong = copy.deepcopy(cluster)
    change(wrong)
    with pytest.raises(Exception, match=r"max_worker|none|one"):
        validated(wrong)


def test_workers_are_spot_machines_with_a_gpu_and_the_head_is_neither(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head, gpu = types[cluster["head_node_type"]], types["gpu"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"], "the run is lost with the head"
    assert gpu["resources"]["GPU"] == 1
    assert gpu["min_workers"] >= 1, "with no GPU at first a run would settle for processors"
    assert head["resources"] == {"CPU": 0}, "the head takes no work"
    for kind in types.values():
        assert "instance-profile/cliffstore-" in kind["node_config"]["IamInstanceProfile"]["Arn"]
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_commands_exist_with_all_their_flags(cluster: dict[str, Any]) -> None:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert len(commands) == 4
    for command in commands:
        check_command(shlex.split(command))
        assert command.startswith("RAY_AUTH_MODE=token "), "the same on every node"
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in cluster["head_start_ray_commands"][1]
    assert "--address=$RAY_HEAD_IP:6379" in cluster["worker_start_ray_commands"][1]
    assert all("--metrics-export-port=8080" in command for command in commands if " start " in command)


def test_every_node_is_given_the_token(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"] == {"/home/cliffstore/.ray/auth_token": "~/.ray/auth_token"}


def test_environment_of_the_container_is_read_by_somebody(cluster: dict[str, Any]) -> None:
    options = [shlex.split(option) for option in cluster["docker"]["run_options"]]
    given = [value.partition("=")[0] for flag, value in options if flag == "--env"]
    assert given == ["AWS_DEFAULT_REGION"]
    assert set(given) <= known_variables()
    assert f"AWS_DEFAULT_REGION={cluster['provider']['region']}" in [value for _, value in options]
    # https://docs.docker.com/reference/cli/docker/container/run/
    assert {flag for flag, _ in options} <= {"--env", "--security-opt", "--ulimit"}


def test_image_has_what_ray_up_needs_inside() -> None:
    dockerfile = (INFRA / "Dockerfile").read_text()
    for needed in ("rsync", "openssh-client", "boto3"):
        assert needed in dockerfile
