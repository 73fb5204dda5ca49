"""`ActivationLoader`: the batches of an `ActivationDataset` from processes of their own, with a state that is exact.

PyTorch's DataLoader takes batches from its workers in turn, and the number of batches of each worker is known. So the
number of batches that the training loop has had says where every worker is, however far they have read ahead.

Workers are started afresh by default (`forkserver`, or `spawn` where there is none): tensorstore ends a process that
was forked after it was used. They live until the loader is closed or collected, and the next epoch begins at once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, IterableDataset

from cliffstore.errors import CliffstoreError, ConfigError
from cliffstore.store.resumption import Position

if TYPE_CHECKING:
    from cliffstore.store.dataset import ActivationDataset, Batch


class ActivationLoader:
    """Iterates a dataset, one epoch a pass.

    Parameters
    ----------
    num_workers : processes that read and decode; 0: this process, by threads
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
        self.dataset, self._n_workers = dataset, num_workers
        options: dict[str, object] = {}
        if num_workers:
            methods = multiprocessing.get_all_start_methods()
            default = "forkserver" if "forkserver" in methods else "spawn"
            options = {
                "prefetch_factor": prefetch_factor,
                "persistent_workers": persistent_workers,
                "multiprocessing_context": multiprocessing_context or default,
            }
        self._batches = DataLoader(
            _Told(dataset),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_as_is,
            **options,
        )
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
        for done, batch in enumerate(self._batches, position.batches + 1):
            if isinstance(batch, CliffstoreError):
                raise batch
            self._now = Position(position.epoch, done)
            yield batch
        self._next = self._now = Position(position.epoch + 1, 0)

    def close(self) -> None:
        """End the workers."""
        self._batches._iterator = None


class _Told(IterableDataset):
    """A dataset whose errors are its last item: they arrive as they are, not as the text of a traceback."""

    def __init__(self, dataset: ActivationDataset) -> None:
        super().__init__()
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch | CliffstoreError]:
        try:
            yield from self._dataset
        except CliffstoreError as error:
            yield error


def _as_is(batch: Batch) -> Batch:
    return batch
