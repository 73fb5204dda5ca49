"""Killed workers and drivers, nodes that come and go, units that kill: the store ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import ok
from disturbed import Disturbed, one_thread, plain_environment, prepare, receipts, stop, workers_of
from ray_processes import end, environment, family, private_folder
from stores import assert_equal_stores

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TIMEOUT = 280.0
WORKER_KILLS, DRIVER_KILLS = 25, 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slow_model(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose units take long enough to be met in the middle of one."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("slow-model")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def case(slow_model: str, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    case = prepare(tmp_path_factory.mktemp("workers"), slow_model, n_prompts=1300)
    assert case.units >= 60
    return case


def actors_in(folder: str) -> list[psutil.Process]:
    """Return the processes of unit actors of a private Ray."""
    found = []
    for process in family(None, folder):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "UnitActor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_25_workers_are_killed(case: Disturbed, tmp_path: Path) -> None:
    store, seed = tmp_path / "store", 11
    numbers, killed = random.Random(seed), 0
    with private_folder() as folder:
        env = one_thread(environment(folder))
        process = subprocess.Popen(
            case.command(store, "--executor", "ray", "--actors", "2"), env=env, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            deadline, done = time.monotonic() + TIMEOUT, 0
            while killed < WORKER_KILLS and process.poll() is None and time.monotonic() < deadline:
                if len(receipts(store)) == done:  # two that only ever start would show nothing
                    time.sleep(0.05)
                    continue
                time.sleep(numbers.uniform(0.0, 0.6))
                done, victims = len(receipts(store)), actors_in(folder)
                if victims:
                    with suppress(psutil.NoSuchProcess):
                        numbers.choice(victims).send_signal(signal.SIGKILL)
                        killed += 1
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            end(family(process.pid, folder))
    assert process.returncode == 0, f"seed {seed}: {err}"
    assert killed == WORKER_KILLS, f"seed {seed}: the run ended after {killed} kills"
    report = next((line for line in out.splitlines() if line.startswith('{"store"')), None)
    assert report is not None, out + err  # Ray may have said something too
    assert json.loads(report)["units_done_now"] == case.units
    assert len(workers_of(store)) >= 3
    assert "was lost" in err
    assert_equal_stores(str(store), case.reference)


def test_driver_is_killed_at_10_random_moments(case: Disturbed, tmp_path: Path) -> None:
    store, seed = tmp_path / "store", 12
    numbers = random.Random(seed)
    kept: list[int] = []
    for _ in range(DRIVER_KILLS):
        process = subprocess.Popen(
            case.command(store), env=plain_environment(), cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            process.wait(numbers.uniform(0.5, 14.0))
        stop([process])
        kept.append(len(receipts(store)))
    assert kept == sorted(kept), f"seed {seed}: a receipt was lost: {kept}"
    case.finish(store)
    assert_equal_stores(str(store), case.reference)


def test_two_drivers_at_once(case: Disturbed, tmp_path: Path) -> None:
    store = tmp_path / "store"
    drivers = [
        subprocess.Popen(
            case.command(store), env=plain_environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        said = [driver.communicate(timeout=TIMEOUT) for driver in drivers]
    finally:
        stop(drivers)
    codes = [driver.returncode for driver in drivers]
    if sorted(codes) == [0, 2]:  # both found no store; who was second is told, and its same command goes on
        (err,) = [err for (_, err), code in zip(said, codes, strict=True) if code == 2]
        assert "another process began a store here just now" in err
    else:
        assert codes == [0, 0], said
    assert_equal_stores(str(store), case.reference)
    assert len(workers_of(store)) == 2 or 2 in codes, "the drivers did not share the work"


def test_poisoned_units_are_given_up_and_the_others_go_on(case: Disturbed, tmp_path: Path) -> None:
    """One unit raises on every worker, another kills every worker that takes it."""
    store, raises, kills = tmp_path / "store", 5, 9
    with private_folder() as folder:
        env = one_thread(environment(folder, PYTHONPATH=f"{HERE / 'poison'}{os.pathsep}{ROOT}"))
        env |= {"POISON_RAISES": str(raises), "POISON_KILLS": str(kills)}
        process = subprocess.Popen(
            case.command(store, "--executor", "ray", "--actors", "2"), env=env, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            _, err = process.communicate(timeout=TIMEOUT)
        finally:
            end(family(process.pid, folder))
    assert process.returncode == 1, err
    last = err.splitlines()[-1]
    assert last.startswith(f"error: 2 of {case.units} units failed")
    assert "Traceback" not in err
    assert len(receipts(store)) == case.units - 2
    rows = ok("sql", store, "SELECT unit, error, attempt FROM units WHERE error IS NOT NULL ORDER BY 1",
              "--format", "json").json  # fmt: skip
    assert [row["unit"] for row in rows] == [raises, kills]
    assert "this unit is poison" in rows[0]["error"]
    assert "worker died" in rows[1]["error"]
    assert [row["attempt"] for row in rows] == [3, 3]
    report = case.finish(store)
    assert report["units_done_now"] == 2
    assert_equal_stores(str(store), case.reference)


def test_node_is_lost_and_another_joins(case: Disturbed, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with private_folder() as folder:
        env = one_thread(environment(folder, PYTHONPATH=str(ROOT)))
        script = [sys.executable, str(HERE / "nodes_come_and_go.py"), folder, str(store), *case.arguments(store)]
        process = subprocess.Popen(script, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            end(family(process.pid, folder))
    assert process.returncode == 0, out + err
    told = json.loads(next(line for line in out.splitlines() if line.startswith('{"lost"')))
    assert told.get("lost", 0) >= 1, f"no worker was on the node that was lost: {told} {err}"
    assert told.get("joined", 0) >= 1, f"the node that joined got no work: {told} {err}"
    assert "the cluster has grown" in err
    assert_equal_stores(str(store), case.reference)
