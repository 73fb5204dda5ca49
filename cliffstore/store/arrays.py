"""Array input and output: Zarr v3, one array a (model, site, layer), one shard object a unit.

zarr-python writes the metadata. Vectors go through tensorstore on local disks, S3 and Google Cloud Storage, where it
is several times faster, and through zarr-python over fsspec for every other scheme; both sit behind the same methods.
bfloat16 is kept as its raw bits in uint16, since zarr-python has no bfloat16; the attribute `cliffstore.dtype` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from cliffstore.access import TENSORSTORE_RETRIES, is_only_for_fsspec, kvstore, tensorstore_environment
from cliffstore.errors import CliffstoreError, DamagedStoreError
from cliffstore.schema import Dtype
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore, answers_ranges
from cliffstore.store.patience import log

T = TypeVar("T")
Vectors = npt.NDArray[np.generic]

STORED_DTYPE: dict[str, str] = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
_METADATA = "zarr.json"
_CACHE_BYTES = {"read": 256 << 20, "write": 0}
_WRITES = 8
"""Arrays that zarr-python writes at the same time."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array: where it lies and the shape of one of its rows."""

    alias: str
    site: str
    layer: int
    row_shape: tuple[int, ...]
    dtype: Dtype

    @property
    def key(self) -> str:
        return layout.array(self.alias, self.site, self.layer)

    @property
    def name(self) -> str:
        return f"{self.site}/{self.layer}"

    @property
    def bytes_per_row(self) -> int:
        return int(np.prod(self.row_shape)) * np.dtype(STORED_DTYPE[self.dtype]).itemsize


def to_float32(stored: Vectors, dtype: str) -> npt.NDArray[np.float32]:
    """Return stored vectors as float32, without loss: bfloat16 bits are the upper half of a float32."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored, dtype=np.float32)


class ArrayIO(Protocol):
    """Reads and writes rows of the arrays of one store."""

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        """Write the same rows of several arrays; all are durable, or an error is raised, when it returns.

        Parameters
        ----------
        blocks : array key -> [rows, ...]; one of a whole shard becomes one object. May be changed afterwards.
        """

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        """Read a contiguous range of rows."""

    def read_rows(self, key: str, rows_N: npt.NDArray[np.int64]) -> Vectors:
        """Read any rows, in the given order."""


class TensorstoreArrays:
    """Arrays through tensorstore: on a local disk, on S3 and on Google Cloud Storage."""

    def __init__(self, objects: ObjectStore, kvstore: Mapping[str, object]) -> None:
        tensorstore_environment()
        import tensorstore

        self._tensorstore = tensorstore
        self._objects, self._kvstore = objects, kvstore
        self._shards = ShardCheck(objects)
        self._contexts = {
            use: tensorstore.Context({**TENSORSTORE_RETRIES, "cache_pool": {"total_bytes_limit": limit}})
            for use, limit in _CACHE_BYTES.items()
        }
        self._open: dict[tuple[str, str], object] = {}
        self._reads: ArrayIO | None = None

    def _array(self, key: str, use: str):  # type: ignore[no-untyped-def]  # tensorstore's arrays are untyped
        if (key, use) not in self._open:
            folder = {**self._kvstore, "path": f"{self._kvstore['path']}{key}/"}
            spec = {"driver": "zarr3", "kvstore": folder}
            context = self._contexts[use]
            self._open[key, use] = self._patiently(
                key, lambda: self._tensorstore.open(spec, open=True, context=context).result()
            )
        return self._open[key, use]

    def _patiently(self, key: str, action: Callable[[], T]) -> T:
        try:
            return self._objects.patiently(action)
        except ValueError as error:
            raise error if isinstance(error, CliffstoreError) else _unreadable(key, error) from None

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        arrays = {key: self._array(key, "write") for key in blocks}
        unwritten = dict(blocks)

        def write() -> None:
            # No copies: the writes are waited for, and no cache refers to the blocks behind them.
            futures = {
                key: arrays[key][row_start : row_start + len(block)].write(
                    block, can_reference_source_data_indefinitely=True
                )
                for key, block in unwritten.items()
            }
            failures = []
            for key, future in futures.items():
                if (error := future.exception()) is None:
                    del unwritten[key]
                else:
                    failures.append(error)
            if failures:
                raise failures[0]

        self._objects.patiently(write)

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        if (other := self._other_reader(key)) is not None:
            return other.read_range(key, row_start, row_stop)
        return self._read(key, slice(row_start, row_stop), np.arange(row_start, row_stop))

    def read_rows(self, key: str, rows_N: npt.NDArray[np.int64]) -> Vectors:
        if (other := self._other_reader(key)) is not None:
            return other.read_rows(key, rows_N)
        return self._read(key, rows_N, rows_N)

    def _other_reader(self, key: str) -> ArrayIO | None:
        """Return zarr-python's access where tensorstore would take a range for a whole object."""
        if self._reads is None and not answers_ranges(self._objects, f"{key}/{_METADATA}"):
            self._reads = ZarrArrays(self._objects)
        return self._reads

    def _read(self, key: str, where: slice | npt.NDArray[np.int64], rows_N: npt.NDArray[np.int64]) -> Vectors:
        array = self._array(key, "read")
        self._shards.check(key, array.shape, array.chunk_layout.write_chunk.shape[0], rows_N)
        block: Vectors = self._patiently(key, lambda: array[where].read().result())
        return block


