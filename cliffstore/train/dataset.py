"""`ActivationDataset`: stored vectors as a stream of batches to train on.

An item is a stored row: a vector that several (example, position) pairs with equal prefixes share comes once an epoch.
The order is that of `epochs`: pieces of units in an order that seed and epoch decide, cut evenly between ranks and
workers, permuted in memory a buffer at a time. A worker reads `prefetch` buffers ahead of the one that it
yields, and holds so many and one more.

Where the dataset is made, listings are read, and tables if there is a condition; each worker opens the store by
itself. Only URL, options and row numbers travel to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from cliffstore.errors import ConfigError
from cliffstore.store.activations import as_tensor
from cliffstore.store.arrays import STORED_DTYPE, open_arrays, to_float32
from cliffstore.store.objects import ObjectStore
from cliffstore.store.patience import log
from cliffstore.train.buffers import Buffers, Lines
from cliffstore.train.epochs import Group, Integers, OrderSettings, batches_of_rank, epoch_of, taken_by
from cliffstore.train.items import Column, ItemQuery, find_items
from cliffstore.train.loader import ActivationLoader
from cliffstore.train.resumption import Order, Position

Batch: TypeAlias = dict[str, "torch.Tensor | list[object]"]
Notice = Callable[[str], None]


class ActivationDataset(IterableDataset):
    """The stored rows of a store as batches; each row once an epoch over all ranks and workers.

    A batch is a dict: `vectors` [B, d_model] (`z`: [B, heads, d_head]; several layers: [B, layers, ...]), `row` int64
    [B], and the columns asked for: a tensor where all values are numbers, else a list.

    Parameters
    ----------
    store_url : path or fsspec URL
    layer : one, or several of the same site, whose vectors are stacked; rows that lack one of them are left out
    where : SQL condition over `tokens t JOIN examples e`; a row that several pairs share comes once, with the columns
        of the first pair that satisfies the condition. Without condition and columns: every extracted row
    columns : of `tokens` and `examples`
    batch_rows : largest size of a batch. All ranks have the same number of batches, whose sizes differ by at most one
        (where it is 1, some may have one batch more)
    drop_last : every batch has exactly `batch_rows` rows; what is left over is left out, other rows in each epoch
    dtype : of the vectors; as they are stored by default
    buffer_rows : rows that are permuted together in memory
    piece_rows : rows that lie together in the store and in the order of the epoch, before a buffer is permuted
    rank, world_size : by default those of torch.distributed where it is initialised, else RANK and WORLD_SIZE
    prefetch : buffers that are read ahead
    notice : told what is left out; a line in the log by default

    Raises
    ------
    ConfigError
        A setting cannot be used.
    StoreError, QueryError
        There is no such store, site or layer, or nothing that satisfies the condition.
    """

    def __init__(
        self,
        store_url: str,
        *,
        layer: int | Iterable[int],
        site: str = "resid_post",
        where: str | None = None,
        model: str | None = None,
        columns: Sequence[str] = (),
        batch_rows: int = 4096,
        drop_last: bool = False,
        dtype: torch.dtype | None = None,
        shuffle: bool = True,
        seed: int = 0,
        buffer_rows: int = 65_536,
        piece_rows: int = 4096,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 1,
        storage_options: Mapping[str, object] | None = None,
        notice: Notice = log.warning,
    ) -> None:
        super().__init__()
        self.rank, self.world_size = _place(rank, world_size)
        _at_least(1, batch_rows=batch_rows, piece_rows=piece_rows)
        _at_least(batch_rows, buffer_rows=buffer_rows)
        _at_least(0, seed=seed, prefetch=prefetch)
        self._store_url, self._storage_options = str(store_url), dict(storage_options or {})
        self._dtype, self._prefetch = dtype, prefetch
        self._is_stacked = isinstance(layer, Iterable)
        layers = tuple(map(int, layer if isinstance(layer, Iterable) else (layer,)))
        query = ItemQuery(site, layers, model, where, tuple(columns), piece_rows)
        self._items = find_items(self._store_url, self._storage_options, query, notice)
        if dtype is None and len({spec.dtype for spec in self._items.specs}) > 1:
            raise ConfigError("these layers are stored with different dtypes: say dtype=torch.float32")
        settings = OrderSettings(batch_rows, buffer_rows, shuffle, seed, drop_last, self.world_size)
        self.order = Order(settings, self._items.digest)
        self._n_batches = batches_of_rank(self.n_rows, settings, self.rank)
        self._tell_of_rest(settings, notice)
        # Shared memory: what is said of the next pass reaches workers that live on.
        self._next = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._now: Position | None = None
        self._resumed: Position | None = None

    def _tell_of_rest(self, settings: OrderSettings, notice: Notice) -> None:
        if settings.drop_last:
            rest = self.n_rows - self._n_batches * settings.batch_rows * settings.world_size
            if not self._n_batches:
                raise ConfigError(
                    f"{self.n_rows:,} rows do not fill a batch of {settings.batch_rows:,} on each of "
                    f"{settings.world_size} ranks: lower batch_rows, or leave out drop_last"
                )
            if rest:
                notice(f"drop_last: {rest:,} of {self.n_rows:,} rows are left out in each epoch")
        elif self.n_rows < settings.world_size:
            raise ConfigError(f"{self.n_rows:,} rows for {settings.world_size} ranks: some would have none")

    @property
    def n_rows(self) -> int:
        """Rows that take part, over all ranks."""
        return self._items.pieces.n_items

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of `vectors`."""
        layers = (len(self._items.specs),) if self._is_stacked else ()
        return (*layers, *self._items.specs[0].row_shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of `vectors`."""
        stored = np.empty(0, STORED_DTYPE[self._items.specs[0].dtype])
        return as_tensor(stored, self._items.specs[0].dtype, self._dtype).dtype

    @property
    def batch_rows(self) -> int:
        """Rows of the largest batch."""
        return self.order.settings.batch_rows

    def __len__(self) -> int:
        """Return the number of batches that this rank has in each epoch."""
        return self._n_batches

    def loader(self, num_workers: int = 0, **options: object) -> ActivationLoader:
        """Return an `ActivationLoader` with these options."""
        return ActivationLoader(self, num_workers, **options)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of `epoch`, from its beginning."""
        _at_least(0, epoch=epoch)
        self.begin_at(Position(epoch, 0))

    def begin_at(self, position: Position) -> None:
        """Let the next pass begin at a position over all workers."""
        self._next[0], self._next[1] = position.epoch, position.batches
        self._now = None

    def state_dict(self) -> dict[str, object]:
        """Return which batches of which epoch this process has yielded, as plain values.

        In a worker that is the state of the worker, as torchdata's StatefulDataLoader asks for it. With workers, the
        state of all is that of `ActivationLoader`.
        """
        return self.order.state(self._now or self._start(), _n_workers())

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Let the next pass go on where `state` was taken.

        Raises
        ------
        ConfigError
            The state is that of a pass over other rows or in another order.
        """
        position = self.order.position(state, _n_workers())
        if get_worker_info() is None:
            self.begin_at(position)
        else:
            self._resumed, self._now = position, None

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch, or what is left of it where a state was loaded.

        A pass that is not finished is begun again by the next one; a finished one is followed by the next epoch. In
        a worker the epoch is what `set_epoch` said.

        Raises
        ------
        DamagedStoreError, StorageError
            Vectors cannot be read.
        """
        is_worker = get_worker_info() is not None
        position, self._resumed = self._start(), None
        if not is_worker:
            self.begin_at(Position(position.epoch, 0))
        epoch = epoch_of(self._items.pieces, self.order.settings, position.epoch, self.rank)
        groups = epoch.groups(position.worker or 0, _n_workers(), position.batches)
        for done, batch in enumerate(self._batches(groups), position.batches + 1):
            self._now = Position(position.epoch, done, position.worker)
            yield batch
        if not is_worker:
            self.begin_at(Position(position.epoch + 1, 0))

    def _start(self) -> Position:
        """Return where the next pass of this process begins; in a worker, in which worker's part."""
        if self._resumed is not None:
            return self._resumed
        info = get_worker_info()
        epoch, done = self._next.tolist()
        if info is None:
            return Position(epoch, done)
        # Batches are taken from the workers in turn, beginning with the first one: it takes the part that is next.
        part = (info.id + done) % info.num_workers
        return Position(epoch, taken_by(part, info.num_workers, done), part)

    def _batches(self, groups: Iterator[Group]) -> Iterator[Batch]:
        arrays = open_arrays(ObjectStore(self._store_url, self._storage_options))
        n_rows = min(self.order.settings.buffer_rows, self.n_rows)
        for lines in Buffers(self._items, arrays, n_rows, self._prefetch).batches(groups):
            columns = {name: _values(column, lines.item_B) for name, column in self._items.columns.items()}
            rows_B = self._items.rows(lines.item_B)
            yield {"vectors": self._vectors(lines), "row": torch.from_numpy(rows_B), **columns}

    def _vectors(self, lines: Lines) -> torch.Tensor:
        # NumPy copies and converts: torch would wake all its threads for each batch, which costs more than the work.
        blocks = [(block_BD, spec.dtype) for block_BD, spec in zip(lines.blocks, self._items.specs, strict=True)]
        if self._dtype == torch.float32:
            blocks = [(to_float32(block_BD, stored_as), "float32") for block_BD, stored_as in blocks]
        if len({stored_as for _, stored_as in blocks}) > 1:
            parts = [as_tensor(block_BD, stored_as, self._dtype) for block_BD, stored_as in blocks]
            return torch.stack(parts, dim=1)
        block_BD, stored_as = blocks[0]
        whole = np.stack([block_BD for block_BD, _ in blocks], axis=1) if self._is_stacked else block_BD
        return as_tensor(whole, stored_as, self._dtype)


def _values(column: Column, items_B: Integers) -> torch.Tensor | list[object]:
    if isinstance(column, np.ndarray):
        return torch.from_numpy(column[items_B])
    values: list[object] = column.take(pa.array(items_B)).to_pylist()
    return values


def _n_workers() -> int:
    info = get_worker_info()
    return 1 if info is None else int(info.num_workers)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks, as given or as the process finds itself.

    Raises
    ------
    ConfigError
        One is given without the other, or the rank is not one of them.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("rank and world_size go together: give both, or none")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            rank, world_size = int(distributed.get_rank()), int(distributed.get_world_size())
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is not one of {world_size}: ranks are counted from 0")
    return rank, world_size


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name}={value}: must be at least {least}")
