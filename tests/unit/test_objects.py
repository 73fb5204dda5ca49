"""Small objects on a local disk: nobody meets half of one. What holds everywhere is in tests/contract."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cliffstore.errors import StoreError
from cliffstore.store.objects import ObjectStore


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
