"""Fixtures that several tests share: the real small model, a store extracted with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct, unpacked once into the user's cache folder."""
    from cliffstore.model.gguf import converted
    from cliffstore.run.demo import shipped_model

    return str(converted(shipped_model(), print))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Benchmark prompts beside the checkout; tests that need them are skipped, and say so, where they are not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"benchmark prompts are not at {SHARED_DATA}")
    return SHARED_DATA
