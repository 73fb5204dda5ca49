"""Killed workers and drivers, nodes that come and go, units that kill: the store ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import forked
import psutil
import pytest
from commands import ok
from disturbed import Disturbed, one_thread, prepare, receipts, workers_of
from ray_processes import end, environment, family, private_folder
from stores import assert_equal_stores

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TIMEOUT = 280.0
WORKER_KILLS, DRIVER_KILLS = 25, 10
TICKETS = 2
"""Units that may be computed between one kill of a worker and the next."""
UNITS_A_WORKER, UNITS_A_DRIVER = 2, 4
"""Units that a process commits before it waits at the gate, where there is one."""

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
    case = prepare(tmp_path_factory.mktemp("workers"), slow_model, n_prompts=240)
    assert case.units >= 24
    return case


@pytest.fixture(scope="module")
def long_case(slow_model: str, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Units for every process that is killed, and more."""
    case = prepare(tmp_path_factory.mktemp("long"), slow_model, n_prompts=560)
    assert case.units > TICKETS * (WORKER_KILLS + 1)
    assert case.units > (UNITS_A_DRIVER + 1) * DRIVER_KILLS
    return case


def gate(path: Path, units: int) -> dict[str, str]:
    """Make each process wait at a gate after so many units; see `disturbances`."""
    return {"GATE": str(path), "GATE_UNITS": str(units)}


def disturbing(environment: dict[str, str]) -> dict[str, str]:
    return one_thread(environment) | {"PYTHONPATH": os.pathsep.join((forked.DISTURBANCE, str(ROOT)))}


class Running(Protocol):
    def poll(self) -> int | None: ...


def wait_for(condition: Callable[[], object], *processes: Running) -> None:
    """Look again and again until the condition holds. Fails if a process ends before."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert all(process.poll() is None for process in processes), "a process ended too early"
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


@dataclass
class Killer:
    """Kills actors of a private Ray at random, one that wrote a receipt after one that did not: those would only ever
    start, and a run whose workers only ever die at their start gives up."""

    folder: str
    store: Path
    numbers: random.Random
    killed: list[int] = field(default_factory=list)

    def kill(self) -> bool:
        """Kill one. Return whether there was one to be killed."""
        wrote = {int(worker.rpartition(":")[2]) for worker in workers_of(self.store)}
        victims = [actor for actor in actors_in(self.folder) if actor.pid not in self.killed]
        if self.killed and self.killed[-1] not in wrote:
            victims = [actor for actor in victims if actor.pid in wrote]
        if not victims:
            return False
        victim = self.numbers.choice(victims)
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            self.killed.append(victim.pid)
            return True
        return False


def offer(tickets: Path) -> None:
    """Let so many units be computed, those included that are allowed already."""
    tickets.mkdir(exist_ok=True)
    for _ in range(TICKETS - len(list(tickets.iterdir()))):
        (tickets / uuid.uuid4().hex).touch()


def test_25_workers_are_killed(long_case: Disturbed, tmp_path: Path) -> None:
    """Each at a random moment of its work. There are not tickets enough for the run to end before the last kill."""
    store, tickets, seed = tmp_path / "store", tmp_path / "tickets", 11
    numbers, done = random.Random(seed), 0
    offer(tickets)
    with private_folder() as folder:
        killer = Killer(folder, store, numbers)
        process = subprocess.Popen(
            long_case.command(store, "--executor", "ray", "--actors", "2"), cwd=ROOT, text=True,
            env=disturbing(environment(folder, TICKETS=str(tickets))), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            for _ in range(WORKER_KILLS):
                wait_for(lambda done=done: len(receipts(store)) > done, process)
                time.sleep(numbers.uniform(0.0, 0.3))
                done = len(receipts(store))
                wait_for(killer.kill, process)
                offer(tickets)
            shutil.rmtree(tickets)
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            end(family(process.pid, folder))
    assert process.returncode == 0, f"seed {seed}: {err}"
    assert len(set(killer.killed)) == WORKER_KILLS
    assert done < long_case.units, f"seed {seed}: the run was at its end before the last kill"
    report = next((line for line in out.splitlines() if line.startswith('{"store"')), None)
    assert report is not None, out + err  # Ray may have said something too
    assert json.loads(report)["units_done_now"] == long_case.units
    assert len(workers_of(store)) >= 3
    assert "was lost" in err
    assert_equal_stores(str(store), long_case.reference)


def test_driver_is_killed_at_10_random_moments(long_case: Disturbed, fork: forked.Start, tmp_path: Path) -> None:
    """After a random number of units of its own, or while it plans; the gate keeps it from its end."""
    store, seed = tmp_path / "store", 12
    numbers = random.Random(seed)
    kept, expected = [0], 0
    for _ in range(DRIVER_KILLS):
        process = fork(long_case.arguments(store), tmp_path / "log", gate(tmp_path / "gate", UNITS_A_DRIVER))
        new = numbers.randrange(UNITS_A_DRIVER)
        wait_for(lambda: len(receipts(store)) >= kept[-1] + new, process)  # noqa: B023  (called at once)
        time.sleep(numbers.uniform(0.0, 0.3 if new else 2.0))
        process.kill()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}: {process.wait(0)}"
        expected += new
        kept.append(len(receipts(store)))
    assert kept == sorted(kept), f"seed {seed}: a receipt was lost: {kept}"
    assert expected <= kept[-1] < long_case.units, f"seed {seed}: {kept}"
    long_case.finish(store)
    assert_equal_stores(str(store), long_case.reference)


def test_two_drivers_at_once(case: Disturbed, fork: forked.Start, tmp_path: Path) -> None:
    """Each has written before any can end."""
    store, opened = tmp_path / "store", tmp_path / "gate"

    def driver(name: str) -> forked.Command:
        return fork(case.arguments(store), tmp_path / name, gate(opened, UNITS_A_DRIVER))

    drivers = [driver("one"), driver("other")]
    wait_for(lambda: any(one.poll() is not None for one in drivers) or len(workers_of(store)) == 2)
    for late in [one for one in drivers if one.poll() is not None]:
        # Both found no store; who was second is told, and its same command goes on.
        assert late.returncode == 2, late.wait(0)
        assert "another process began a store here just now" in late.wait(0)
        drivers[drivers.index(late)] = driver("again")
    wait_for(lambda: len(workers_of(store)) == 2, *drivers)
    opened.touch()
    said = [one.wait(TIMEOUT) for one in drivers]
    assert [one.returncode for one in drivers] == [0, 0], said
    assert_equal_stores(str(store), case.reference)


def test_poisoned_units_are_given_up_and_the_others_go_on(case: Disturbed, tmp_path: Path) -> None:
    """One unit raises on every worker, another kills every worker that takes it."""
    store, raises, kills = tmp_path / "store", 5, 9
    with private_folder() as folder:
        env = disturbing(environment(folder, POISON_RAISES=str(raises), POISON_KILLS=str(kills)))
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
        env = disturbing(environment(folder, **gate(tmp_path / "gate", UNITS_A_WORKER)))
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
