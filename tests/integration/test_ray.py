"""Ray: the same store from actors as from one process. Jobs on a cluster that runs already are in `test_jobs`.

The Ray here is private: its own ports on 127.0.0.1, its own folder under a short path (socket paths are limited),
and its processes are ended one by one, so another Ray on the machine is left alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import ok
from conftest import Built
from ray_processes import end, environment, family, private_folder, run_bounded

ROOT = Path(__file__).parents[2]
SITES = ("--sites", "resid_post,final_norm")

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


def test_heads_are_switched_off_by_actors(built: Built, tmp_path: Path) -> None:
    """Means of z are made by one job, effects by another, of the same actors."""
    store = shutil.copytree(built.store, tmp_path / "store")
    given = ["heads", "ablate", str(store), "--probe", "refusal", "--model", built.model, "--heads", "0:3,0:1",
             "--controls", "1", "--ablation", "mean", "--resamples", "10", "--json"]  # fmt: skip
    here = ok(*given, "--name", "here", "--executor", "local").json
    with private_folder() as folder:
        try:
            command = [sys.executable, "-m", "cliffstore.cli.main", *given, "--name", "there", "--executor", "ray",
                       "--actors", "2"]  # fmt: skip
            done = run_bounded(command, folder, environment(folder), ROOT)
            assert done.returncode == 0, done.stderr
        finally:
            end(family(None, folder))
    there = json.loads(done.stdout)
    assert "2 Ray actor" in there["executor"]
    for one, other in zip(here["figures"], there["figures"], strict=True):
        assert (one["heads"], one["n"]) == (other["heads"], other["n"])
        assert other["mean"] == pytest.approx(one["mean"], abs=1e-4)
    assert not list((store / "heads").rglob("*.piece"))


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
