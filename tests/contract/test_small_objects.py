"""Small objects on every backend: create-only commits, whole replacements, listings without temporary files."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Storage

from cliffstore.store.objects import ObjectStore

BACKENDS = ("path", "file", "memory", "rclone_s3", "moto_s3", "azure")


@pytest.fixture(params=BACKENDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "memory":
        store = ObjectStore(f"memory://{uuid.uuid4().hex}/store")
        yield store
        store.delete("")
    elif request.param in ("path", "file"):
        yield ObjectStore(str(tmp_path / "store") if request.param == "path" else f"file://{tmp_path}/store")
    else:
        storage: Storage = request.getfixturevalue(request.param)
        yield ObjectStore(storage.new_url(), storage.options)


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
    ObjectStore(objects.url, objects.storage_options).put("a/1.json", b"x")
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


def test_of_two_writers_at_least_one_creates_and_all_agree(objects: ObjectStore) -> None:
    others = [ObjectStore(objects.url, objects.storage_options) for _ in range(3)]
    assert [other.create("a.json", b"same") for other in others] == [True, False, False]
    assert objects.get("a.json") == b"same"


def test_size(objects: ObjectStore) -> None:
    assert objects.size("a.bin") == 0
    objects.put("a.bin", b"12345")
    assert objects.size("a.bin") == 5


def test_many_objects_come_in_the_order_that_was_asked_for(objects: ObjectStore) -> None:
    contents = {f"a/{number}.json": b"x" * number for number in range(50)}
    for key, content in contents.items():
        objects.put(key, content)
    for n_keys in (0, 1, 5, 50):  # few and many are read in different ways
        asked = [*contents][:n_keys][::-1]
        assert list(objects.get_many(asked)) == [(key, contents[key]) for key in asked]
        assert list(objects.get_many([*asked, "a/none.json"], missing_ok=True)) == [
            (key, contents[key]) for key in asked
        ]
        with pytest.raises(FileNotFoundError):
            list(objects.get_many([*asked, "a/none.json"]))


def test_sizes_and_folders(objects: ObjectStore) -> None:
    for key in ("b/2/x.json", "b/1/y.json", "b/1/c/z.json", "b/w.json"):
        objects.put(key, key.encode())
    keys = ["b/1/c/z.json", "b/1/y.json", "b/2/x.json", "b/w.json"]
    assert list(objects.sizes("b").items()) == [(key, len(key)) for key in keys]
    assert objects.folders("b") == ["1", "2"]
    assert objects.sizes("nothing") == {}
    assert objects.folders("nothing") == []
