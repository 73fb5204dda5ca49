"""Arrays through zarr-python, anywhere fsspec reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore

from cliffstore.errors import CliffstoreError
from cliffstore.store import layout
from cliffstore.store.array_io import RangeReader, Waiting, unreadable
from cliffstore.store.objects import ObjectStore
from cliffstore.store.shards import Grid, Piece, ShardCheck, Vectors

_PARALLEL = 8
"""Arrays that are written, and ranges that are read, at the same time."""


class ZarrArrays(RangeReader):
    """Arrays of any store."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._shards = ShardCheck(objects)
        self._store = zarr_store(objects)
        self._open: dict[str, zarr.Array] = {}

    def _array(self, key: str) -> zarr.Array:
        if key not in self._open:
            try:
                self._open[key] = self._objects.patiently(lambda: zarr.open_array(self._store, path=key, mode="r+"))
            except (ValueError, FileNotFoundError) as error:
                raise error if isinstance(error, CliffstoreError) else unreadable(key, error) from None
        return self._open[key]

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="zarr") as pool:
            for _ in pool.map(lambda key: self._write(key, row_start, blocks[key]), blocks):
                pass

    def _write(self, key: str, row_start: int, block: Vectors) -> None:
        array = self._array(key)
        shard_rows = _shard_rows(array)
        # zarr-python reads a shard before it replaces it, and stumbles over a torn one.
        if row_start % shard_rows == 0 and len(block) == shard_rows:
            self._objects.delete(layout.shard(key, row_start // shard_rows, array.ndim))

        def write() -> None:
            array[row_start : row_start + len(block)] = block

        self._objects.patiently(write)

    def grid(self, key: str) -> Grid:
        array = self._array(key)
        return Grid(array.shape[0], array.chunks[0], _shard_rows(array), array.shape[1:], array.dtype)

    def fetch(self, key: str, pieces: Sequence[Piece]) -> Waiting:
        array, given = self._array(key), [(first, block) for first, block in pieces if len(block)]
        self._shards.check(key, self.grid(key), given)

        def read(piece: Piece) -> None:
            first, block = piece
            try:
                block[...] = self._objects.patiently(lambda: array[first : first + len(block)])
            except (ValueError, RuntimeError) as error:
                raise error if isinstance(error, CliffstoreError) else unreadable(key, error) from None

        def wait() -> None:
            with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="zarr") as pool:
                for _ in pool.map(read, given):
                    pass

        return wait


def _shard_rows(array: zarr.Array) -> int:
    return int((array.shards or array.chunks)[0])


def zarr_store(objects: ObjectStore) -> ZarrStore:
    """Return the store as zarr-python sees it."""
    if objects.is_local:
        return LocalStore(objects.root)
    # zarr-python has an event loop of its own. A file system made for it would have to be closed in that loop, which
    # fsspec does not know when the process ends; so zarr-python calls the one file system of the store, from threads.
    return SuffixStore(AsyncFileSystemWrapper(objects.fs, asynchronous=True), path=objects.root)


class SuffixStore(FsspecStore):
    """Reads the end of an object, where a shard has its index, by its size: some schemes cannot count from the end."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if isinstance(byte_range, SuffixByteRequest) and "s3" not in self.fs.protocol:
            try:
                size = await self.getsize(key)
            except FileNotFoundError:
                return None
            byte_range = RangeByteRequest(max(size - byte_range.suffix, 0), size)
        return await super().get(key, prototype, byte_range)
