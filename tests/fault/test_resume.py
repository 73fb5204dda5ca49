"""An extraction that is stopped, politely or not, goes on where it was and ends equal to one that never was."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import pytest
import zarr
from quick import quick_runs

from cliffstore.cli.main import main

ROOT = Path(__file__).parents[2]
N_PROMPTS, N_WORDS = 150, 40
TIMEOUT = 120.0
_WORDS = (
    "anchor", "apple", "basket", "blanket", "bridge", "button", "candle", "castle", "cloud", "copper", "desert",
    "engine", "feather", "forest", "garden", "glacier", "hammer", "harbour", "island", "ladder", "lantern", "letter",
    "marble", "meadow", "mirror", "music", "needle", "orange", "paper", "pocket", "ribbon", "river", "saddle",
    "silver", "stone", "summer", "thunder", "tunnel", "velvet", "whistle", "window", "winter",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is extracted, and the store of a run that nobody disturbed."""

    corpus: Path
    model: str
    reference: Path
    report: dict[str, object]

    def command(self, store: Path) -> list[str]:
        return [
            sys.executable, "-m", "cliffstore.cli.main", "extract", str(self.corpus), "--model", self.model,
            "--store", str(store), "--unit-rows", "512", "--pass-tokens", "64", "--json",
        ]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def case(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("resume")
    corpus = folder / "words.jsonl"
    numbers = random.Random(0)
    rows = [{"id": f"w{i:03d}", "prompt": " ".join(numbers.choices(_WORDS, k=N_WORDS))} for i in range(N_PROMPTS)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    case = Case(corpus, tiny_model, folder / "reference", {})
    report = resume(case, case.reference)
    assert int(str(report["units"])) >= 6
    return Case(corpus, tiny_model, case.reference, report)


def _heed_interrupts() -> None:
    """A shell starts its background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def process(case: Case, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that waits at the gate after two units, and does not outlive the test."""
    env = os.environ | gate(tmp_path, 2) | {"PYTHONPATH": os.pathsep.join((forked.DISTURBANCE, str(ROOT)))}
    process = subprocess.Popen(
        case.command(tmp_path / "store"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_heed_interrupts,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=30)


def gate(folder: Path, units: int) -> dict[str, str]:
    """Make a process wait after so many units, for ever: it must not end before it is stopped; see `disturbances`."""
    return {"GATE": str(folder / "gate"), "GATE_UNITS": str(units)}


def receipts(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("receipts/*/unit-*[0-9].json"))}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | forked.Command) -> None:
    """Look again and again until the condition holds. Fails if the process ends before."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.001)


def resume(case: Case, store: Path) -> dict[str, object]:
    """Run the same command again, to its end, in this process: it has torch loaded already."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(case.command(store)[3:])
    assert code == 0
    return json.loads(out.getvalue())


def assert_equals_reference(case: Case, store: Path) -> None:
    """Tables are equal byte by byte, arrays value by value, receipts in all but time and worker."""
    tables = sorted(path.relative_to(case.reference) for path in case.reference.rglob("*.parquet"))
    assert tables == sorted(path.relative_to(store) for path in store.rglob("*.parquet"))
    for table in tables:
        assert (store / table).read_bytes() == (case.reference / table).read_bytes(), table
    arrays = sorted(
        path.parent.relative_to(case.reference) for path in case.reference.glob("activations/*/*/*/zarr.json")
    )
    assert len(arrays) == 4
    for array in arrays:
        mine, theirs = (zarr.open_array(root / array, mode="r") for root in (store, case.reference))
        assert mine.attrs.asdict() == theirs.attrs.asdict()
        np.testing.assert_array_equal(mine[:], theirs[:])
    mine, theirs = ([json.loads(one) for one in receipts(root).values()] for root in (store, case.reference))
    assert [one["unit"] for one in mine] == list(range(int(str(case.report["units"]))))
    for one, other in zip(mine, theirs, strict=True):
        for volatile in ("worker", "seconds", "seal"):
            one.pop(volatile), other.pop(volatile)
        assert one == other
    assert not list(store.glob("receipts/*/*.error.json"))


def test_interrupted_while_extracting(case: Case, process: subprocess.Popen[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    wait_for(lambda: len(receipts(store)) >= 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert_stopped(case, store, process.returncode, out, err)


def test_terminated_while_extracting(case: Case, fork: forked.Start, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = fork(case.command(store)[3:], tmp_path / "log", gate(tmp_path, 2))
    wait_for(lambda: len(receipts(store)) >= 2, process)
    for _ in range(2):  # as `timeout` does
        process.send_signal(signal.SIGTERM)
    err = process.wait(TIMEOUT)
    assert_stopped(case, store, process.returncode, process.printed, err)


def assert_stopped(case: Case, store: Path, code: int | None, out: str, err: str) -> None:
    """It says how far it came; and it goes on."""
    assert code == 130, err
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in err
    assert f" of {case.report['units']} units are stored" in errors[0]
    said = int(errors[0].split(" of ")[0].rsplit(" ", 1)[1])
    assert said == len(receipts(store)), "the message must count what is on disk"
    assert not list(store.rglob(".tmp-*"))
    assert_goes_on(case, store)


def test_killed_while_extracting(case: Case, fork: forked.Start, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = fork(case.command(store)[3:], tmp_path / "log", gate(tmp_path, 2))
    wait_for(lambda: len(receipts(store)) >= 2, process)
    process.kill()
    assert process.returncode == -signal.SIGKILL
    assert_goes_on(case, store)


def assert_goes_on(case: Case, store: Path) -> None:
    """The same command keeps what is there, computes the rest, and ends equal to a run that nobody disturbed."""
    total = int(str(case.report["units"]))
    kept = receipts(store)
    assert 2 <= len(kept) < total
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.glob("receipts/*/*.json")}

    report = resume(case, store)

    assert report["units_done_before"] == len(kept)
    assert int(str(report["units_done_before"])) + int(str(report["units_done_now"])) == report["units"] == total
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert_equals_reference(case, store)


@pytest.mark.parametrize("sign", ["manifest.json", "plans", "captures"])
def test_killed_while_planning(sign: str, case: Case, fork: forked.Start, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = fork(case.command(store)[3:], tmp_path / "log", gate(tmp_path, 0))
    wait_for((store / sign).exists, process)
    process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not receipts(store)

    report = resume(case, store)

    assert (report["units_done_before"], report["units_done_now"]) == (0, case.report["units"])
    assert_equals_reference(case, store)


def test_nothing_to_do_rewrites_nothing(case: Case) -> None:
    before = {path: path.stat().st_mtime_ns for path in case.reference.rglob("*") if path.is_file()}
    report = resume(case, case.reference)
    assert (report["units_done_before"], report["units_done_now"]) == (case.report["units"], 0)
    assert {path: path.stat().st_mtime_ns for path in case.reference.rglob("*") if path.is_file()} == before