class ZarrArrays:
    """Arrays anywhere fsspec reaches, through zarr-python."""

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
                raise error if isinstance(error, CliffstoreError) else _unreadable(key, error) from None
        return self._open[key]

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        with ThreadPoolExecutor(_WRITES, thread_name_prefix="zarr") as pool:
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

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        return self._read(key, slice(row_start, row_stop), np.arange(row_start, row_stop))

    def read_rows(self, key: str, rows_N: npt.NDArray[np.int64]) -> Vectors:
        return self._read(key, rows_N, rows_N)

    def _read(self, key: str, where: slice | npt.NDArray[np.int64], rows_N: npt.NDArray[np.int64]) -> Vectors:
        array = self._array(key)
        self._shards.check(key, array.shape, _shard_rows(array), rows_N)
        try:
            return np.asarray(self._objects.patiently(lambda: array.oindex[where]))
        except (ValueError, RuntimeError) as error:
            raise error if isinstance(error, CliffstoreError) else _unreadable(key, error) from None


class ShardCheck:
    """Tells a lost shard from a shard of zeros: Zarr readers fill in zeros for an object that is not there."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._seen: set[str] = set()

    def check(self, key: str, shape: Sequence[int], shard_rows: int, rows_N: npt.NDArray[np.int64]) -> None:
        """Raise `DamagedStoreError` where a row's shard is missing or empty, `IndexError` where a row is outside."""
        if not len(rows_N):
            return
        if rows_N.min() < 0 or rows_N.max() >= shape[0]:
            raise IndexError(f"array {key} has rows 0-{shape[0] - 1}, asked for {rows_N.min()}-{rows_N.max()}")
        for unit in np.unique(rows_N // shard_rows):
            shard = layout.shard(key, int(unit), len(shape))
            if shard in self._seen:
                continue
            if not self._objects.size(shard):
                raise DamagedStoreError(f"array {key} cannot be read: shard {shard} is missing or empty")
            self._seen.add(shard)


def _shard_rows(array: zarr.Array) -> int:
    return int((array.shards or array.chunks)[0])


def _unreadable(key: str, error: Exception) -> DamagedStoreError:
    return DamagedStoreError(f"array {key} cannot be read: {str(error).splitlines()[0][:300]}")


def open_arrays(objects: ObjectStore) -> ArrayIO:
    """Return the fastest array access for the store's scheme."""
    url = objects.root if objects.is_local else objects.url
    folder = kvstore(url, objects.storage_options)
    if is_only_for_fsspec(url, objects.storage_options):
        _tell_of_detour(url)
    return TensorstoreArrays(objects, folder) if folder is not None else ZarrArrays(objects)


@lru_cache
def _tell_of_detour(url: str) -> None:
    log.warning(
        "store %s: tensorstore cannot be given these storage options (it takes Google's default ones): vectors go "
        "through zarr-python, more slowly",
        url,
    )


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


def create_arrays(
    objects: ObjectStore, specs: Sequence[ArraySpec], *, n_rows: int, chunk_rows: int, unit_rows: int
) -> None:
    """Create the groups and arrays of a capture. An array that is there already grows where it is too short."""
    objects.patiently(lambda: _create_arrays(zarr_store(objects), specs, n_rows, chunk_rows, unit_rows))


@lru_cache(maxsize=16)
def array_metadata(specs: tuple[ArraySpec, ...], *, n_rows: int, chunk_rows: int, unit_rows: int) -> dict[str, bytes]:
    """Return key -> content of every `zarr.json` that `create_arrays` writes where nothing is."""
    written: dict[str, Buffer] = {}
    _create_arrays(MemoryStore(written), specs, n_rows, chunk_rows, unit_rows)
    return {key: buffer.to_bytes() for key, buffer in written.items()}


def _create_arrays(store: ZarrStore, specs: Sequence[ArraySpec], n_rows: int, chunk_rows: int, unit_rows: int) -> None:
    root = zarr.open_group(store, mode="a")
    for spec in specs:
        group = root.require_group(layout.site_group(spec.alias, spec.site))
        if str(spec.layer) in group:
            _grow(group[str(spec.layer)], n_rows)
            continue
        group.create_array(
            str(spec.layer),
            shape=(n_rows, *spec.row_shape),
            dtype=STORED_DTYPE[spec.dtype],
            chunks=(chunk_rows, *spec.row_shape),
            shards=(unit_rows, *spec.row_shape),
            compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()],
            fill_value=0,
            dimension_names=_dimension_names(len(spec.row_shape)),
            attributes={"cliffstore": {"dtype": spec.dtype}},
        )


def _grow(array: zarr.Array | zarr.Group, n_rows: int) -> None:
    if isinstance(array, zarr.Array) and array.shape[0] < n_rows:
        array.resize((n_rows, *array.shape[1:]))


def _dimension_names(row_dimensions: int) -> tuple[str, ...]:
    return ("row", "d_model") if row_dimensions == 1 else ("row", "head", "d_head")
