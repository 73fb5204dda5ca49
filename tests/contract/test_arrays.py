"""The array backends, each against the contract."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from array_suite import ArraySuite

from cliffstore.store.arrays import ArrayIO, TensorstoreArrays, ZarrArrays, open_arrays
from cliffstore.store.objects import ObjectStore


class TestTensorstoreArrays(ArraySuite):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> ObjectStore:
        return ObjectStore(str(tmp_path / "store"))

    def open(self, objects: ObjectStore) -> ArrayIO:
        return TensorstoreArrays(objects)


class TestZarrArraysOnDisk(ArraySuite):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> ObjectStore:
        return ObjectStore(str(tmp_path / "store"))

    def open(self, objects: ObjectStore) -> ArrayIO:
        return ZarrArrays(objects)


class TestZarrArraysOverFsspec(ArraySuite):
    @pytest.fixture
    def objects(self) -> Iterator[ObjectStore]:
        store = ObjectStore(f"memory://{uuid.uuid4().hex}/store")
        yield store
        store.delete("")

    def open(self, objects: ObjectStore) -> ArrayIO:
        return ZarrArrays(objects)


def test_backend_is_chosen_by_scheme(tmp_path: Path) -> None:
    assert isinstance(open_arrays(ObjectStore(str(tmp_path))), TensorstoreArrays)
    assert isinstance(open_arrays(ObjectStore(f"file://{tmp_path}")), TensorstoreArrays)
    assert isinstance(open_arrays(ObjectStore(f"memory://{uuid.uuid4().hex}")), ZarrArrays)
