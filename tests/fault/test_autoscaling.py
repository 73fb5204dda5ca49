"""Ray's autoscaler starts nodes for workers that are asked for, on the cluster of `infra/aws/cluster.yaml`.

It is the real autoscaler; the machines that it starts are processes on this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from disturbed import ROOT, one_thread, prepare, workers_of
from ray_processes import START_SECONDS, end, environment, family, free_port, private_folder
from stores import assert_equal_stores

MEMORY = 100_000_000
TIMEOUT = 150.0
HEAD = "ray.head.default"
"""What Ray's provider for tests calls a head."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def on_this_machine(config: Path, address: str) -> dict[str, object]:
    """Return a cluster of Ray for AWS, of at most two nodes beside the head, as one whose nodes are processes."""
    from ray.autoscaler._private.util import prepare_config

    cluster = prepare_config(yaml.safe_load(config.read_text()))
    types = cluster["available_node_types"]
    types[HEAD] = types.pop(cluster["head_node_type"])
    types["gpu"] |= {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": MEMORY}, "max_workers": 2}
    for kind in types.values():
        kind["node_config"] = {}
    return cluster | {
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "head_node_type": HEAD,
        "max_workers": 2,
        "docker": {},
        "file_mounts": {},
    }


@contextmanager
def autoscaling_cluster(folder: str, env: dict[str, str]) -> Iterator[str]:
    """Run a head and its autoscaler until they are no longer needed; yield the address."""
    address, config, log = f"127.0.0.1:{free_port()}", Path(folder) / "cluster.json", Path(folder) / "head.log"
    config.write_text(json.dumps(on_this_machine(ROOT / "infra" / "aws" / "cluster.yaml", address)))
    ray = str(Path(sys.executable).with_name("ray"))
    with log.open("wb") as output:
        head = subprocess.Popen(
            [
                ray, "start", "--head", "--block", f"--port={address.rpartition(':')[2]}", "--num-cpus=0",
                "--num-gpus=0", "--node-ip-address=127.0.0.1", f"--object-store-memory={MEMORY}",
                "--include-dashboard=false", f"--temp-dir={folder}", f"--autoscaling-config={config}",
            ],
            env=env | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for_a_gpu(ray, address, head, env, folder)
            yield address
        finally:
            end(family(head.pid, folder))


def _wait_for_a_gpu(ray: str, address: str, head: subprocess.Popen[bytes], env: dict[str, str], folder: str) -> None:
    """Ray is asked, which takes it a second, once there is a node beside the head."""
    deadline, said = time.monotonic() + START_SECONDS, ""
    while "0.0/1.0 GPU" not in said:
        time.sleep(0.5)
        if _n_raylets(head.pid, folder) > 1:
            status = subprocess.run([ray, "status", f"--address={address}"], env=env, capture_output=True, text=True)
            said = status.stdout + status.stderr
        log = (Path(folder) / "head.log").read_text()
        assert head.poll() is None, log
        assert time.monotonic() < deadline, said + log


def _n_raylets(head: int, folder: str) -> int:
    found = 0
    for process in family(head, folder):
        with suppress(psutil.NoSuchProcess):
            found += process.name() == "raylet"
    return found


def test_nodes_are_started_for_the_workers_that_are_asked_for(tiny_model: str, tmp_path: Path) -> None:
    """Two workers on a cluster of one GPU: neither goes on until both have written."""
    case, store, gate = prepare(tmp_path, tiny_model, n_prompts=120), tmp_path / "store", tmp_path / "gate"
    disturbances = str(Path(__file__).parent / "disturbance")
    with private_folder() as folder:
        env = one_thread(environment(folder))
        env |= {"PYTHONPATH": f"{disturbances}:{ROOT}", "GATE": str(gate), "GATE_UNITS": "1"}
        with autoscaling_cluster(folder, env) as address:
            command = case.command(store, "--executor", "ray", "--actors", "2")
            driver = subprocess.Popen(
                command, env=env | {"RAY_ADDRESS": address}, cwd=ROOT, text=True, stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            deadline = time.monotonic() + TIMEOUT
            while driver.poll() is None and len(workers_of(store)) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
            writers = workers_of(store)
            gate.touch()
            out, err = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 0, out + err
    assert len(writers) == 2, f"no node was started for the second worker: {err}"
    assert "1 Ray actor(s) and 1 more as nodes join" in json.loads(out)["executor"]
    assert_equal_stores(str(store), case.reference)
