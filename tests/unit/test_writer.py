"""Writing a unit stands back from computing; arrays are made by whoever comes first."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.errors import ContainsGroupError

from cliffstore.schema import ArrayIdentity, CaptureDocument, ModelIdentity, PassSettings
from cliffstore.store.arrays import ArraySpec, create_arrays
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


@pytest.mark.parametrize("overtaken_at", ["group", "array"])
def test_two_processes_make_the_arrays_of_a_capture_at_once(
    overtaken_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process has made between our look and our writing is found, and grows where it is too short."""
    objects = ObjectStore(str(tmp_path))
    specs = [ArraySpec("main", "resid_post", layer, (WIDTH,), "float32") for layer in range(LAYERS)]
    sizes = {"chunk_rows": ROWS, "unit_rows": ROWS}
    make_array, open_group, others = zarr.Group.create_array, zarr.open_group, []

    def another() -> bool:
        if not others:
            others.append(1)
            create_arrays(objects, specs, n_rows=ROWS, **sizes)
            return True
        return False

    def make_array_late(group: zarr.Group, *arguments: object, **options: object) -> object:
        another()
        return make_array(group, *arguments, **options)

    def open_group_late(*arguments: object, **options: object) -> zarr.Group:
        if another():
            raise ContainsGroupError(str(tmp_path))
        return open_group(*arguments, **options)

    if overtaken_at == "array":
        monkeypatch.setattr(zarr.Group, "create_array", make_array_late)
    else:
        monkeypatch.setattr(zarr, "open_group", open_group_late)
    create_arrays(objects, specs, n_rows=2 * ROWS, **sizes)
    shapes = [zarr.open_array(tmp_path / spec.key, mode="r").shape for spec in specs]
    assert (others, shapes) == ([1], [(2 * ROWS, WIDTH)] * LAYERS)
