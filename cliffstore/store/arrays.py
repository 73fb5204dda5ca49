"""Array input and output: Zarr v3, one array a (model, site, layer), one shard object a unit.

zarr-python writes the metadata. Vectors go through tensorstore on local disks, S3 and Google Cloud Storage, where it
is several times faster, and through zarr-python over fsspec for every other scheme; both sit behind the same methods.
bfloat16 is kept as its raw bits in uint16, since zarr-python has no bfloat16; the attribute `cliffstore.dtype` says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias, TypeVar

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
from cliffstore.store.shards import Grid, Piece, ShardCheck, check_inside
from cliffstore.store.shards import Vectors as Vectors

T = TypeVar("T")

STORED_DTYPE: dict[str, str] = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
_METADATA = "zarr.json"
_BLOCK_BYTES, _CACHED_BYTES = 16 << 20, 1 << 20
_PARALLEL = 8
"""Arrays that zarr-python writes, and ranges that it reads, at the same time."""


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


Waiting: TypeAlias = Callable[[], None]


def to_float32(stored: Vectors, dtype: str) -> npt.NDArray[np.float32]:
    """Return stored vectors as float32, without loss: bfloat16 bits are the upper half of a float32."""
    if dtype == "float32":
        return np.ascontiguousarray(stored, dtype=np.float32)
    wide = np.empty(stored.shape, dtype=np.float32)
    step = max(_CACHED_BYTES // max(wide[:1].nbytes, 1), 1)
    for first in range(0, len(stored), step):
        widen(stored[first : first + step], dtype, wide[first : first + step])
    return wide


def widen(stored: Vectors, dtype: str, wide: Vectors) -> None:
    """Write stored vectors into memory of float32; fastest where both fit a processor's cache."""
    if dtype == "bfloat16":
        bits = wide.view(np.uint32)
        np.copyto(bits, stored, casting="unsafe")
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(wide, stored, casting="unsafe")


class ArrayIO(Protocol):
    """Reads and writes rows of the arrays of one store. Threads may share it."""

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        """Write the same rows of several arrays; all are durable, or an error is raised, when it returns.

        Parameters
        ----------
        blocks : array key -> [rows, ...]; one of a whole shard becomes one object. May be changed afterwards.
        """

    def grid(self, key: str) -> Grid:
        """Return how an array is cut."""

    def fetch(self, key: str, pieces: Sequence[Piece]) -> Waiting:
        """Begin to read ranges of rows, all at the same time, into given memory; the answer waits until they are there.

        Raises
        ------
        IndexError, DamagedStoreError
            A row is outside of the array; it, or one of its shards, is not there or damaged. Here or in the answer.
        """

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        """Read a contiguous range of rows. Errors as for `fetch`."""


class _RangeReader(ABC):
    """Ranges by `fetch`."""

    @abstractmethod
    def grid(self, key: str) -> Grid: ...

    @abstractmethod
    def fetch(self, key: str, pieces: Sequence[Piece]) -> Waiting: ...

    def read_range(self, key: str, row_start: int, row_stop: int) -> Vectors:
        grid = self.grid(key)
        check_inside(key, grid, row_start, max(row_start, row_stop - 1))
        block = np.empty((row_stop - row_start, *grid.row_shape), dtype=grid.dtype)
        self.fetch(key, range_pieces(grid, row_start, block))()
        return block


class TensorstoreArrays(_RangeReader):
    """Arrays through tensorstore: on a local disk, on S3 and on Google Cloud Storage."""

    def __init__(self, objects: ObjectStore, kvstore: Mapping[str, object]) -> None:
        tensorstore_environment()
        import tensorstore

        self._tensorstore = tensorstore
        self._objects, self._kvstore = objects, kvstore
        self._shards = ShardCheck(objects)
        # Chunks are kept by whoever asks for them (see `gather`), and a shard may be written again.
        self._context = tensorstore.Context({**TENSORSTORE_RETRIES, "cache_pool": {"total_bytes_limit": 0}})
        self._open: dict[str, object] = {}
        self._grids: dict[str, Grid] = {}
        self._reads: ArrayIO | None = None

    def _array(self, key: str):  # type: ignore[no-untyped-def]  # tensorstore's arrays are untyped
        array = self._open.get(key)
        if array is None:
            folder = {**self._kvstore, "path": f"{self._kvstore['path']}{key}/"}
            spec = {"driver": "zarr3", "kvstore": folder}
            array = self._open[key] = self._patiently(
                key, lambda: self._tensorstore.open(spec, open=True, context=self._context).result()
            )
        return array

    def _patiently(self, key: str, action: Callable[[], T]) -> T:
        try:
            return self._objects.patiently(action)
        except ValueError as error:
            raise error if isinstance(error, CliffstoreError) else _unreadable(key, error) from None

    def write(self, row_start: int, blocks: Mapping[str, Vectors]) -> None:
        arrays = {key: self._array(key) for key in blocks}
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

    def grid(self, key: str) -> Grid:
        if key not in self._grids:
            array = self._array(key)
            cut = array.chunk_layout
            chunk_rows, shard_rows = int(cut.read_chunk.shape[0]), int(cut.write_chunk.shape[0])
            kind = np.dtype(array.dtype.numpy_dtype)
            self._grids[key] = Grid(int(array.shape[0]), chunk_rows, shard_rows, tuple(array.shape[1:]), kind)
        return self._grids[key]

    def fetch(self, key: str, pieces: Sequence[Piece]) -> Waiting:
        if (other := self._other_reader(key)) is not None:
            return other.fetch(key, pieces)
        array, left = self._array(key), [(first, block) for first, block in pieces if len(block)]
        self._shards.check(key, self.grid(key), left)

        def begin() -> list:
            # One batch: requests for neighbouring chunks, and for the index of a shard, become one.
            batch = self._tensorstore.Batch()
            futures = [
                self._tensorstore.array(block, copy=False, write=True).write(
                    array[first : first + len(block)].translate_to[(0,) * block.ndim], batch=batch
                )
                for first, block in left
            ]
            batch.submit()
            return futures

        begun = [begin()]

        def attempt() -> None:
            futures = begun.pop() if begun else begin()
            errors = [future.exception() for future in futures]
            left[:] = [piece for piece, error in zip(left, errors, strict=True) if error is not None]
            for error in errors:
                if error is not None:
                    raise error

        return lambda: self._patiently(key, attempt)

    def _other_reader(self, key: str) -> ArrayIO | None:
        """Return zarr-python's access where tensorstore would take a range for a whole object."""
        if self._reads is None and not answers_ranges(self._objects, f"{key}/{_METADATA}"):
            self._reads = ZarrArrays(self._objects)
        return self._reads


class ZarrArrays(_RangeReader):
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
                raise error if isinstance(error, CliffstoreError) else _unreadable(key, error) from None

        def wait() -> None:
            with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="zarr") as pool:
                for _ in pool.map(read, given):
                    pass

        return wait


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


def range_pieces(grid: Grid, row_start: int, block: Vectors) -> list[Piece]:
    """Cut a range into pieces that are read at the same time; they meet between chunks, so that none is read twice."""
    step = max(_BLOCK_BYTES // grid.chunk_bytes, 1) * grid.chunk_rows
    row_stop = row_start + len(block)
    firsts = [row_start, *range((row_start // step + 1) * step, row_stop, step)]
    return [(first, block[first - row_start : (first // step + 1) * step - row_start]) for first in firsts]


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
