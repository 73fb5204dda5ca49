"""Killed workers and drivers, nodes that come and go, units that kill: the store ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
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
UNITS_A_WORKER, UNITS_A_DRIVER = 2, 6
"""How many units a process commits before it waits at the gate, where there is one."""

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
    case = prepare(tmp_path_factory.mktemp("workers"), slow_model, n_prompts=400)
    assert case.units >= 35
    return case


@pytest.fixture(scope="module")
def long_case(slow_model: str, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Units for every process that is killed, and more."""
    case = prepare(tmp_path_factory.mktemp("long"), slow_model, n_prompts=1_000)
    assert case.units > (UNITS_A_WORKER + 1) * (WORKER_KILLS + 2)
    return case


def gated(environment: dict[str, str], gate: Path, units: int) -> dict[str, str]:
    """Make each process wait at a gate after so many units; see `disturbance`."""
    return disturbing(environment) | {"GATE": str(gate), "GATE_UNITS": str(units)}


def disturbing(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"PYTHONPATH": f"{HERE / 'disturbance'}{os.pathsep}{ROOT}"}


def wait_for(condition: Callable[[], object], processes: Iterable[subprocess.Popen[str]]) -> None:
    """Look again and again until the condition holds. Fails if a process ends before."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        for process in processes:
            assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def actors_in(folder: str) -> list[psutil.Process]:
    """Return the processes of unit actors of a private Ray."""
    found = []
    for process in family(None, folder):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "UnitActor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_one(folder: str, driver: subprocess.Popen[str], numbers: random.Random, killed: set[int]) -> None:
    """Kill one of the actors, as soon as there is one that was not killed before."""

    def done() -> bool:
        victims = [process for process in actors_in(folder) if process.pid not in killed]
        if victims:
            victim = numbers.choice(victims)
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.add(victim.pid)
                return True
        return False

    wait_for(done, [driver])


def test_25_workers_are_killed(long_case: Disturbed, tmp_path: Path) -> None:
    """Each at a random moment of its work. At the gate they wait for the 25th kill, so the run cannot end before."""
    store, gate, seed = tmp_path / "store", tmp_path / "gate", 11
    numbers, killed, done = random.Random(seed), set[int](), 0
    with private_folder() as folder:
        process = subprocess.Popen(
            long_case.command(store, "--executor", "ray", "--actors", "2"), cwd=ROOT, text=True,
            env=gated(one_thread(environment(folder)), gate, UNITS_A_WORKER),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            for _ in range(WORKER_KILLS):
                # Those that only ever start would show nothing.
                wait_for(lambda done=done: len(receipts(store)) > done, [process])
                time.sleep(numbers.uniform(0.0, 0.6))
                done = len(receipts(store))
                kill_one(folder, process, numbers, killed)
            gate.touch()
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            end(family(process.pid, folder))
    assert process.returncode == 0, f"seed {seed}: {err}"
    assert len(killed) == WORKER_KILLS
    assert done < long_case.units, f"seed {seed}: the run was at its end before the last kill"
    report = next((line for line in out.splitlines() if line.startswith('{"store"')), None)
    assert report is not None, out + err  # Ray may have said something too
    assert json.loads(report)["units_done_now"] == long_case.units
    assert len(workers_of(store)) >= 3
    assert "was lost" in err
    assert_equal_stores(str(store), long_case.reference)


def test_driver_is_killed_at_10_random_moments(long_case: Disturbed, tmp_path: Path) -> None:
    """After a random number of units of its own, or while it starts or plans; the gate keeps it from its end."""
    store, gate, seed = tmp_path / "store", tmp_path / "gate", 12
    numbers = random.Random(seed)
    env = gated(plain_environment(), gate, UNITS_A_DRIVER)
    kept, expected = [0], 0
    for _ in range(DRIVER_KILLS):
        process = subprocess.Popen(
            long_case.command(store), env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            new, before = numbers.randrange(UNITS_A_DRIVER), kept[-1]
            expected += new
            wait_for(lambda new=new, before=before: len(receipts(store)) >= before + new, [process])
            time.sleep(numbers.uniform(0.0, 0.3 if new else 5.0))
        finally:
            stop([process])
        assert process.returncode == -signal.SIGKILL, f"seed {seed}: it ended before it was killed"
        kept.append(len(receipts(store)))
    assert kept == sorted(kept), f"seed {seed}: a receipt was lost: {kept}"
    assert expected <= kept[-1] < long_case.units, f"seed {seed}: {kept}"
    long_case.finish(store)
    assert_equal_stores(str(store), long_case.reference)


def test_two_drivers_at_once(case: Disturbed, tmp_path: Path) -> None:
    """Both write before either can end."""
    store, gate = tmp_path / "store", tmp_path / "gate"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            case.command(store), env=gated(plain_environment(), gate, UNITS_A_DRIVER), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    drivers = [start(), start()]
    try:
        wait_for(lambda: any(driver.poll() is not None for driver in drivers) or len(workers_of(store)) == 2, [])
        for late in [driver for driver in drivers if driver.poll() is not None]:
            # Both found no store; who was second is told, and its same command goes on.
            _, err = late.communicate()
            assert late.returncode == 2, err
            assert "another process began a store here just now" in err
            drivers[drivers.index(late)] = start()
        wait_for(lambda: len(workers_of(store)) == 2, drivers)
        gate.touch()
        said = [driver.communicate(timeout=TIMEOUT) for driver in drivers]
    finally:
        stop(drivers)
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert_equal_stores(str(store), case.reference)


def test_poisoned_units_are_given_up_and_the_others_go_on(case: Disturbed, tmp_path: Path) -> None:
    """One unit raises on every worker, another kills every worker that takes it."""
    store, raises, kills = tmp_path / "store", 5, 9
    with private_folder() as folder:
        env = disturbing(one_thread(environment(folder)))
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
        env = gated(one_thread(environment(folder)), tmp_path / "gate", UNITS_A_WORKER)
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
