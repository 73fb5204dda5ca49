"""Small objects (JSON, Parquet, safetensors) in a store, over any fsspec file system.

`put` replaces atomically, `create` writes only where nothing is. On a local disk both go through a synced temporary
file, so a reader or a crash never meets half an object; other file systems write whole objects by themselves.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from cliffstore.access import check_url, endpoint_of, filesystem, scheme_of
from cliffstore.errors import StoreError
from cliffstore.store import layout
from cliffstore.store.bulk import WINDOW, fetcher
from cliffstore.store.patience import is_conflict, log, patiently

T = TypeVar("T")


class ObjectStore:
    """Objects by key below one URL. Holds no connection state of its own, so it pickles.

    Errors that pass by themselves are waited out; see `patience`.

    Parameters
    ----------
    url : path or fsspec URL of the store
    storage_options : endpoint, credentials ...; see `cliffstore.access`
    """

    def __init__(self, url: str, storage_options: Mapping[str, object] | None = None) -> None:
        if not url.strip():
            raise StoreError("the store's place is empty text: give a path or a URL")
        self.url = check_url(url)
        self.storage_options = dict(storage_options or {})
        try:
            self.fs, root = filesystem(url, self.storage_options)
        except (ImportError, ValueError) as error:
            raise StoreError(f"store {url}: scheme {scheme_of(url)!r} cannot be opened: {error}") from None
        limit_retries(self.fs)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, key: str) -> str:
        """Return the file system's path of `key`."""
        return f"{self.root}/{key}"

    def patiently(self, action: Callable[[], T], patience: float | None = None) -> T:
        """Do something that reaches this store, again where it fails in passing. Errors as for `patience.patiently`."""
        return patiently(action, where=f"store {self.url}", options=self.storage_options, patience=patience)

    def get(self, key: str, patience: float | None = None) -> bytes:
        """Return an object's bytes. Raises FileNotFoundError where it is not."""
        content: bytes = self.patiently(lambda: self.fs.cat_file(self.path(key)), patience)
        return content

    def get_many(self, keys: Sequence[str], *, missing_ok: bool = False) -> Iterator[tuple[str, bytes]]:
        """Yield the key and the bytes of many small objects, in the given order, many at a time.

        Memory holds some hundred objects. One that is not read at once is read again by itself, with patience.

        Raises
        ------
        FileNotFoundError
            One is not there, unless `missing_ok`, which leaves it out.
        """
        fetch = fetcher(self, len(keys))
        for first in range(0, len(keys), WINDOW):
            window = keys[first : first + WINDOW]
            for key, content in zip(window, fetch(window), strict=True):
                try:
                    yield key, self.get(key) if content is None else content
                except FileNotFoundError:
                    if not missing_ok:
                        raise

    def exists(self, key: str) -> bool:
        """Return whether an object or, on a local disk, a folder is there."""
        self.fs.invalidate_cache()
        return bool(self.patiently(lambda: self.fs.exists(self.path(key))))

    def size(self, key: str) -> int:
        """Return an object's size in bytes, 0 where there is none."""
        self.fs.invalidate_cache()
        try:
            return int(self.patiently(lambda: self.fs.size(self.path(key))) or 0)
        except FileNotFoundError:
            return 0

    def put(self, key: str, content: bytes) -> None:
        """Write an object whole, replacing what was there."""
        if self.is_local:
            self.patiently(lambda: self._put_local(key, content))
        else:
            self.patiently(lambda: self.fs.pipe_file(self.path(key), content))

    def put_if_new(self, key: str, content: bytes) -> bool:
        """Write an object whole unless its very content is there. Return whether it was written."""
        if self.exists(key) and self.get(key) == content:
            return False
        self.put(key, content)
        return True

    def create(self, key: str, content: bytes) -> bool:
        """Write an object only if there is none. Return whether this call wrote it.

        An answer may be lost on its way back from a write that succeeded: where the write is then refused because
        something is there, and that is this very content, this call wrote it. A scheme or server without create-only
        writes is asked first and then written to, so two writers at the same moment may both write; what they
        create must be equal in everything that counts.
        """
        if self.is_local:
            return self.patiently(lambda: self._create_local(key, content))
        if self.exists(key):
            return False
        try:
            self.patiently(lambda: self._create_remote(key, content))
        except Exception as error:
            if not is_conflict(error):
                raise
            return self.get(key) == content
        return True

    def delete(self, key: str) -> None:
        """Remove an object or everything below a prefix; nothing happens where nothing is.

        Raises
        ------
        StoreError
            Access is denied, to one of the objects or all.
        """
        if self.exists(key):
            self.patiently(lambda: self._remove(key))

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders directly below `prefix`, whatever they hold; one listing."""
        found = self._listed(lambda: self.fs.ls(self.path(prefix), detail=True))
        return sorted(str(one["name"]).rstrip("/").rsplit("/", 1)[-1] for one in found if one["type"] == "directory")

    def list(self, prefix: str, *, temporary: bool = False) -> list[str]:
        """Return the sorted keys of all objects below `prefix`, with or without files that are not whole yet."""
        return sorted(self._keys(self._listed(lambda: self.fs.find(self.path(prefix))), temporary=temporary))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of all objects below `prefix`, by their keys, which are sorted; one listing."""
        found = self._listed(lambda: self.fs.find(self.path(prefix), detail=True)) or {}
        return {key: int(found[path]["size"]) for key, path in sorted(self._keys(found).items())}

    def _listed(self, listing: Callable[[], Any]) -> Any:
        self.fs.invalidate_cache()
        try:
            return self.patiently(listing)
        except FileNotFoundError:
            return []

    def _keys(self, paths: Iterable[str], *, temporary: bool = False) -> dict[str, str]:
        """Return key -> path, with or without what is still being written."""
        keys = {str(path)[len(self.root) :].lstrip("/"): path for path in paths}
        return {
            key: path
            for key, path in keys.items()
            if temporary or not key.rsplit("/", 1)[-1].startswith(layout.TEMPORARY)
        }

    def _remove(self, key: str) -> None:
        path = self.path(key)
        # Tried again after a lost answer, it is gone already.
        with suppress(FileNotFoundError):
            if not _is_s3(self.fs):
                self.fs.rm(path, recursive=True)
            elif self.fs.isfile(path):
                self.fs.rm_file(path)
            else:
                self.fs.rm(path, recursive=True)
                self._expect_nothing(key)

    def _expect_nothing(self, prefix: str) -> None:
        """Raise `StoreError` if S3 has kept objects: s3fs does not look at what its bulk removal was denied."""
        if left := self.list(prefix):
            raise StoreError(f"store {self.url}: access denied to removing {len(left)} objects, such as {left[0]}")

    def _put_local(self, key: str, content: bytes) -> None:
        temporary = self._write_temporary(key, content)
        os.replace(temporary, self.path(key))
        _sync_folder(Path(self.path(key)).parent)

    def _create_remote(self, key: str, content: bytes) -> None:
        self.fs.pipe_file(self.path(key), content, mode="create")

    def _create_local(self, key: str, content: bytes) -> bool:
        temporary = self._write_temporary(key, content)
        try:
            os.link(temporary, self.path(key))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_folder(Path(self.path(key)).parent)
        return True

    def _write_temporary(self, key: str, content: bytes) -> str:
        target = Path(self.path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{layout.TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return str(temporary)


_endpoints: dict[str, bool] = {}


def answers_ranges(objects: ObjectStore, key: str) -> bool:
    """Return whether a store's server answers range requests with 206, as HTTP wants; some S3 servers say 200.

    Asked once for an endpoint, with any object that is there.
    """
    if not _is_s3(objects.fs):
        return True
    call = objects.fs.call_s3
    endpoint = endpoint_of(objects.storage_options) or ""
    if endpoint not in _endpoints:
        bucket, name, _ = objects.fs.split_path(objects.path(key))
        try:
            answer = objects.patiently(lambda: call("get_object", Bucket=bucket, Key=name, Range="bytes=1-1"))
        except FileNotFoundError:
            return True
        _endpoints[endpoint] = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        if not _endpoints[endpoint]:
            log.warning(
                "store %s: its server answers range requests with 200 instead of 206, which tensorstore does not take: "
                "vectors are read through zarr-python, more slowly",
                objects.url,
            )
    return _endpoints[endpoint]


def limit_retries(fs: AbstractFileSystem) -> None:
    """Leave waiting to `patience`: s3fs tries again without jitter, on top of its client's own attempts."""
    if hasattr(fs, "retries"):
        fs.retries = 1


def _is_s3(fs: AbstractFileSystem) -> bool:
    return hasattr(fs, "call_s3")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
