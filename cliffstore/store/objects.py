"""Small objects (JSON, Parquet, safetensors) in a store, over any fsspec file system.

`put` replaces atomically, `create` writes only where nothing is. On a local disk both go through a synced temporary
file, so a reader or a crash never meets half an object; other file systems write whole objects by themselves.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from cliffstore.errors import StoreError


class ObjectStore:
    """Objects by key below one URL. Holds no connection state of its own, so it pickles.

    Parameters
    ----------
    url : path or fsspec URL of the store
    storage_options : handed to fsspec (endpoint, credentials ...)
    """

    def __init__(self, url: str, storage_options: Mapping[str, object] | None = None) -> None:
        self.url = url
        self.storage_options = dict(storage_options or {})
        try:
            self.fs, root = fsspec.core.url_to_fs(url, **self.storage_options)
        except (ImportError, ValueError) as error:
            scheme = split_protocol(url)[0]
            raise StoreError(f"store {url}: scheme {scheme!r} cannot be opened: {error}") from None
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, key: str) -> str:
        """Return the file system's path of `key`."""
        return f"{self.root}/{key}"

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises FileNotFoundError where it is not."""
        content: bytes = self.fs.cat_file(self.path(key))
        return content

    def exists(self, key: str) -> bool:
        """Return whether an object or, on a local disk, a folder is there."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.path(key)))

    def size(self, key: str) -> int:
        """Return an object's size in bytes, 0 where there is none."""
        try:
            return int(self.fs.size(self.path(key)) or 0)
        except FileNotFoundError:
            return 0

    def put(self, key: str, content: bytes) -> None:
        """Write an object whole, replacing what was there."""
        if self.is_local:
            temporary = self._write_temporary(key, content)
            os.replace(temporary, self.path(key))
            _sync_folder(Path(self.path(key)).parent)
        else:
            self.fs.pipe_file(self.path(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object only if there is none. Return whether this call wrote it."""
        if self.is_local:
            return self._create_local(key, content)
        if self.exists(key):
            return False
        try:
            self.fs.pipe_file(self.path(key), content, mode="create")
        except FileExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object or everything below a prefix; nothing happens where nothing is."""
        if self.exists(key):
            self.fs.rm(self.path(key), recursive=True)

    def list(self, prefix: str) -> list[str]:
        """Return the sorted keys of all objects below `prefix`."""
        self.fs.invalidate_cache()
        try:
            paths = self.fs.find(self.path(prefix))
        except FileNotFoundError:
            return []
        names = (str(path)[len(self.root) :].lstrip("/") for path in paths)
        return sorted(name for name in names if not Path(name).name.startswith(".tmp-"))

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
        temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return str(temporary)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
