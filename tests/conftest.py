"""Fixtures for all tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Give the folder of SmolLM2-135M-Instruct."""
    return os.environ.get("CLIFFSTORE_TEST_MODEL", "/tmp/smol")
