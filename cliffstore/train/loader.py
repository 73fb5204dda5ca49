"""`ActivationLoader`: the batches of an `ActivationDataset` from processes of their own, with a state that is exact.

PyTorch's DataLoader takes batches from its workers in turn, and the number of batches of each worker is known. So the
number of batches that the training loop has had says where every worker is, however far they have read ahead.

Vectors come through a ring of shared memory for each worker, which is there once: DataLoader's own way maps new pages
for each batch, and that costs more than decoding it. Here a batch is copied out of its slot before the next one is
asked for; a worker has at most `prefetch_factor` batches under way besides, so `prefetch_factor + 2` slots never meet.
That rests on how DataLoader hands out work, so each slot is stamped, and a batch that was overwritten is an error.

Workers are started afresh by default (`forkserver`, or `spawn` where there is none): tensorstore ends a process that
was forked after it was used. They live until the loader is closed or collected, and the next epoch begins at once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cliffstore.errors import CliffstoreError, ConfigError
from cliffstore.train.resumption import Position

if TYPE_CHECKING:
    from cliffstore.train.dataset import ActivationDataset, Batch

_VECTORS = "vectors"


class ActivationLoader:
    """Iterates a dataset, one epoch a pass.

    Parameters
    ----------
    num_workers : processes that read and decode; 0: this process, by threads, which is fastest as long as the training
        loop leaves processors to them
    prefetch_factor : batches that each worker has ready
    pin_memory : copy batches to page-locked memory, for transfers to a GPU
    persistent_workers : keep workers between epochs
    multiprocessing_context : how workers are started
    """

    def __init__(
        self,
        dataset: ActivationDataset,
        num_workers: int = 0,
        *,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        persistent_workers: bool = True,
        multiprocessing_context: str | None = None,
    ) -> None:
        if num_workers < 0 or prefetch_factor < 1:
            raise ConfigError(f"num_workers={num_workers}, prefetch_factor={prefetch_factor}: must be at least 0 and 1")
        self.dataset, self._n_workers, self._pins = dataset, num_workers, pin_memory
        self._running: Any = None
        self._rings: _Rings | None = None
        options: dict[str, object] = {}
        if num_workers:
            methods = multiprocessing.get_all_start_methods()
            default = "forkserver" if "forkserver" in methods else "spawn"
            options = {
                "prefetch_factor": prefetch_factor,
                "persistent_workers": persistent_workers,
                "multiprocessing_context": multiprocessing_context or default,
            }
            self._rings = _Rings.of(dataset, num_workers, prefetch_factor + 2)
        source = _Sending(dataset, self._rings)
        self._batches = DataLoader(source, batch_size=None, num_workers=num_workers, collate_fn=_as_is, **options)
        self._next = self._now = Position(0, 0)

    def __len__(self) -> int:
        """Return the number of batches of this rank in an epoch."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of `epoch`, from its beginning."""
        self.dataset.set_epoch(epoch)
        self._next = self._now = Position(epoch, 0)

    def state_dict(self) -> dict[str, object]:
        """Return how many batches of which epoch were yielded, as plain values; one rank's state serves all ranks."""
        return self.dataset.order.state(self._now, max(self._n_workers, 1))

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Let the next pass go on where `state` was taken; what was seen is not read again, but for one buffer.

        Raises
        ------
        ConfigError
            The state is that of a pass over other rows or in another order.
        """
        self._next = self._now = self.dataset.order.position(state, max(self._n_workers, 1))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch, or what is left of it where a state was loaded.

        A pass that is not finished is begun again by the next one; a finished one is followed by the next epoch.

        Raises
        ------
        DamagedStoreError, StorageError
            Vectors cannot be read.
        """
        position = self._now = self._next
        self._next = Position(position.epoch, 0)
        self.dataset.begin_at(position)
        self._running = iter(self._batches)
        for done, sent in enumerate(self._running, position.batches + 1):
            if isinstance(sent, CliffstoreError):
                raise sent
            batch = sent.received(self._rings) if isinstance(sent, _Sent) else sent
            self._now = Position(position.epoch, done)
            yield {name: self._pinned(values) for name, values in batch.items()} if self._pins else batch
        self._next = self._now = Position(position.epoch + 1, 0)

    def _pinned(self, values: torch.Tensor | list[object]) -> torch.Tensor | list[object]:
        return values.pin_memory() if isinstance(values, torch.Tensor) else values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, also under a pass that is not finished. The next pass starts others."""
        if self._n_workers and self._running is not None:
            self._running._shutdown_workers()
        self._running = self._batches._iterator = None


@dataclass(frozen=True, slots=True)
class _Rings:
    """Shared memory for batches on their way.

    Attributes
    ----------
    vectors_WSB : [workers, slots, batch_rows, ...]
    stamps_WS : which of a worker's batches is in each slot, int64
    """

    vectors_WSB: torch.Tensor
    stamps_WS: torch.Tensor

    @classmethod
    def of(cls, dataset: ActivationDataset, n_workers: int, n_slots: int) -> _Rings:
        shape = (n_workers, n_slots, dataset.batch_rows, *dataset.row_shape)
        vectors = torch.empty(shape, dtype=dataset.dtype).share_memory_()
        return cls(vectors, torch.full((n_workers, n_slots), -1).share_memory_())


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way from a worker: where its vectors are, and the rest of it."""

    worker: int
    number: int
    n_rows: int
    rest: dict[str, npt.NDArray[np.generic] | list[object]]

    @classmethod
    def of(cls, batch: Batch, rings: _Rings, worker: int, number: int) -> _Sent:
        """Put the vectors of a worker's batch into the ring."""
        vectors = batch.pop(_VECTORS)
        assert isinstance(vectors, torch.Tensor)
        slot = number % rings.stamps_WS.shape[1]
        rings.stamps_WS[worker, slot] = number
        np.copyto(_bytes(rings.vectors_WSB[worker, slot, : len(vectors)]), _bytes(vectors))
        rest = {name: one.numpy() if isinstance(one, torch.Tensor) else one for name, one in batch.items()}
        return cls(worker, number, len(vectors), rest)

    def received(self, rings: _Rings | None) -> Batch:
        """Return the batch, independent of the ring. Raises `CliffstoreError` where it was overwritten."""
        assert rings is not None
        slot = self.number % rings.stamps_WS.shape[1]
        lent = rings.vectors_WSB[self.worker, slot, : self.n_rows]
        vectors = torch.from_numpy(_bytes(lent).copy()).view(lent.dtype)
        if int(rings.stamps_WS[self.worker, slot]) != self.number:
            raise CliffstoreError(
                "a worker overwrote a batch that was not taken yet: this version of torch hands out work in another "
                "order; use num_workers=0"
            )
        rest = {name: torch.from_numpy(one) if isinstance(one, np.ndarray) else one for name, one in self.rest.items()}
        return {_VECTORS: vectors, **rest}


class _Sending(IterableDataset):
    """A dataset as workers send it. An error is its last item, and arrives as it is, not as the text of a traceback."""

    def __init__(self, dataset: ActivationDataset, rings: _Rings | None) -> None:
        super().__init__()
        self._dataset, self._rings = dataset, rings

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch | _Sent | CliffstoreError]:
        info = get_worker_info()
        try:
            for number, batch in enumerate(self._dataset):
                yield batch if self._rings is None else _Sent.of(batch, self._rings, info.id, number)
        except CliffstoreError as error:
            yield error


def _bytes(vectors: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return the memory of a tensor, whose dtype NumPy may lack. NumPy copies: torch would wake threads for it."""
    return vectors.view(torch.uint8).numpy()


def _as_is(batch: Batch) -> Batch:
    return batch
