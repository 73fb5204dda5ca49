"""Poison for the workers of one test: Python imports this module by itself where its folder is on PYTHONPATH."""

import importlib.abc
import importlib.util
import os
import signal
import sys

TARGET = "cliffstore.extract.unit"


class Finder(importlib.abc.MetaPathFinder):
    """Lets the worker's module be found as ever, and poisons its class after loading."""

    def find_spec(self, name, path, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            poison(module.UnitWorker)

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


if "POISON_KILLS" in os.environ:
    sys.meta_path.insert(0, Finder())
