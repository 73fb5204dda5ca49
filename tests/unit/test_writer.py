"""Writing a unit stands back from computing the next one, and leaves the caller's priority alone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cliffstore.schema import ArrayIdentity, CaptureDocument, ModelIdentity, PassSettings
from cliffstore.store.objects import ObjectStore
from cliffstore.store.writer import UnitFacts, commit_unit

LAYERS, WIDTH, ROWS = 3, 4, 8


def _capture() -> CaptureDocument:
    model = ModelIdentity(
        name="made-up", revision=None, config_digest="0", weights_digest=None, model_type="llama",
        n_layers=LAYERS, d_model=WIDTH, n_heads=1, d_head=WIDTH,
    )  # fmt: skip
    return CaptureDocument(
        capture="capture-1",
        alias="main",
        model=model,
        arrays=[ArrayIdentity(site="resid_post", layer=layer, shape=[WIDTH]) for layer in range(LAYERS)],
        dtype="float32",
        passes=PassSettings(kind="tree", tokens=256, products="native"),
        cliffstore_version="0",
    )


class _Priorities:
    """Takes vectors, and remembers the priority of the thread that brought them."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def write(self, row_start: int, blocks: Mapping[str, np.ndarray]) -> None:
        for key in blocks:
            self.seen[key] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_writing_stands_back_from_computing(tmp_path: Path) -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    if before > 9:
        pytest.skip("the tests run at a priority too low to tell")
    arrays, capture = _Priorities(), _capture()
    blocks = {f"resid_post/{layer}": np.ones((ROWS, WIDTH), dtype=np.float32) for layer in range(LAYERS)}
    commit_unit(ObjectStore(str(tmp_path)), arrays, capture, UnitFacts("p", 0, 0, ROWS, 1, ROWS, 1, "w"), blocks, 0.1)
    assert len(arrays.seen) == LAYERS
    assert min(arrays.seen.values()) > before
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
