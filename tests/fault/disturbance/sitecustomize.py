"""Disturbs the workers of one test: Python imports this module by itself where its folder is on PYTHONPATH."""

import importlib.abc
import importlib.util
import sys

import disturbances

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
            disturbances.disturb(module.UnitWorker)

        spec.loader.exec_module = exec_module
        return spec


if disturbances.wanted():
    sys.meta_path.insert(0, Finder())
