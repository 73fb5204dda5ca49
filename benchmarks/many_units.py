"""Opening and querying a store of many units: seconds and requests, on a local disk and on an S3 server on loopback.

usage: python benchmarks/many_units.py [--units 20000] [--layers 32] [--rounds 3] [--no-s3]

The store is made up (tests/made_up_store.py): a plan, whose units have four tiny examples each, a capture, and a
receipt a unit with the digests of its layers, written by cliffstore's own writers; there are no vectors, for no query
here reads one. The server is rclone over the same folder. Seconds are medians over `--rounds` processes, from opening
the store to the last row of the answer, and what of them the process itself computed. Requests are counted in one more
process each, by a proxy before the server.

Set PYTHONPATH to the checkout where another one is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import servers  # noqa: E402
from fault_proxy import Weather, proxy  # noqa: E402
from made_up_store import make_store  # noqa: E402

from cliffstore.store.objects import ObjectStore  # noqa: E402

INFO = "info"
QUERIES = (
    "SELECT 1",
    "SELECT count(*) FROM examples",
    "SELECT * FROM tokens LIMIT 1",
    "SELECT count(*) FROM units WHERE extracted",
    "SELECT sum(bytes), count(*) FROM units",
    INFO,
)
ONE_QUERY = """
import json, sys, time
from cliffstore.run.store import Store
url, options, query = json.loads(sys.argv[1])
begin, cpu = time.perf_counter(), time.process_time()
with Store(url, options) as store:
    answer = store.info()["captures"][0]["units_extracted"] if query == "info" else store.sql(query).fetchall()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
print(json.dumps([seconds, cpu, str(answer)]))
"""


def ask(url: str, options: dict[str, object], query: str) -> tuple[float, float, str]:
    """Open a store and query it in a process of its own. Return seconds, seconds of the processor, and answer."""
    command = [sys.executable, "-c", ONE_QUERY, json.dumps([url, options, query])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
    seconds, cpu, answer = json.loads(done.stdout)
    return seconds, cpu, answer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-s3", action="store_true")
    given = parser.parse_args()
    table = Table("where", "query", "answer", "seconds", "processor", "requests", title=f"{given.units:,} units")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        begin = time.perf_counter()
        make_store(ObjectStore(str(root / servers.BUCKET / "store")), range(given.units), given.layers)
        print(f"made in {time.perf_counter() - begin:.0f} s", flush=True)
        places: dict[str, tuple[str, dict[str, object]]] = {"disk": (str(root / servers.BUCKET / "store"), {})}
        if not given.no_s3:
            storage = stack.enter_context(servers.rclone(root))
            places["S3"] = (f"{storage.bucket}/store", storage.options)
        for query in QUERIES:
            for where, (url, options) in places.items():
                found = [ask(url, options, query) for _ in range(given.rounds)]
                requests = ""
                if options:
                    weather = Weather()
                    with proxy(storage.port, weather) as port:
                        ask(url, storage.through(port).options, query)
                    requests = f"{sum(weather.requests.values()):,}"
                seconds, cpu = (f"{statistics.median(one[which] for one in found):.2f}" for which in (0, 1))
                table.add_row(where, query, found[0][2], seconds, cpu, requests)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
