"""The array backends, each against the contract."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from array_suite import ArraySuite
from fsspec.implementations.memory import MemoryFileSystem
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
    assert isinstance(open_arrays(ObjectStore(f"memory://{uuid.uuid4().hex}")), ZarrArrays)


@pytest.mark.parametrize(
    ("options", "backend"),
    [({}, TensorstoreArrays), ({"token": "google_default"}, TensorstoreArrays), ({"token": "anon"}, ZarrArrays),
     ({"token": "/keys/one.json"}, ZarrArrays), ({"endpoint_url": "http://127.0.0.1:1"}, ZarrArrays)],
)  # fmt: skip
def test_google_storage_is_reached_with_the_credentials_that_were_given(
    options: dict[str, object], backend: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """tensorstore finds Google's default credentials and can be told no others; who gave others is told of the detour.

    As if gcsfs were there: it brings a dozen packages, and is not asked for anything here.
    """
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (MemoryFileSystem(), "/bucket/store"))
    monkeypatch.setattr("cliffstore.store.zarr_arrays.zarr_store", lambda objects: None)
    url = f"gs://bucket/{uuid.uuid4().hex}"  # told once a store
    assert isinstance(open_arrays(ObjectStore(url, options)), backend)
    assert ("through zarr-python" in caplog.text) is (backend is ZarrArrays)
