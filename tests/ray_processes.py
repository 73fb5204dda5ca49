"""Private Rays: their environment, and ending every process of theirs.

Each has its own ports on 127.0.0.1 and its own folder under a short path (socket paths are limited), and its processes
are ended one by one, so another Ray on the machine is left alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

START_SECONDS, RUN_SECONDS = 90.0, 150.0


def environment(folder: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    private = {
        "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    return kept | private | more


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def family(pid: int | None, folder: str) -> list[psutil.Process]:
    """Return a process, its descendants, and whatever else names our private folder: Ray's daemons change parents."""
    found: dict[int, psutil.Process] = {}
    if pid is not None and psutil.pid_exists(pid):
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            found.update({process.pid: process for process in [top, *top.children(recursive=True)]})
    for process in psutil.process_iter():
        try:
            ours = folder in " ".join(process.cmdline()) or process.environ().get("RAY_TMPDIR") == folder
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if ours and process.pid != os.getpid():
            found[process.pid] = process
    return list(found.values())


def end(processes: list[psutil.Process]) -> None:
    """Kill processes: there is nothing to put away, and Ray takes ten seconds to do so."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@contextmanager
def private_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="cs-ray-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_bounded(command: list[str], folder: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or end it and everything that it started."""
    process = subprocess.Popen(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=RUN_SECONDS)
        return subprocess.CompletedProcess(command, process.returncode, out, err)
    except subprocess.TimeoutExpired:
        end(family(process.pid, folder))
        out, err = process.communicate(timeout=10)
        pytest.fail(f"timed out: {command}\n{out}\n{err}")
