"""`scoring_at_a_gate.py GATE UNITS score STORE ...` runs a command whose worker waits once it has scored so many units,
until there is a file GATE: so the command cannot end before it is disturbed, whatever the speed of the machine."""

from __future__ import annotations

import os
import sys
import time

from cliffstore.analyze.score import ScoreWorker
from cliffstore.cli.main import main


def hold(gate: str, most: int) -> None:
    run, score, done = ScoreWorker.run, ScoreWorker._score, []

    def counted(self, unit, attempt):
        report = run(self, unit, attempt)
        done.append(unit)
        return report

    def gated(self, *arguments):
        while len(done) >= most and not os.path.exists(gate) and not self._stopped.is_set():
            time.sleep(0.01)
        score(self, *arguments)

    ScoreWorker.run, ScoreWorker._score = counted, gated


if __name__ == "__main__":
    hold(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
