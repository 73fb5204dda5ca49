"""The Slurm script, run for real: Slurm's commands are stand-ins, Ray and the pipeline are not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from commands import write_jsonl
from manifests import INFRA, ROOT, check_command, simple_commands
from ray_processes import end, environment, family, free_port, private_folder

SCRIPT = INFRA / "slurm" / "pipeline.sbatch"
DIRECTIVES = {
    # https://slurm.schedmd.com/sbatch.html
    "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "exclusive", "time", "requeue", "signal",
    "output", "open-mode",
}  # fmt: skip
SRUN_OPTIONS = {"--nodes", "--ntasks", "--cpus-per-task", "--exclude"}  # https://slurm.schedmd.com/srun.html
SRUN = """#!/bin/sh
# Starts a command as Slurm would on another node: here.
while [ "${1#--}" != "$1" ]; do echo "$1" >> "$STATE/srun-options"; shift; done
echo "$*" >> "$STATE/srun"
exec "$@"
"""
HOSTNAME = """#!/bin/sh
if [ "${1:-}" = --ip-address ]; then echo "127.0.0.1 ::1"; else echo node-1.example.org; fi
"""
RAY = """#!/bin/sh
# Ray, with little memory and without what it would find on this machine.
if [ "$1" = start ]; then
    set -- "$@" --num-cpus=1 --num-gpus=0 --object-store-memory=100000000 --node-ip-address=127.0.0.1
fi
exec "$REAL_RAY" "$@"
"""


def script() -> str:
    return SCRIPT.read_text()


def test_directives_are_slurms_and_stand_before_commands() -> None:
    lines = script().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    names = [re.match(r"#SBATCH --([a-z-]+)(=\S+)?$", lines[number]) for number in directives]
    assert {found.group(1) for found in names if found} == DIRECTIVES
    assert all(names)
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command, "Slurm reads them up to the first command"


def test_commands_exist_with_all_their_flags() -> None:
    commands = list(simple_commands(script(), ("ray", "python")))
    assert [command[:2] for command in commands] == [
        ["ray", "get-auth-token"], ["ray", "start"], ["ray", "health-check"], ["ray", "start"], ["python", "-m"],
    ]  # fmt: skip
    for command in commands:
        check_command([word for word in command if word != "$@"])
    (srun,) = simple_commands(script(), ("srun",))
    assert {word.partition("=")[0] for word in srun if word.startswith("--")} - {"--address", "--block"} == SRUN_OPTIONS


@contextmanager
def slurm(base: Path, nodes: int) -> Iterator[dict[str, str]]:
    """Yield the environment of a batch script; its Ray is a private one."""
    programs, home = base / "bin", base / "home"
    for folder in (programs, home):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("srun", SRUN), ("hostname", HOSTNAME), ("ray", RAY)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    real = Path(sys.executable).with_name("ray")
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    with private_folder() as folder:
        env = environment(folder)
        del env["RAY_AUTH_MODE"]
        env |= {
            "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), "STATE": str(base), "REAL_RAY": str(real),
            "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node-1", "SLURM_CPUS_PER_TASK": "3",
            "SLURM_JOB_NUM_NODES": str(nodes), "TMPDIR": folder, "CLUSTER_PORT": free_port(),
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        }  # fmt: skip
        try:
            yield env
        finally:
            end(family(None, folder))


def pipeline(base: Path, model: str) -> Path:
    rows = [
        {"id": f"{label}-{number}", "prompt": f"{wish} number {number}.", "label": label}
        for number in range(12)
        for label, wish in ((0, "Please praise"), (1, "Please insult"))
    ]
    settings = {
        "store": str(base / "store"),
        "extract": {"corpus": str(write_jsonl(base / "corpus.jsonl", rows)), "model": model, "layers": "1",
                    "unit-rows": 256, "passes": "padded", "pass-tokens": 64},
        "probe": {"name": "refusal", "c": 1, "executor": "local", "workers": 1},
        "score": {"executor": "local"},
        "select": {"name": "worst", "strategy": "final", "top": 2},
        "export": {"output": str(base / "train"), "target-text": "No."},
    }  # fmt: skip
    path = base / "pipeline.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def batch(env: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *(str(argument) for argument in arguments)],
        env=env, cwd=env["STATE"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_pipeline_runs_on_two_nodes_and_leaves_nothing_behind(tiny_model: str, tmp_path: Path) -> None:
    with slurm(tmp_path, nodes=2) as env:
        job = batch(env, pipeline(tmp_path, tiny_model), "--set", "select.top=3")
        out, err = job.communicate(timeout=240)
        assert job.returncode == 0, err
        left = [process.cmdline() for process in family(None, env["TMPDIR"])]
    report = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert "Ray actor" in report["extract"]["executor"]
    assert report["export"]["rows"] == 3, "what is behind the file reaches the job"
    assert (tmp_path / "train" / "train.parquet").exists()
    assert (tmp_path / "srun").read_text().startswith("ray start --address=127.0.0.1:")
    assert {"--cpus-per-task=3", "--exclude=node-1"} <= set((tmp_path / "srun-options").read_text().split())
    token = tmp_path / "home" / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    assert token.read_text().strip() not in out + err
    assert left == [], "Ray ends with its job"


JOB = """#!/bin/sh
# In the place of the pipeline: says what it was given, then waits for the signal.
echo "$RAY_ADDRESS $*" > "$STATE/job"
trap 'exit 130' TERM
i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i + 1)); done
"""
QUIET_RAY = """#!/bin/sh
echo "$*" >> "$STATE/ray"
case "$1" in
health-check) [ "$(grep -c health "$STATE/ray")" -ge 2 ] ;;
start) exec sleep "${RAY_SECONDS:-600}" ;;
esac
"""


def stand_ins(env: dict[str, str]) -> None:
    programs = Path(env["PATH"].partition(":")[0])
    (programs / "python").write_text(JOB)
    (programs / "ray").write_text(QUIET_RAY)


def test_end_of_time_reaches_the_job_whose_code_is_the_scripts(tmp_path: Path) -> None:
    with slurm(tmp_path, nodes=1) as env:
        stand_ins(env)
        job = batch(env, "pipeline.yaml", "--set", "a.b=c d")
        deadline = time.monotonic() + 60
        while not (tmp_path / "job").exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "job").read_text().split(" ", 1)[1] == "-m jobs.pipeline pipeline.yaml --set a.b=c d\n"
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=60)
        assert job.returncode == 130, err
    assert not (tmp_path / "srun").exists(), "one node has no others"


@pytest.mark.parametrize("seconds", ["0", "0.5"])
def test_a_ray_that_does_not_start_is_said(seconds: str, tmp_path: Path) -> None:
    """Even where another one answers at its address from the second time on, as the stand-in does."""
    with slurm(tmp_path, nodes=1) as env:
        stand_ins(env)
        job = batch(env | {"RAY_SECONDS": seconds}, "pipeline.yaml")
        _, err = job.communicate(timeout=60)
    assert (job.returncode, "Ray has not started on node-1" in err) == (1, True), err
    assert not (tmp_path / "job").exists()


def test_without_a_configuration_it_says_how(tmp_path: Path) -> None:
    with slurm(tmp_path, nodes=1) as env:
        job = batch(env)
        _, err = job.communicate(timeout=60)
    assert (job.returncode, "usage: sbatch" in err) == (2, True)
