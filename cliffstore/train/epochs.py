"""In which order a pass over many rows visits them: pure functions of numbers, which nothing needs to be read for.

Rows are items here. A *piece* is a run of items that are read together and share no chunk with other pieces. All
pieces, in the order of the epoch, make up the *tape*. It is cut evenly between ranks, a rank's part evenly into
batches, and these are shared out to the workers of the rank. A worker takes some consecutive batches at a time, a
*group*: it reads the items of the group, and permutes them in memory.

So each item comes once an epoch, whatever the numbers; all ranks have the same number of batches, whose sizes differ
by at most one; a group reads whole pieces but for the ends of a worker's part of the tape.

Permutations come from NumPy's legacy generator, whose streams never change: a pass that is taken up by another version
of NumPy goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """What the order depends on besides the items.

    Attributes
    ----------
    batch_rows : largest size of a batch; with `drop_last` every batch has it
    buffer_rows : items that are permuted together; at least `batch_rows`
    shuffle : otherwise items come in the order of the pieces, whatever the number of workers
    drop_last : leave out what does not fill a batch on every rank: fewer than `batch_rows` x `world_size` items
    """

    batch_rows: int
    buffer_rows: int
    shuffle: bool
    seed: int
    drop_last: bool
    world_size: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs of items: those of piece p are first_P[p] ... first_P[p] + count_P[p] - 1; int64 [P]."""

    first_P: Integers
    count_P: Integers

    @property
    def n_items(self) -> int:
        return int(self.count_P.sum())


@dataclass(frozen=True, slots=True)
class Group:
    """Batches that are read together.

    Attributes
    ----------
    spans : first item and number of items of what is to be read, ascending
    order_R : which of these items each line of the group is, int64 [items]
    bounds : the lines of each batch
    """

    spans: tuple[tuple[int, int], ...]
    order_R: Integers
    bounds: tuple[tuple[int, int], ...]

    def items(self) -> Integers:
        """Return the items, ascending, int64 [items]."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.spans])


@dataclass(frozen=True, slots=True)
class Epoch:
    """One rank's part of one pass.

    Attributes
    ----------
    order_P : piece numbers in the order of the tape
    bounds_B : where on the tape each batch of the rank begins, and the end of the last one; int64 [batches + 1]
    """

    pieces: Pieces
    settings: OrderSettings
    number: int
    order_P: Integers
    tape_P: Integers
    bounds_B: Integers

    @property
    def n_batches(self) -> int:
        return len(self.bounds_B) - 1

    def batches_of(self, worker: int, n_workers: int) -> Integers:
        """Return which of the rank's batches a worker yields, in turn; int64.

        Shuffled, they lie next to each other on the tape; else they are every n-th one, so that batches taken from
        the workers in turn come in the order of the tape.
        """
        if not self.settings.shuffle:
            return np.arange(worker, self.n_batches, n_workers)
        bounds = even_bounds(self.n_batches, n_workers)
        return np.arange(bounds[worker], bounds[worker + 1])

    def groups(self, worker: int, n_workers: int, skip: int = 0) -> Iterator[Group]:
        """Yield the groups of a worker, without its first `skip` batches.

        Whole groups are skipped; of the group that `skip` ends in, all is read and the first batches are left out.
        """
        batches = self.batches_of(worker, n_workers)
        a_time = max(self.settings.buffer_rows // self.settings.batch_rows, 1)
        bounds = even_bounds(len(batches), -(-len(batches) // a_time))
        for start, stop in pairwise(bounds.tolist()):
            if stop > skip:
                group = self._group(batches[start:stop])
                yield replace(group, bounds=group.bounds[max(skip - start, 0) :])

    def _group(self, batches: Integers) -> Group:
        starts, stops = self.bounds_B[batches], self.bounds_B[batches + 1]
        ranges = _joined(zip(starts.tolist(), stops.tolist(), strict=True))
        spans = tuple(sorted(span for start, stop in ranges for span in self._spans(start, stop)))
        ends = np.cumsum(stops - starts)
        order_R = np.arange(ends[-1])
        if self.settings.shuffle:
            order_R = _random(self.settings.seed, self.number, 1, int(starts[0])).permutation(order_R)
        return Group(spans, order_R, tuple(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)))

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield what lies on the tape from `start` to `stop`, piece by piece."""
        at = int(np.searchsorted(self.tape_P, start, side="right")) - 1
        while start < stop:
            piece, behind = self.order_P[at], int(min(self.tape_P[at + 1], stop))
            if behind > start:
                yield int(self.pieces.first_P[piece]) + start - int(self.tape_P[at]), behind - start
            start, at = max(start, behind), at + 1


def epoch_of(pieces: Pieces, settings: OrderSettings, number: int, rank: int) -> Epoch:
    """Return a rank's part of a pass."""
    order_P = np.arange(len(pieces.first_P))
    if settings.shuffle:
        order_P = _random(settings.seed, number, 0).permutation(order_P)
    tape_P = np.concatenate([[0], np.cumsum(pieces.count_P[order_P])]).astype(np.int64)
    return Epoch(pieces, settings, number, order_P, tape_P, _batch_bounds(pieces.n_items, settings, rank))


def batches_of_rank(n_items: int, settings: OrderSettings, rank: int) -> int:
    """Return the number of batches that a rank has in each pass."""
    return len(_batch_bounds(n_items, settings, rank)) - 1


def _batch_bounds(n_items: int, settings: OrderSettings, rank: int) -> Integers:
    if settings.drop_last:
        n_batches = n_items // settings.world_size // settings.batch_rows
        return (rank * n_batches + np.arange(n_batches + 1)) * settings.batch_rows
    ranks = even_bounds(n_items, settings.world_size)
    start, stop = int(ranks[rank]), int(ranks[rank + 1])
    # The first rank has most items. A rank with an item less has as many batches, unless these have one item each.
    n_batches = min(-(-int(ranks[1]) // settings.batch_rows), stop - start)
    return start + even_bounds(stop - start, n_batches)


def even_bounds(n: int, parts: int) -> Integers:
    """Return where each of `parts` parts of n things begins, and n; the first n mod parts have one more."""
    part = np.arange(parts + 1)
    return part * (n // max(parts, 1)) + np.minimum(part, n % max(parts, 1))


def taken_by(worker: int, n_workers: int, n_taken: int) -> int:
    """Return how many batches came from a worker, after `n_taken` were taken from all of them in turn."""
    return (n_taken - worker + n_workers - 1) // n_workers


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with those in one that lie next to each other: batches end anywhere in a chunk."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def _random(*key: int) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))
