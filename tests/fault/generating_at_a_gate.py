"""`generating_at_a_gate.py GATE UNITS LOG generate ...` runs a command whose worker waits once it has generated so many
batches, until there is a file GATE; LOG gets the id of every example that is generated."""

from __future__ import annotations

import os
import sys
import time

from cliffstore.cli.main import main
from cliffstore.run.generation.workers import ModelWorker


def hold(gate: str, most: int, log: str) -> None:
    generate, done = ModelWorker._rows, []

    def gated(self, items):
        while len(done) >= most and not os.path.exists(gate):
            time.sleep(0.01)
        rows = generate(self, items)
        with open(log, "a") as file:
            file.write("".join(f"{item['name']}\n" for item in items))
        done.append(items)
        return rows

    ModelWorker._rows = gated


if __name__ == "__main__":
    hold(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    sys.exit(main(sys.argv[4:]))
