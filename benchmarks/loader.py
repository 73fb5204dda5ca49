"""How fast an ActivationDataset is beside a bare scan of the same layer: rows and bytes a second.

usage: python benchmarks/loader.py [--units 32] [--unit-rows 16384] [--width 576] [--rounds 5] [--workers 2]

The store is made up (tests/vector_store.py): bfloat16, one layer, on a local disk. `raw` is tensorstore without a
cache, reading contiguous rows as they are stored, a unit at a time and the next one meanwhile. All contestants take
turns; seconds are medians over the rounds, and what of them processors were busy. Workers live on between rounds, as
they do between epochs; the first pass, which starts them, is not counted.

Set PYTHONPATH to the checkout where another one is installed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import tensorstore
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from vector_store import VectorStore

from cliffstore import ActivationDataset, ActivationLoader, Store
from cliffstore.store.objects import ObjectStore


def raw_scan(url: str, unit_rows: int) -> int:
    """Read the whole layer; return rows."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{url}/activations/main/resid_post/0/"}}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    array = tensorstore.open(spec, open=True, context=context).result()
    n_rows, ahead = 0, array[:unit_rows].read()
    for first in range(unit_rows, array.shape[0] + unit_rows, unit_rows):
        block = ahead.result()
        if first < array.shape[0]:
            ahead = array[first : first + unit_rows].read()
        n_rows += len(block)
    return n_rows


def pass_over(batches: Iterable[dict[str, object]]) -> int:
    """Take all batches; return rows."""
    return sum(len(batch["vectors"]) for batch in batches)  # type: ignore[arg-type]


def busy_seconds(workers: Iterable[int]) -> float:
    """Return processor seconds of this process and of some that live."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    fields = [Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split() for worker in workers]
    ticks = sum(int(one[11]) + int(one[12]) for one in fields)
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def pids_of(loader: ActivationLoader) -> list[int]:
    return [worker.pid for worker in loader._batches._iterator._workers]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--unit-rows", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    store = VectorStore(given.units, given.unit_rows, given.width, n_layers=1, tokens=64, dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "store")
        store.make(ObjectStore(url))

        def dataset(**settings: object) -> ActivationDataset:
            return ActivationDataset(url, layer=0, **settings)  # type: ignore[arg-type]

        loaders = {
            "ActivationDataset": dataset().loader(),
            "rows in order": dataset(shuffle=False).loader(),
            "float32": dataset(dtype=torch.float32).loader(),
            "think, with columns": dataset(where="segment = 'think'", columns=("example", "position")).loader(),
            f"{given.workers} workers": dataset().loader(given.workers),
            f"{given.workers} workers, float32": dataset(dtype=torch.float32).loader(given.workers),
        }
        contestants: dict[str, Callable[[], int]] = {"raw": lambda: raw_scan(url, given.unit_rows)}
        for name, loader in loaders.items():
            contestants[name] = lambda loader=loader: pass_over(loader)  # type: ignore[misc]
        with Store(url) as opened:
            activations = opened.activations("resid_post", 0)
            contestants["Activations.batches"] = lambda: sum(len(batch) for batch in activations.batches())
            measure(contestants, loaders, store, given.rounds)
        for loader in loaders.values():
            loader.close()


def measure(
    contestants: dict[str, Callable[[], int]], loaders: dict[str, ActivationLoader], store: VectorStore, rounds: int
) -> None:
    """Let all take turns, and print."""
    for run in contestants.values():
        run()
    pids = {name: pids_of(loader) if "workers" in name else [] for name, loader in loaders.items()}
    taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            begin, busy = time.perf_counter(), busy_seconds(pids.get(name, []))
            n_rows = run()
            seconds = time.perf_counter() - begin
            taken[name].append((seconds, busy_seconds(pids.get(name, [])) - busy, n_rows))
    size = store.n_units * store.n_rows * store.width * 2
    title = f"{store.n_units * store.n_rows:,} x {store.width} bfloat16, {size / 1e6:.0f} MB"
    table = Table("", "seconds", "busy", "rows/s", "MB/s", "x raw", "x raw, busy", title=title)

    def medians(name: str) -> tuple[float, float]:
        seconds, busy, _ = zip(*taken[name], strict=True)
        return statistics.median(seconds), statistics.median(busy)

    bare, bare_busy = medians("raw")
    for name, found in taken.items():
        seconds, busy = medians(name)
        n_rows = found[0][2]
        share = n_rows / (store.n_units * store.n_rows)
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{busy:.2f}",
            f"{n_rows / seconds:,.0f}",
            f"{share * size / seconds / 1e6:,.0f}",
            f"{share * bare / seconds:.2f}",
            f"{share * bare_busy / busy:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
