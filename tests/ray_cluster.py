"""A private Ray head node that jobs are submitted to, and the project as a fresh checkout beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_processes import START_SECONDS, end, environment, family, free_port, private_folder, run_bounded

ROOT = Path(__file__).parents[1]
IGNORED = (".venv", "cliffstore-demo")
"""Folders that `.gitignore` names, made in the checkout to see that they stay there."""
_STOP_SECONDS = "30"
"""How long a job that is stopped has for going by itself: Ray's three seconds are short on a machine at work."""


@dataclass(frozen=True)
class Cluster:
    """A head node with two CPUs.

    Attributes
    ----------
    address : of its dashboard, where jobs are submitted
    metrics : URL that metrics are read from
    checkout : working directory of jobs
    """

    ray: Path
    address: str
    metrics: str
    folder: str
    checkout: Path
    env: Mapping[str, str]

    def submit(
        self, *entrypoint: str | Path, options: tuple[str, ...] = (), env_vars: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `ray job submit`; its exit code is the job's unless it is told not to wait."""
        runtime = ("--runtime-env-json", json.dumps({"env_vars": dict(env_vars)})) if env_vars else ()
        command = [
            str(self.ray), "job", "submit", "--address", self.address, "--working-dir", str(self.checkout), *runtime,
            *options, "--", *(str(part) for part in entrypoint),
        ]  # fmt: skip
        return run_bounded(command, self.folder, dict(self.env), self.checkout.parent)

    def job(self, submission: str) -> dict[str, object]:
        """Return what Ray knows of a job: `status`, `driver_info` ..."""
        return self._ask(f"/api/jobs/{submission}")

    def logs(self, submission: str) -> str:
        return str(self._ask(f"/api/jobs/{submission}/logs")["logs"])

    def stop(self, submission: str) -> None:
        """Do what `ray job stop` does."""
        self._ask(f"/api/jobs/{submission}/stop", method="POST")

    def _ask(self, path: str, method: str = "GET") -> dict[str, object]:
        request = urllib.request.Request(f"{self.address}{path}", method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


@contextmanager
def head_node(base: Path) -> Iterator[Cluster]:
    ray = Path(sys.executable).with_name("ray")
    if not ray.exists():
        pytest.skip(f"no ray command beside {sys.executable}")
    checkout, log = base / "checkout", base / "ray.log"
    for part in ("cliffstore", "jobs"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / part, checkout / part)
    for ignored in IGNORED:
        (checkout / ignored).mkdir()
        (checkout / ignored / "huge.bin").write_bytes(b"0")
    port, metrics_port = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    with private_folder() as folder, log.open("wb") as output:
        env = environment(folder, RAY_JOB_STOP_WAIT_TIME_S=_STOP_SECONDS)
        head = subprocess.Popen(
            [
                str(ray), "start", "--head", "--block", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=2",
                "--num-gpus=0", "--object-store-memory=100000000", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}",
                f"--ray-client-server-port={free_port()}", f"--metrics-export-port={metrics_port}",
                f"--temp-dir={folder}", "--disable-usage-stats",
            ],
            env=env, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for_dashboard(address, head, log)
            yield Cluster(ray, address, f"http://127.0.0.1:{metrics_port}/metrics", folder, checkout, env)
        finally:
            end(family(head.pid, folder))
            head.wait(timeout=10)


def _wait_for_dashboard(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
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
