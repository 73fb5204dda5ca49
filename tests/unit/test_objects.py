"""Small objects: create-only commits, whole replacements, listings without temporary files."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cliffstore.errors import StoreError
from cliffstore.store.objects import ObjectStore


@pytest.fixture(params=["path", "file", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "memory":
        store = ObjectStore(f"memory://{uuid.uuid4().hex}/store")
        yield store
        store.delete("")
    else:
        yield ObjectStore(str(tmp_path / "store") if request.param == "path" else f"file://{tmp_path}/store")


def test_put_and_get(objects: ObjectStore) -> None:
    objects.put("a/b/c.json", b"one")
    assert objects.get("a/b/c.json") == b"one"
    objects.put("a/b/c.json", b"another, longer")
    assert objects.get("a/b/c.json") == b"another, longer"
    objects.put("a/b/c.json", b"")
    assert objects.get("a/b/c.json") == b""


def test_missing_object_is_file_not_found(objects: ObjectStore) -> None:
    assert not objects.exists("nothing.json")
    with pytest.raises(FileNotFoundError):
        objects.get("nothing.json")


def test_create_writes_only_where_nothing_is(objects: ObjectStore) -> None:
    assert objects.create("receipts/unit-000000.json", b"first") is True
    assert objects.create("receipts/unit-000000.json", b"second") is False
    assert objects.get("receipts/unit-000000.json") == b"first"
    assert objects.list("") == ["receipts/unit-000000.json"]


def test_create_does_not_replace_what_put_wrote(objects: ObjectStore) -> None:
    objects.put("manifest.json", b"put")
    assert objects.create("manifest.json", b"created") is False
    assert objects.get("manifest.json") == b"put"


def test_list_is_sorted_relative_and_recursive(objects: ObjectStore) -> None:
    for key in ("b/2.json", "a.json", "b/1.json", "b/c/3.json", "bb/4.json"):
        objects.put(key, b"x")
    assert objects.list("b") == ["b/1.json", "b/2.json", "b/c/3.json"]
    assert objects.list("") == ["a.json", "b/1.json", "b/2.json", "b/c/3.json", "bb/4.json"]
    assert objects.list("nothing/here") == []


def test_list_sees_what_another_handle_wrote(objects: ObjectStore) -> None:
    assert objects.list("a") == []
    ObjectStore(objects.url).put("a/1.json", b"x")
    assert objects.list("a") == ["a/1.json"]
    assert objects.exists("a/1.json")


def test_list_hides_temporary_files(objects: ObjectStore) -> None:
    objects.put("a/1.json", b"x")
    objects.fs.pipe_file(objects.path(f"a/.tmp-{uuid.uuid4().hex}"), b"half")
    assert objects.list("a") == ["a/1.json"]


def test_delete_removes_an_object_or_all_below(objects: ObjectStore) -> None:
    for key in ("a/1.json", "a/2.json", "a/b/3.json", "c.json"):
        objects.put(key, b"x")
    objects.delete("a/1.json")
    assert objects.list("") == ["a/2.json", "a/b/3.json", "c.json"]
    objects.delete("a")
    assert objects.list("") == ["c.json"]
    objects.delete("a")


def test_handle_pickles_and_still_reads(objects: ObjectStore) -> None:
    objects.put("a.json", b"x")
    copy = pickle.loads(pickle.dumps(objects))  # noqa: S301  (the point of the test)
    assert copy.get("a.json") == b"x"
    assert copy.create("b.json", b"y")
    assert objects.get("b.json") == b"y"


def test_one_of_many_threads_creates(tmp_path: Path) -> None:
    n_threads = 8
    for attempt in range(10):
        barrier = threading.Barrier(n_threads)
        key = f"receipts/unit-{attempt:06d}.json"

        def race(number: int, barrier: threading.Barrier = barrier, key: str = key) -> bool:
            store = ObjectStore(str(tmp_path))
            barrier.wait()
            return store.create(key, f"worker {number}".encode())

        with ThreadPoolExecutor(n_threads) as pool:
            won = list(pool.map(race, range(n_threads)))
        assert won.count(True) == 1
        assert ObjectStore(str(tmp_path)).get(key) == f"worker {won.index(True)}".encode()
    assert sorted(path.name for path in (tmp_path / "receipts").iterdir()) == [f"unit-{n:06d}.json" for n in range(10)]


def test_reader_never_meets_half_an_object(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    store.put("x.bin", contents[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(30):
            store.put("x.bin", contents[turn % 2])
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set() and not writing.done():
            assert store.get("x.bin") in contents
        writing.result()


def test_failed_put_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(str(tmp_path))
    store.put("a/x.json", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        store.put("a/x.json", b"new")
    assert store.get("a/x.json") == b"old"
    assert store.list("") == ["a/x.json"]


def test_create_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    store.create("x.json", b"1")
    store.create("x.json", b"2")
    store.put("x.json", b"3")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_unknown_scheme_is_the_users_mistake() -> None:
    with pytest.raises(StoreError, match="'gopher'"):
        ObjectStore("gopher://host/store")
