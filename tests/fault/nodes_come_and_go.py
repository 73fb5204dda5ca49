"""`nodes_come_and_go.py FOLDER STORE extract ...` runs a command on three nodes of a Ray cluster, takes one of those
that work away, and lets another join. Prints how many receipts the workers of each of the two wrote."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from cliffstore.cli.main import main

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


def disturb(cluster: Cluster, nodes: list, store: Path, seen: dict[str, set[int]]) -> None:
    while len(written_by(store)) < 5 or not set(written_by(store)) & workers(nodes[0]):
        time.sleep(0.05)
    seen["lost"] = workers(nodes[0])
    cluster.remove_node(nodes[0], allow_graceful=False)
    time.sleep(1.0)
    joined = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    seen["joined"] = set()
    while True:
        seen["joined"] |= workers(joined)
        time.sleep(0.05)


def run(folder: str, store: Path, arguments: list[str]) -> int:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "temp_dir": folder},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    seen: dict[str, set[int]] = {}
    threading.Thread(target=disturb, args=(cluster, nodes, store, seen), daemon=True).start()
    code = main([*arguments, "--executor", "ray"])
    writers = written_by(store)
    print(json.dumps({name: sum(writer in pids for writer in writers) for name, pids in seen.items()}), flush=True)
    ray.shutdown()
    cluster.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
