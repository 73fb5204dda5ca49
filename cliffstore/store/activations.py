"""`Activations`: the vectors of (example, position) pairs that SQL chose, each beside its ids.

What is chosen is a table in memory, some 30 bytes a line; vectors are read when they are asked for, whole or in batches
of bounded size. Each chunk of the array is read once a call, or once a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.errors import StoreError
from cliffstore.store import gather
from cliffstore.store.arrays import STORED_DTYPE, ArraySpec, Vectors, to_float32
from cliffstore.store.catalog import Catalog
from cliffstore.store.chunks import available_memory
from cliffstore.store.pairs import IN_TURN, PAIR_COLUMNS, Notice, find_pairs
from cliffstore.store.reader import StoreReader

if TYPE_CHECKING:
    import torch


def find_activations(
    catalog: Catalog,
    site: str,
    layer: int,
    *,
    where: str | None = None,
    model: str | None = None,
    columns: Sequence[str] = ("label",),
    order: str = IN_TURN,
    limit: int | None = None,
    notice: Notice,
) -> Activations:
    """Return the activations of the pairs that satisfy a condition; no vector is read. See `Store.activations`."""
    capture, spec = catalog.reader.find_array(site, layer, model)
    table = find_pairs(
        catalog,
        [capture.capture],
        where=where,
        columns=[*PAIR_COLUMNS, *columns],
        order=order,
        limit=limit,
        notice=notice,
    )
    return Activations(catalog.reader, spec, table)


@dataclass(frozen=True, slots=True)
class ActivationBatch:
    """Some lines of `Activations` with their vectors.

    Attributes
    ----------
    table : the lines
    stored : their vectors as they are stored, [lines, ...]; bfloat16 as its bits in uint16
    """

    table: pa.Table
    stored: Vectors
    dtype: str

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        return self.table["row"].to_numpy()

    def numpy(self) -> npt.NDArray[np.float32]:
        """Return the vectors as float32 [lines, ...]."""
        return to_float32(self.stored, self.dtype)

    def torch(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the vectors as a tensor [lines, ...], as they are stored or converted."""
        return as_tensor(self.stored, self.dtype, dtype)


class Activations:
    """The vectors of one layer for the lines of `table`, which are read when they are asked for.

    Attributes
    ----------
    table : Arrow table with `example`, `id`, `position`, `to_decision`, `segment`, `row` and the columns asked for;
        texts are dictionaries
    """

    def __init__(self, reader: StoreReader, spec: ArraySpec, table: pa.Table) -> None:
        self._reader, self._spec, self.table = reader, spec, table

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"Activations({self._spec.alias}/{self._spec.name}, {self.shape}, {self.dtype}, {self.nbytes:,} bytes)"

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The store's row of each line, int64 [N]; lines with equal prefixes of tokens share one."""
        return self.table["row"].to_numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all vectors: (N, d_model); (N, heads, d_head) for the site `z`."""
        return (len(self), *self._spec.row_shape)

    @property
    def dtype(self) -> str:
        """What is stored: bfloat16, float16 or float32."""
        return self._spec.dtype

    @property
    def nbytes(self) -> int:
        """Size of all vectors as they are stored."""
        return len(self) * self._spec.bytes_per_row

    def numpy(self) -> npt.NDArray[np.float32]:
        """Return all vectors as float32, [N, d_model].

        Raises
        ------
        StoreError
            They are larger than the memory that is free.
        """
        self._check_memory(np.dtype(np.float32))
        return gather.read_float32(self._reader.arrays, self._spec.key, self.dtype, self.rows)

    def torch(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return all vectors as a tensor [N, d_model], as they are stored or converted. Errors as for `numpy`."""
        self._check_memory(np.dtype(STORED_DTYPE[self.dtype]))
        return as_tensor(self._reader.stored_vectors(self._spec, self.rows), self.dtype, dtype)

    def batches(self, rows: int = 8192) -> Iterator[ActivationBatch]:
        """Yield all lines in turn with their vectors, at most `rows` at a time; the next batch is read meanwhile.

        Memory holds three batches at most: the caller's, the next one, and one more while it is put together.
        """
        if rows < 1:
            raise StoreError(f"batches of {rows} rows: at least one is needed")
        with ThreadPoolExecutor(1, thread_name_prefix="activations") as pool:
            ahead = pool.submit(self._batch, 0, rows)
            for start in range(0, len(self), rows):
                batch = ahead.result()
                if start + rows < len(self):
                    ahead = pool.submit(self._batch, start + rows, rows)
                yield batch

    def _batch(self, start: int, rows: int) -> ActivationBatch:
        lines = self.table.slice(start, rows)
        return ActivationBatch(lines, self._reader.stored_vectors(self._spec, lines["row"].to_numpy()), self.dtype)

    def _check_memory(self, dtype: np.dtype[np.generic]) -> None:
        needed, free = int(np.prod(self.shape)) * dtype.itemsize, available_memory()
        if needed > free:
            raise StoreError(
                f"{len(self):,} vectors of {self._spec.name} take {needed / 1e9:.1f} GB as {dtype.name} and "
                f"{free / 1e9:.1f} GB of memory are free: read them with .batches(), or ask for fewer"
            )


def as_tensor(stored: Vectors, stored_as: str, dtype: torch.dtype | None) -> torch.Tensor:
    """Return stored vectors as a tensor over the same memory, or converted where another dtype is asked for."""
    import torch

    tensor = torch.from_numpy(stored)
    if stored_as == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    return tensor if dtype is None else tensor.to(dtype)
