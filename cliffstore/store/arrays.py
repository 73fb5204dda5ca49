"""Arrays: Zarr v3, one a (model, site, layer), one shard object a unit.

zarr-python writes the metadata. Vectors go through tensorstore on local disks, S3 and Google Cloud Storage, where it
is several times faster, and through zarr-python over fsspec for every other scheme; both sit behind `ArrayIO`.
bfloat16 is kept as its raw bits in uint16, since zarr-python has no bfloat16; the attribute `cliffstore.dtype` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import MemoryStore

from cliffstore.access import is_only_for_fsspec, kvstore
from cliffstore.schema import Dtype
from cliffstore.store import layout
from cliffstore.store.array_io import ArrayIO as ArrayIO
from cliffstore.store.objects import ObjectStore
from cliffstore.store.patience import log
from cliffstore.store.shards import Vectors as Vectors
from cliffstore.store.tensorstore_arrays import TensorstoreArrays
from cliffstore.store.zarr_arrays import ZarrArrays, zarr_store

STORED_DTYPE: dict[str, str] = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
_CACHED_BYTES = 1 << 20
"""What is converted at once, so that it is still in the processor's cache."""


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


def create_arrays(
    objects: ObjectStore, specs: Sequence[ArraySpec], *, n_rows: int, chunk_rows: int, unit_rows: int
) -> None:
    """Create the groups and arrays of a capture. An array that is there already grows where it is too short.

    Several processes may do so at once, each with the same content.
    """

    def create() -> None:
        overtaken = 0
        while True:
            try:
                _create_arrays(zarr_store(objects), specs, n_rows, chunk_rows, unit_rows)
                return
            except (ContainsArrayError, ContainsGroupError):
                # Another process has just made one, which is found now. There are no more to be overtaken at than:
                overtaken += 1
                if overtaken > 2 * len(specs) + 3:
                    raise

    objects.patiently(create)


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
