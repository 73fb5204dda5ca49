"""Disturbs the workers of one test: Python imports this module by itself where its folder is on PYTHONPATH.

What it does to a process stands in the environment:

- POISON_RAISES, POISON_KILLS: a unit that raises an error, a unit that its process dies of.
- GATE, GATE_UNITS: a process commits so many units (or one more: it has two in flight) and then waits until there is a
  file GATE. So a test decides when a run goes on, whatever the speed of the machine, and each process gets units.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
import time

TARGET = "cliffstore.extract.unit"


class Finder(importlib.abc.MetaPathFinder):
    """Lets the worker's module be found as ever, and changes its class after loading."""

    def find_spec(self, name, path, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            for disturb in DISTURBANCES:
                disturb(module.UnitWorker)

        spec.loader.exec_module = exec_module
        return spec


def poison(worker):
    extract = worker._extract

    def poisoned(self, unit, attempt):
        if unit == int(os.environ["POISON_KILLS"]):
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == int(os.environ["POISON_RAISES"]):
            raise RuntimeError("this unit is poison")
        return extract(self, unit, attempt)

    worker._extract = poisoned


def gate(worker):
    extract, compute, most = worker._extract, worker._run, int(os.environ["GATE_UNITS"])
    worker.committed = 0

    def counted(self, unit, attempt):
        report = extract(self, unit, attempt)
        self.committed += report.worker == self.name
        return report

    def gated(self, *arguments):
        while self.committed >= most and not os.path.exists(os.environ["GATE"]):
            time.sleep(0.02)
        return compute(self, *arguments)

    worker._extract, worker._run = counted, gated


DISTURBANCES = [disturb for name, disturb in (("POISON_KILLS", poison), ("GATE", gate)) if name in os.environ]
if DISTURBANCES:
    sys.meta_path.insert(0, Finder())
