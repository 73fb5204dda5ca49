"""Extraction of one unit: forward passes, capture, write, receipt.

Once this folder is imported, Python binds it as `cliffstore.extract`, the name of the public function. So the folder
can be called, and is that function.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableFolder(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `cliffstore.run.stages.extract`."""
        return import_module("cliffstore.run.stages").extract(*arguments, **options)


sys.modules[__name__].__class__ = _CallableFolder
