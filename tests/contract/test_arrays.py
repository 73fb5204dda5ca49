"""The array backends, each against the contract."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from array_suite import ArraySuite
from servers import Storage

from cliffstore.store.arrays import ArrayIO, TensorstoreArrays, ZarrArrays, open_arrays
from cliffstore.store.objects import ObjectStore


class TestTensorstoreArrays(ArraySuite):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> ObjectStore:
        return ObjectStore(str(tmp_path / "store"))

    def open(self, objects: ObjectStore) -> ArrayIO:
        return open_arrays(objects)


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


class TestRcloneS3(ArraySuite):
    @pytest.fixture
    def objects(self, rclone_s3: Storage) -> ObjectStore:
        return ObjectStore(rclone_s3.new_url(), rclone_s3.options)

    def open(self, objects: ObjectStore) -> ArrayIO:
        return open_arrays(ObjectStore(objects.url, objects.storage_options))


class TestMotoS3(ArraySuite):
    @pytest.fixture
    def objects(self, moto_s3: Storage) -> ObjectStore:
        return ObjectStore(moto_s3.new_url(), moto_s3.options)

    def open(self, objects: ObjectStore) -> ArrayIO:
        return open_arrays(ObjectStore(objects.url, objects.storage_options))


class TestZarrArraysOnS3(ArraySuite):
    @pytest.fixture
    def objects(self, moto_s3: Storage) -> ObjectStore:
        return ObjectStore(moto_s3.new_url(), moto_s3.options)

    def open(self, objects: ObjectStore) -> ArrayIO:
        return ZarrArrays(ObjectStore(objects.url, objects.storage_options))


class TestAzure(ArraySuite):
    """A scheme that tensorstore does not speak."""

    @pytest.fixture
    def objects(self, azure: Storage) -> ObjectStore:
        return ObjectStore(azure.new_url(), azure.options)

    def open(self, objects: ObjectStore) -> ArrayIO:
        return open_arrays(ObjectStore(objects.url, objects.storage_options))


def test_backend_is_chosen_by_scheme(tmp_path: Path) -> None:
    assert isinstance(open_arrays(ObjectStore(str(tmp_path))), TensorstoreArrays)
    assert isinstance(open_arrays(ObjectStore(f"file://{tmp_path}")), TensorstoreArrays)
    remote = {"region": "us-east-1", "key": "none", "secret": "nothing"}
    assert isinstance(open_arrays(ObjectStore("s3://bucket/store", remote)), TensorstoreArrays)
    assert isinstance(open_arrays(ObjectStore("gs://bucket/store", {"token": "anon"})), TensorstoreArrays)
    assert isinstance(open_arrays(ObjectStore(f"memory://{uuid.uuid4().hex}")), ZarrArrays)
