"""Functions mapped over payloads by Ray tasks: the same order and errors; a worker that dies is replaced."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ray_processes import end, environment, family, private_folder, run_bounded
from vector_store import VectorStore

from cliffstore.store.objects import ObjectStore

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from cliffstore.analyze.mapping import InTurn
from cliffstore.analyze.second_order import fit_logistic
from cliffstore.analyze.streams import stored_array
from cliffstore.errors import CliffstoreError, InterruptedRunError, ProbeError
from cliffstore.run.tasks import open_tasks
from cliffstore.store.reader import StoreReader

mark = Path(sys.argv[1])

def square(number):
    if number == 3 and not mark.exists():
        mark.write_text("died once")
        os._exit(9)
    if number == 13:
        raise ProbeError("probe thirteen")
    if number == 14:
        return 1 / 0
    return number * number

found = {}
taken = []
with open_tasks("ray", 2) as tasks:
    found["workers"] = tasks.n_workers
    payloads = (taken.append(number) or number for number in range(12))
    results = tasks.map(square, payloads)
    found["squares"] = [next(results)]
    found["ahead"] = len(taken)
    found["squares"] += results
    for number in (13, 14):
        try:
            list(tasks.map(square, [1, number, 2]))
        except CliffstoreError as error:
            found[str(number)] = [type(error).__name__, str(error)]
    mark.unlink()
    mark.mkdir()
    try:
        with open_tasks("ray", 2) as again:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            list(again.map(time.sleep, [60.0] * 4))
    except InterruptedRunError as error:
        found["stopped"] = str(error)
    found["after"] = list(tasks.map(square, [1, 2]))
    rows_N, y_N = np.arange(4_096), np.arange(4_096) % 3 // 2
    array = stored_array(StoreReader(sys.argv[2]), "resid_post", 1, None, rows_N)
    fits = [fit_logistic(array, rows_N, y_N, 1.0, "balanced", mapper)[0] for mapper in (tasks, InTurn())]
    found["apart"] = float(np.abs(fits[0].w_D - fits[1].w_D).max() / np.abs(fits[1].w_D).max())
print(json.dumps(found))
"""

pytestmark = pytest.mark.slow


def test_ray_tasks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    store = tmp_path / "store"
    VectorStore(n_units=4, unit_rows=1_024, width=16, tokens=1).make(ObjectStore(str(store)))
    with private_folder() as folder:
        try:
            env = environment(folder, PYTHONPATH=str(ROOT))
            done = run_bounded([sys.executable, str(script), str(tmp_path / "mark"), str(store)], folder, env, tmp_path)
        finally:
            end(family(None, folder))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["workers"] == 2
    assert found["squares"] == [number * number for number in range(12)]
    assert found["ahead"] <= 4
    assert found["13"] == ["ProbeError", "probe thirteen"]
    assert found["14"][0] == "CliffstoreError"
    assert "division by zero" in found["14"][1]
    assert found["stopped"] == "interrupted"
    assert found["after"] == [1, 4]
    assert found["apart"] < 1e-5
