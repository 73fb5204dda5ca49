"""Where a pass over a dataset is, and what it is a pass of: the state that is kept in a checkpoint.

The state is a dict of plain values (it may be JSON). It names everything that the order depends on, so that it is never
taken up in another order. A rank is not part of it: ranks that go in step have equal states, and one serves all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cliffstore.errors import ConfigError
from cliffstore.train.epochs import OrderSettings

_CONTENTS = "contents"
_WAY_OUT = "make the dataset as it was, or begin an epoch with set_epoch"


@dataclass(frozen=True, slots=True)
class Position:
    """So many batches of an epoch are done: those of one worker, or of all where `worker` is None."""

    epoch: int
    batches: int
    worker: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """All that the order of a pass depends on, apart from epoch, rank and workers.

    Attributes
    ----------
    contents : sha256 over which rows of which arrays take part
    """

    settings: OrderSettings
    contents: str

    def state(self, position: Position, n_workers: int) -> dict[str, object]:
        """Return the state of a pass."""
        return {**asdict(position), **self._named(n_workers)}

    def position(self, state: Mapping[str, object], n_workers: int) -> Position:
        """Return the position that a state is of.

        Raises
        ------
        ConfigError
            It is no such state, or of a pass in another order.
        """
        for name, value in self._named(n_workers).items():
            if name not in state:
                raise ConfigError(f"this is no state of an ActivationDataset: it has no {name!r}")
            if state[name] != value and name == _CONTENTS:
                raise ConfigError(
                    "this state is of other rows: store, site, layer, where or piece_rows differ, or units were "
                    f"extracted since: {_WAY_OUT}"
                )
            if state[name] != value:
                raise ConfigError(f"this state is of a pass with {name}={state[name]}, not {value}: {_WAY_OUT}")
        epoch, batches, worker = (state.get(name) for name in ("epoch", "batches", "worker"))
        if not isinstance(epoch, int) or not isinstance(batches, int) or not isinstance(worker, int | None):
            raise ConfigError("this is no state of an ActivationDataset: epoch and batches must be numbers")
        return Position(epoch, batches, worker)

    def _named(self, n_workers: int) -> dict[str, object]:
        # Rows in their own order come in it from any number of workers.
        workers = {"num_workers": n_workers} if self.settings.shuffle else {}
        return {**asdict(self.settings), **workers, _CONTENTS: self.contents}
