"""Ray: the same store from actors as from one process, and as a job on a cluster that runs already.

Every Ray here is private: its own ports on 127.0.0.1, its own folder under a short path (socket paths are limited),
and its processes are ended one by one, so another Ray on the machine is left alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import Built
from ray_processes import START_SECONDS, end, environment, family, free_port, private_folder, run_bounded

ROOT = Path(__file__).parents[2]
SITES = ("--sites", "resid_post,final_norm")

IGNORED = (".venv", "cliffstore-demo")
"""Folders that `.gitignore` names, made in the checkout to see that they stay there."""

pytestmark = pytest.mark.slow


def assert_same_store(built: Built, store: Path) -> None:
    """Tables are equal byte by byte, vectors as exactly as float32 sums over other thread counts are."""
    tables = sorted(path.relative_to(built.store) for path in built.store.glob("plans/**/*.parquet"))
    assert tables
    assert tables == sorted(path.relative_to(store) for path in store.glob("plans/**/*.parquet"))
    for table in tables:
        assert (store / table).read_bytes() == (built.store / table).read_bytes(), table
    arrays = sorted(path.parent.relative_to(built.store) for path in built.store.glob("activations/*/*/*/zarr.json"))
    assert len(arrays) == 5
    for array in arrays:
        mine, theirs = (zarr.open_array(root / array, mode="r")[:] for root in (store, built.store))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    units = [json.loads(path.read_text())["unit"] for path in sorted(store.glob("receipts/*/unit-*.json"))]
    assert units == list(range(int(str(built.report["units"]))))


def figures(report: dict[str, object]) -> dict[str, object]:
    kept = ("plan", "capture", "examples", "tokens", "rows", "units", "units_done_now", "units_failed", "bytes")
    return {name: report[name] for name in kept}


def test_local_ray_equals_one_process(built: Built, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with private_folder() as folder:
        try:
            done = run_bounded(
                [
                    sys.executable, "-m", "cliffstore.cli.main", "extract", str(built.corpus), "--model", built.model,
                    "--store", str(store), *SITES, "--executor", "ray", "--actors", "2", "--json",
                ],
                folder, environment(folder), ROOT,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        finally:
            end(family(None, folder))
    report = json.loads(done.stdout)
    assert "2 Ray actor" in report["executor"]
    assert figures(report) == figures(built.report)
    assert_same_store(built, store)


@dataclass(frozen=True)
class Cluster:
    address: str
    folder: str
    submit: Callable[..., subprocess.CompletedProcess[str]]


def wait_for_dashboard(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node with two CPUs, and the project as a fresh checkout with an environment inside."""
    ray = Path(sys.executable).with_name("ray")
    if not ray.exists():
        pytest.skip(f"no ray command beside {sys.executable}")
    base = tmp_path_factory.mktemp("cluster")
    checkout, log = base / "checkout", base / "ray.log"
    for part in ("cliffstore", "jobs"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / part, checkout / part)
    for ignored in IGNORED:
        (checkout / ignored).mkdir()
        (checkout / ignored / "huge.bin").write_bytes(b"0")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with private_folder() as folder, log.open("wb") as output:
        env = environment(folder)
        head = subprocess.Popen(
            [
                str(ray), "start", "--head", "--block", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=2",
                "--num-gpus=0", "--object-store-memory=100000000", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}",
                f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}", "--disable-usage-stats",
            ],
            env=env, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

        def submit(*entrypoint: str | Path) -> subprocess.CompletedProcess[str]:
            command = [
                str(ray), "job", "submit", "--address", address, "--working-dir", str(checkout), "--",
                *(str(part) for part in entrypoint),
            ]  # fmt: skip
            return run_bounded(command, folder, env, base)

        try:
            wait_for_dashboard(address, head, log)
            yield Cluster(address, folder, submit)
        finally:
            end(family(head.pid, folder))
            head.wait(timeout=10)


def test_job_equals_one_process(built: Built, cluster: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = cluster.submit(
        sys.executable, "-m", "jobs.extract", built.corpus, "--model", built.model, "--store", store, *SITES,
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"store"')))
    assert "Ray actor" in report["executor"]
    assert "started for this run" not in report["executor"], "the job must use the cluster that it runs on"
    assert figures(report) == figures(built.report)
    assert_same_store(built, store)


def test_failing_job_fails(built: Built, cluster: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = cluster.submit(
        sys.executable, "-m", "jobs.extract", tmp_path / "nowhere.jsonl", "--model", built.model, "--store", store
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "error: no such file" in said
    assert "nowhere.jsonl" in said
    assert not store.exists()


def test_job_does_not_upload_the_environment(cluster: Cluster) -> None:
    """The job sees the project alone: `.gitignore` keeps the rest out of the upload."""
    done = cluster.submit(sys.executable, "-c", "import os;print('uploaded',*sorted(os.listdir()))")
    assert done.returncode == 0, done.stdout + done.stderr
    uploaded = next(line for line in done.stdout.splitlines() if line.startswith("uploaded")).split()
    assert {"cliffstore", "jobs", "pyproject.toml"} <= set(uploaded)
    assert not set(IGNORED) & set(uploaded)
