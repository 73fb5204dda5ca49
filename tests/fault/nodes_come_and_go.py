"""`nodes_come_and_go.py FOLDER STORE extract ...` runs a command on three nodes of a Ray cluster, lets another join and
takes one of those that work away. Prints how many receipts the workers of each of the two wrote.

The workers wait at the gate of `disturbances` until both have happened, so that the run cannot end before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

MEMORY = 100_000_000


def workers(node) -> set[int]:
    """Return the process ids of a node's unit actors."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = set()
    for process in psutil.Process(raylet).children(recursive=True):
        try:
            if "UnitActor" in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def written_by(store: Path) -> list[int]:
    return [
        int(json.loads(path.read_text())["worker"].rpartition(":")[2])
        for path in store.glob("receipts/*/unit-*[0-9].json")
    ]


def run(folder: str, store: Path, arguments: list[str]) -> int:
    (Path(folder) / "ray").mkdir(exist_ok=True)  # where Cluster notes its address
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "temp_dir": folder},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(3)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "cliffstore.cli.main", *arguments, "--executor", "ray"],
        env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def wait_for(condition: Callable[[], object]) -> None:
        while driver.poll() is None and not condition():
            time.sleep(0.05)

    def workers_that_wrote(node) -> set[int]:
        return workers(node) & set(written_by(store))

    wait_for(lambda: workers_that_wrote(nodes[0]))
    joined = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    wait_for(lambda: workers_that_wrote(joined))
    seen = {"lost": workers(nodes[0]), "joined": workers(joined)}
    cluster.remove_node(nodes[0], allow_graceful=False)
    Path(os.environ["GATE"]).touch()
    driver.wait()
    writers = written_by(store)
    print(json.dumps({name: sum(writer in pids for writer in writers) for name, pids in seen.items()}), flush=True)
    cluster.shutdown()
    return driver.returncode


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
