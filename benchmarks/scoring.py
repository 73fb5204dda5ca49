"""Scoring every token of a store from stored vectors, beside a raw scan of the same layer.

usage: python benchmarks/scoring.py [--units 32] [--rows 16384] [--width 576] [--dtype bfloat16] [--rounds 5] [--ray]

The store is synthetic (tests/vector_store.py), on a local disk, its files in the page cache. Each round does each of
these once, in this process, one after the other: a raw scan with tensorstore alone, which reads and decodes the units
of one layer, two ahead, and does nothing with them; `Store.score` with one probe on that layer; with three; and with
three on three layers, which reads three times as much. Scores are removed in between. Seconds are medians; a ratio is
that of tokens a second to the raw scan's of as many layers, of the same round, median over rounds. Scoring includes
reading the plan, writing a table and a receipt for each unit and probe, and syncing them to disk. With `--ray`, one
probe is scored by one actor of a Ray that is started for it; how long the start takes is not in the seconds.

Set PYTHONPATH to the checkout where another one is installed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tensorstore
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from made_up import make_probe  # noqa: E402
from vector_store import VectorStore  # noqa: E402
from whole_store import Silent  # noqa: E402

from cliffstore.run.store import Store  # noqa: E402
from cliffstore.store.objects import ObjectStore  # noqa: E402
from cliffstore.store.probes import write_probe  # noqa: E402
from cliffstore.store.reader import StoreReader  # noqa: E402

AHEAD = 2
RAW = "raw scan"


def raw_scan(store: Path, made: VectorStore) -> float:
    """Read the last layer unit by unit. Return seconds."""
    folder = store / "activations" / "main" / "resid_post" / str(made.n_layers - 1)
    begin = time.perf_counter()
    array = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}).result()
    reads = []
    for unit in range(made.n_units):
        reads.append(array[unit * made.unit_rows : unit * made.unit_rows + made.n_rows].read())
        if len(reads) == AHEAD:
            reads.pop(0).result()
    for read in reads:
        read.result()
    return time.perf_counter() - begin


def score(store: Path, probes: list[str], executor: str = "local") -> float:
    """Score a store that has no scores. Return the seconds that its units took."""
    with Store(str(store), reporter=Silent()) as opened:
        begin = time.perf_counter()
        report = opened.score(probes, executor=executor)
        seconds = time.perf_counter() - begin
    shutil.rmtree(store / "scores")
    return report.seconds if executor == "ray" else seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    made = VectorStore(given.units, given.rows, given.width, n_layers=3, tokens=128, dtype=given.dtype)
    n_tokens = made.n_units * made.n_rows
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        objects = ObjectStore(str(store))
        made.make(objects)
        (capture,) = StoreReader(str(store)).captures()
        for number, (name, layer) in enumerate([("a", 2), ("b", 2), ("c", 2), ("d", 1), ("e", 0)]):
            write_probe(objects, *make_probe(capture, name, layer=layer, seed=number), replace=False)
        what: dict[str, tuple[int, Callable[[], float]]] = {
            RAW: (1, lambda: raw_scan(store, made)),
            "one probe": (1, lambda: score(store, ["a"])),
            "three probes, one layer": (1, lambda: score(store, ["a", "b", "c"])),
            "three probes, three layers": (3, lambda: score(store, ["a", "d", "e"])),
        }
        if given.ray:
            what["one probe, Ray"] = (1, lambda: score(store, ["a"], "ray"))
        for _, act in what.values():
            act()  # files into the page cache, modules into memory
        rounds = [{name: act() for name, (_, act) in what.items()} for _ in range(given.rounds)]
    title = f"{made.n_units} units of {made.n_rows:,} rows x {made.width} {made.dtype}, {given.rounds} rounds"
    table = Table("", "seconds", "tokens/s", "MB/s of vectors", "to the raw scan", title=title)
    bytes_per_layer = n_tokens * made.width * (4 if made.dtype == "float32" else 2)
    for name, (layers, _) in what.items():
        seconds = statistics.median(one[name] for one in rounds)
        ratios = [layers * one[RAW] / one[name] for one in rounds]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rate = f"{layers * bytes_per_layer / seconds / 1e6:,.0f}"
        table.add_row(name, f"{seconds:.2f}", f"{n_tokens / seconds:,.0f}", rate, spread)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
