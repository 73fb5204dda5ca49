"""Arrays through tensorstore: on a local disk, on S3 and on Google Cloud Storage.

Whole chunks are decoded straight into memory of the caller, on tensorstore's threads; it keeps none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from cliffstore.access import TENSORSTORE_RETRIES, tensorstore_environment
from cliffstore.errors import CliffstoreError
from cliffstore.store.array_io import ArrayIO, RangeReader, Waiting, unreadable
from cliffstore.store.objects import ObjectStore, answers_ranges
from cliffstore.store.shards import Grid, Piece, ShardCheck, Vectors
from cliffstore.store.zarr_arrays import ZarrArrays

T = TypeVar("T")

_METADATA = "zarr.json"


class TensorstoreArrays(RangeReader):
    """Arrays of a store that tensorstore reaches as `kvstore`."""

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
            raise error if isinstance(error, CliffstoreError) else unreadable(key, error) from None

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
