"""Scoring that is killed, stopped, or meets a damaged shard goes on, and ends with the bytes of a run that did not."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from commands import ok, run_cli
from made_up import make_probe
from ray_processes import end, environment, family, private_folder, run_bounded
from vector_store import VectorStore

from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import write_probe
from cliffstore.store.reader import StoreReader

ROOT = Path(__file__).parents[2]
TIMEOUT = 120.0
MADE = VectorStore(n_units=12, unit_rows=512, width=24, n_layers=3, tokens=8, dtype="bfloat16")
PROBES = {"a": 2, "b": 2, "c": 0}
DAMAGED = 5
ALL = ("--probe", "a", "--probe", "b", "--probe", "c", "--json")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose scores nobody disturbed."""
    store = tmp_path_factory.mktemp("scoring") / "store"
    objects = ObjectStore(str(store))
    MADE.make(objects)
    (capture,) = StoreReader(objects.url).captures()
    for number, (name, layer) in enumerate(PROBES.items()):
        write_probe(objects, *make_probe(capture, name, layer=layer, seed=number), replace=False)
    assert ok("score", store, *ALL).json["units"] == MADE.n_units
    return store


@pytest.fixture
def store(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "store", ignore=shutil.ignore_patterns("scores")))


@pytest.fixture
def start(fork: forked.Start, store: Path, tmp_path: Path) -> Callable[[int], forked.Command]:
    """Start scoring that waits at a gate after so many units."""

    def begin(units: int) -> forked.Command:
        environment = {"SCORING_GATE": str(tmp_path / "gate"), "GATE_UNITS": str(units)}
        return fork(["score", str(store), *ALL], tmp_path / uuid.uuid4().hex, environment)

    return begin


def tables(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.glob("scores/*/*.parquet")}


def receipts(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.glob("scores/*/*.json")}


def lasting(store: Path) -> list[dict[str, object]]:
    """Return what receipts say of scores, not of how they came to be."""
    found = [json.loads(path.read_text()) for path in sorted(store.glob("scores/*/*.json"))]
    return [{key: value for key, value in one.items() if key not in ("worker", "seconds", "seal")} for one in found]


def wait_for(condition: Callable[[], object], process: forked.Command) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.log.read_text()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def scored(store: Path) -> set[int]:
    """Return units that have a receipt of each probe."""
    units = [{layout.unit_of(str(path)) for path in store.glob(f"scores/{name}/*.json")} for name in PROBES]
    return {unit for unit in set.intersection(*units) if unit is not None}


def assert_goes_on(store: Path, reference: Path) -> None:
    before, kept = receipts(store), len(scored(store))
    assert 0 < kept < MADE.n_units
    report = ok("score", store, *ALL).json
    assert (report["units_done_before"], report["units"]) == (kept, MADE.n_units - kept)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was scored must not be scored again"
    assert tables(store) == tables(reference)
    assert lasting(store) == lasting(reference)
    assert not list(store.glob("receipts/scores/**/*.json"))


def test_killed_while_scoring(store: Path, reference: Path, start) -> None:
    process = start(4)
    wait_for(lambda: len(scored(store)) >= 4, process)
    process.kill()
    assert process.returncode == -signal.SIGKILL
    assert_goes_on(store, reference)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_scoring(how: signal.Signals, store: Path, reference: Path, start) -> None:
    process = start(4)
    wait_for(lambda: len(scored(store)) >= 4, process)
    process.send_signal(how)
    err = process.wait(TIMEOUT)
    assert (process.returncode, process.printed) == (130, ""), err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"interrupted: {len(scored(store))} of {MADE.n_units} units have their scores" in error
    assert "Traceback" not in err
    assert not list(store.rglob(".tmp-*"))
    assert_goes_on(store, reference)


def test_two_at_once(store: Path, reference: Path, start, tmp_path: Path) -> None:
    """What one has scored the other leaves alone, or writes with the same bytes."""
    processes = [start(3) for _ in range(2)]
    wait_for(lambda: len(scored(store)) >= 3, processes[0])
    (tmp_path / "gate").touch()
    said = [process.wait(TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert tables(store) == tables(reference)


def damage(store: Path) -> tuple[Path, bytes]:
    """Damage the vectors of one unit that two of the probes read. Return where, and what was there."""
    shard = store / layout.shard(layout.array("main", "resid_post", 2), DAMAGED, 2)
    content = shard.read_bytes()
    middle = len(content) // 3
    shard.write_bytes(
        content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 64]) + content[middle + 64 :]
    )
    return shard, content


def assert_one_unit_failed(store: Path, reference: Path, stderr: str) -> None:
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: 1 of {MADE.n_units} units failed, the others are stored"), stderr
    assert "resid_post/2" in last
    assert "Traceback" not in stderr
    missing = {f"scores/{probe}/unit-{DAMAGED:06d}.parquet" for probe in "ab"}
    expected = {key: content for key, content in tables(reference).items() if key not in missing}
    assert tables(store) == expected
    rows = ok(
        "sql", store, "SELECT unit, attempt, error FROM units WHERE error IS NOT NULL ORDER BY error", "--json"
    ).json
    assert [(row["unit"], row["attempt"], row["error"][:8]) for row in rows] == [
        (DAMAGED, 3, "probe a:"), (DAMAGED, 3, "probe b:"),
    ]  # fmt: skip


def test_a_damaged_shard_costs_its_unit_alone(store: Path, reference: Path) -> None:
    shard, content = damage(store)
    failed = run_cli("score", store, *ALL)
    assert failed.code == 1
    assert failed.stdout == b""
    assert_one_unit_failed(store, reference, failed.stderr)
    again = run_cli("score", store, *ALL)
    assert again.code == 1
    assert_one_unit_failed(store, reference, again.stderr)
    found = run_cli("verify", store, "--json").json["findings"]
    assert not [one for one in found if one["key"].startswith("receipts/scores/")]
    shard.write_bytes(content)
    assert_goes_on(store, reference)


@pytest.mark.slow
def test_on_ray_with_a_damaged_shard(store: Path, reference: Path) -> None:
    """The unit is tried by three workers, then given up; all other scores have the bytes of one process."""
    shard, content = damage(store)
    with private_folder() as folder:
        try:
            done = run_bounded(
                [sys.executable, "-m", "cliffstore.cli.main", "score", str(store), *ALL, "--executor", "ray",
                 "--actors", "2"],
                folder, environment(folder), ROOT,
            )  # fmt: skip
        finally:
            end(family(None, folder))
    assert done.returncode == 1, done.stderr
    assert "(failed on 3 workers)" in done.stderr
    assert "2 Ray actor" in done.stderr
    assert_one_unit_failed(store, reference, done.stderr)
    shard.write_bytes(content)
    assert_goes_on(store, reference)
