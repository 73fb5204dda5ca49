"""cliffstore: residual-stream activations computed once, stored in Zarr, queried with SQL.

Public names are imported on first use: `import cliffstore` loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cliffstore.config import ExtractConfig
    from cliffstore.errors import CliffstoreError, UserError
    from cliffstore.run.generation.generating import GenerateReport, generate
    from cliffstore.run.heads.planting import plant_folder
    from cliffstore.run.judging.judging import JudgeReport, judge
    from cliffstore.run.stages import ExtractReport, extract
    from cliffstore.run.store import Store
    from cliffstore.store.activations import Activations
    from cliffstore.store.session import QueryLimits
    from cliffstore.train.dataset import ActivationDataset
    from cliffstore.train.loader import ActivationLoader

_HOMES = {
    "ActivationDataset": "cliffstore.train.dataset",
    "ActivationLoader": "cliffstore.train.loader",
    "Activations": "cliffstore.store.activations",
    "CliffstoreError": "cliffstore.errors",
    "UserError": "cliffstore.errors",
    "ExtractConfig": "cliffstore.config",
    "ExtractReport": "cliffstore.run.stages",
    "GenerateReport": "cliffstore.run.generation.generating",
    "JudgeReport": "cliffstore.run.judging.judging",
    "QueryLimits": "cliffstore.store.session",
    "Store": "cliffstore.run.store",
    "extract": "cliffstore.run.stages",
    "generate": "cliffstore.run.generation.generating",
    "judge": "cliffstore.run.judging.judging",
    "plant_folder": "cliffstore.run.heads.planting",
}

__all__ = [
    "ActivationDataset",
    "ActivationLoader",
    "Activations",
    "CliffstoreError",
    "ExtractConfig",
    "ExtractReport",
    "GenerateReport",
    "JudgeReport",
    "QueryLimits",
    "Store",
    "UserError",
    "__version__",
    "extract",
    "generate",
    "judge",
    "plant_folder",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cliffstore' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
