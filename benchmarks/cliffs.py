"""Ranking the examples of a store by cliff, and curves with bands: seconds and memory, beside cliffs in SQL.

usage: python benchmarks/cliffs.py [--tokens 100000000] [--rounds 3] [--sql] [--folder DIR]

The store is synthetic (tests/score_store.py), on a local disk: scores of one probe, for some 195 tokens an example on
average and of unequal length, one example in twenty without thinking, about 65,536 tokens a unit. 100,000,000 tokens
take 0.6 GB. Each round is a process of its own that opens the store, computes and writes the cliffs, and says how long
`Store.cliff` took and what memory the process had at most (`ru_maxrss`, libraries and all). Files are in the page cache
where the machine has room for them. With `--sql`, the definition in SQL (tests/cliff_sql.py) runs too, with 2 GB of
memory before DuckDB spills, and whether its cliffs are equal is said. Curves are those of two labels, 65 distances with
bands of 1,000 resamples.

With `--folder` the store stays, and is used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from cliff_sql import CLIFF_SQL  # noqa: E402
from score_store import ScoreStore  # noqa: E402
from whole_store import Silent  # noqa: E402

from cliffstore.run.store import Store  # noqa: E402
from cliffstore.store import layout  # noqa: E402
from cliffstore.store.objects import ObjectStore  # noqa: E402
from cliffstore.store.session import QueryLimits  # noqa: E402

PROBE = "planted"
RESAMPLES = 1_000
TOKENS_PER_EXAMPLE, EXAMPLES_PER_UNIT = 194, 328
RULES = {
    "mean": ("mean", "all"), "median": ("median", "all"), "q0.9 of last:32": ("q0.9", "last:32")
}  # fmt: skip
SQL, CURVES = "SQL", "curves by label"


def make(store: Path, tokens: int) -> None:
    """Write the store."""
    n_units = -(-tokens // (TOKENS_PER_EXAMPLE * EXAMPLES_PER_UNIT))
    begin = time.perf_counter()
    ScoreStore(n_units, EXAMPLES_PER_UNIT, mean_think=149, without_thinking=0.05).make(ObjectStore(str(store)), PROBE)
    print(f"made {n_units:,} units in {time.perf_counter() - begin:.0f} s", flush=True)


def rank(store: str, what: str) -> dict[str, object]:
    """Rank once, in this process. Return figures, and a digest of the cliffs."""
    with Store(store, reporter=Silent(), limits=QueryLimits("2GB")) as opened:
        begin = time.perf_counter()
        if what == CURVES:
            table = opened.curves(PROBE, group_by="label", positions="-64..0", resamples=RESAMPLES)
        elif what == SQL:
            table = opened.catalog.arrow(CLIFF_SQL, {"probe": PROBE})
        else:
            plateau, window = RULES[what]
            report = opened.cliff(PROBE, plateau=plateau, window=window)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if what in RULES:
            assert report.examples > report.without_thinking > 0
            table = opened.catalog.arrow("SELECT * EXCLUDE (probe, n_steep) FROM cliffs ORDER BY example")
        n_tokens = opened.catalog.arrow("SELECT sum(n_tokens)::BIGINT AS n FROM units")["n"][0].as_py()
    digest = hashlib.sha256(repr([column.to_pylist() for column in table.columns]).encode()).hexdigest()
    return {"seconds": seconds, "peak": peak, "examples": table.num_rows, "tokens": n_tokens, "digest": digest}


def in_a_process(store: str, what: str) -> dict[str, float]:
    """Rank once, in a process of its own."""
    for key in (layout.cliffs_document(PROBE), layout.cliffs_table(PROBE)):
        (Path(store) / key).unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", what, "--folder", store]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sql", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(rank(str(given.folder), given.child)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        store = given.folder or Path(temporary) / "store"
        if not (store / "manifest.json").exists():
            make(store, given.tokens)
        names = [*RULES, CURVES, *([SQL] if given.sql else [])]
        rounds = [{name: in_a_process(str(store), name) for name in names} for _ in range(given.rounds)]
    one = rounds[0]["mean"]
    print(f"{one['tokens']:,} scores of {one['examples']:,} examples, {os.cpu_count()} CPUs, {given.rounds} rounds")
    for name in names:
        seconds = [found[name]["seconds"] for found in rounds]
        peak = max(found[name]["peak"] for found in rounds)
        spread = f"{statistics.median(seconds):7.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
        print(f"  {name:<16} {spread}  {one['tokens'] / statistics.median(seconds) / 1e6:7.1f} M scores/s"
              f"  {peak / 1e9:.2f} GB at most")  # fmt: skip
    if given.sql:
        equal = all(found["mean"]["digest"] == found[SQL]["digest"] for found in rounds)
        print(f"  cliffs of SQL and of `mean` are {'equal to the last bit' if equal else 'NOT EQUAL'}")


if __name__ == "__main__":
    main()
