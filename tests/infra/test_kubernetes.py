"""The manifests for KubeRay: valid to the last field, with commands and settings that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_schema import SCHEMAS
from manifests import INFRA, ROOT, check_command, check_pipeline, known_variables

from cliffstore.settings import parse_overrides

FOLDER = INFRA / "kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return read("raycluster")["spec"]


def groups(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def containers(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in groups(cluster):
        yield from group["template"]["spec"]["containers"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_object_is_valid(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert len(documents) == 1
    jsonschema.validate(documents[0], SCHEMAS[documents[0]["kind"]])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rayjob", lambda job: job["spec"].update(backofLimit=1)),
        ("rayjob", lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas")),
        ("raycluster", lambda one: one["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0})),
        ("raycluster", lambda one: next(containers(one["spec"])).update(command="ray")),
        ("raycluster", lambda one: one.update(apiVersion="ray.io/v1alpha1")),
    ],
    ids=["misspelt", "missing", "number for text", "wrong kind", "old version"],
)
def test_schema_finds_what_is_wrong(name: str, change: Any) -> None:
    found = read(name)
    change(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, SCHEMAS[found["kind"]])


def test_cluster_that_stays_is_applied_with_all_that_its_pods_name(cluster: dict[str, Any]) -> None:
    text = (FOLDER / "raycluster.yaml").read_text()
    applied = [yaml.safe_load((ROOT / name).read_text()) for name in re.findall(r"-f (\S+)", text)]
    there = {(one["kind"], one["metadata"]["name"]) for one in applied}
    for group in groups(cluster):
        pod = group["template"]["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in there
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there


def test_job_and_cluster_are_of_one_spec(cluster: dict[str, Any]) -> None:
    assert read("rayjob")["spec"]["rayClusterSpec"] == cluster


def test_job_runs_the_pipeline_of_the_config_map(tmp_path: Path) -> None:
    job, config_map = read("rayjob")["spec"], read("pipeline")
    words = shlex.split(job["entrypoint"])
    check_command(words)
    sets = [value for flag, value in pairwise(words) if flag == "--set"]
    (config,) = (word for word in words if word.endswith(".yaml"))
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = (one for one in head["containers"][0]["volumeMounts"] if config.startswith(f"{one['mountPath']}/"))
    (volume,) = (one for one in head["volumes"] if one["name"] == mount["name"])
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    file = tmp_path / "pipeline.yaml"
    file.write_text(config_map["data"][Path(config).name])
    settings = check_pipeline(file, sets)
    assert settings.extract.yes, "nobody is there to be asked"
    (workers,) = job["rayClusterSpec"]["workerGroupSpecs"]
    asked = parse_overrides(sets)["extract"]["actors"]  # type: ignore[index]
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert asked == workers["maxReplicas"] * gpus, "workers that are asked for are what nodes are started for"


def test_a_failed_job_is_run_again_and_its_cluster_goes() -> None:
    job = read("rayjob")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True


def test_cluster_scales_from_one_gpu(cluster: dict[str, Any]) -> None:
    assert cluster["enableInTreeAutoscaling"] is True
    (workers,) = cluster["workerGroupSpecs"]
    # With no GPU at first a run would settle for processors.
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the head takes no work"


def test_parameters_of_ray_start_are_its_flags(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        check_command(["ray", "start", *(f"--{name}={value}" for name, value in group["rayStartParams"].items())])


def test_ray_is_the_one_of_the_image(cluster: dict[str, Any]) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert cluster["rayVersion"] == pins["ray"]
    assert len({container["image"] for container in containers(cluster)}) == 1


def test_everybody_has_the_token(cluster: dict[str, Any]) -> None:
    """KubeRay makes one and sets RAY_AUTH_MODE and RAY_AUTH_TOKEN in every pod, if it is told and nobody else does."""
    assert cluster["authOptions"] == {"mode": "token"}
    for container in containers(cluster):
        assert not [one for one in container["env"] if one["name"].startswith("RAY_AUTH")]


def test_pods_may_write_to_the_bucket_and_nothing_more(cluster: dict[str, Any]) -> None:
    account = read("serviceaccount")["metadata"]
    assert account["annotations"]["eks.amazonaws.com/role-arn"].endswith(":role/cliffstore-writer")
    for group in groups(cluster):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == account["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000, "the user of the image"
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})


def test_environment_is_read_by_somebody_and_has_no_secrets(cluster: dict[str, Any]) -> None:
    for container in containers(cluster):
        names = [one["name"] for one in container["env"]]
        assert set(names) <= known_variables()
        # Of the two that AWS's tools know, botocore reads this one alone.
        assert "AWS_DEFAULT_REGION" in names
        for one in container["env"]:
            assert "TOKEN" not in one["name"] or "secretKeyRef" in one["valueFrom"]


def test_mounts_have_volumes_and_requests_are_limits(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            # Kubernetes insists on it for GPUs; Ray takes the limits for what there is.
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_metrics_have_a_port_that_the_monitor_knows(cluster: dict[str, Any]) -> None:
    (endpoint,) = read("podmonitor")["spec"]["podMetricsEndpoints"]
    for container in containers(cluster):
        assert endpoint["port"] in [port["name"] for port in container["ports"]]


def test_kustomization_names_files_that_are_there() -> None:
    kustomization = read("kustomization")
    assert set(kustomization) == {"apiVersion", "kind", "resources"}
    assert all((FOLDER / name).is_file() for name in kustomization["resources"])
    assert "rayjob.yaml" in kustomization["resources"]
    assert "raycluster.yaml" not in kustomization["resources"], "a job has a cluster of its own"


def test_kustomization_builds() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kinds = [one["kind"] for one in yaml.safe_load_all(done.stdout)]
    assert kinds == ["ServiceAccount", "ConfigMap", "RayJob"]
