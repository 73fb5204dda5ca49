"""The order of a pass: whatever the numbers, every item once, evenly shared out, and reproducible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.train.epochs import (
    Epoch,
    Group,
    OrderSettings,
    Pieces,
    batches_of_rank,
    epoch_of,
    even_bounds,
    taken_by,
)

SETTINGS = OrderSettings(batch_rows=4, buffer_rows=16, shuffle=True, seed=0, drop_last=False, world_size=2)


def items_of(group: Group) -> list[list[int]]:
    """Return the items of each batch of a group."""
    lines = group.items()[group.order_R]
    return [lines[start:stop].tolist() for start, stop in group.bounds]


def batches_of(epoch: Epoch, worker: int = 0, n_workers: int = 1, skip: int = 0) -> list[list[int]]:
    return [batch for group in epoch.groups(worker, n_workers, skip) for batch in items_of(group)]


def in_turn(epoch: Epoch, n_workers: int) -> list[list[int]]:
    """Return batches as they are taken from workers in turn, leaving out those that have none left."""
    left = [batches_of(epoch, worker, n_workers) for worker in range(n_workers)]
    return [
        left[worker][turn] for turn in range(len(left[0])) for worker in range(n_workers) if turn < len(left[worker])
    ]


def made_pieces(counts: list[int], gap: int = 0) -> Pieces:
    count_P = np.array(counts, dtype=np.int64)
    return Pieces(np.cumsum(count_P + gap) - count_P - gap, count_P)


def items_in(pieces: Pieces) -> list[int]:
    return [
        item
        for first, count in zip(pieces.first_P.tolist(), pieces.count_P.tolist(), strict=True)
        for item in range(first, first + count)
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pieces, OrderSettings, int, int]:
    """Pieces, settings, number of workers, epoch."""
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    batch_rows = draw(st.integers(1, 12))
    settings = OrderSettings(
        batch_rows=batch_rows,
        buffer_rows=batch_rows + draw(st.integers(0, 40)),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
        drop_last=draw(st.booleans()),
        world_size=draw(st.integers(1, 5)),
    )
    return made_pieces(counts, draw(st.integers(0, 5))), settings, draw(st.integers(1, 5)), draw(st.integers(0, 3))


@given(cases())
def test_every_item_comes_once_over_ranks_and_workers(case: tuple[Pieces, OrderSettings, int, int]) -> None:
    pieces, settings, n_workers, number = case
    epochs = [epoch_of(pieces, settings, number, rank) for rank in range(settings.world_size)]
    seen = [batch for epoch in epochs for worker in range(n_workers) for batch in batches_of(epoch, worker, n_workers)]
    items = sorted(item for batch in seen for item in batch)
    assert len(set(items)) == len(items)
    assert all(1 <= len(batch) <= settings.batch_rows for batch in seen)
    if settings.drop_last:
        assert set(items) <= set(items_in(pieces))
        assert all(len(batch) == settings.batch_rows for batch in seen)
        assert pieces.n_items - len(items) < settings.batch_rows * settings.world_size
    else:
        assert items == items_in(pieces)


@given(cases())
def test_ranks_go_in_step(case: tuple[Pieces, OrderSettings, int, int]) -> None:
    pieces, settings, n_workers, number = case
    epochs = [epoch_of(pieces, settings, number, rank) for rank in range(settings.world_size)]
    sizes = [[len(batch) for batch in in_turn(epoch, n_workers)] for epoch in epochs]
    assert [len(one) for one in sizes] == [
        batches_of_rank(pieces.n_items, settings, rank) for rank in range(len(sizes))
    ]
    # Batches of one row cannot be evened out, nor can fewer rows than ranks.
    if settings.drop_last or (settings.batch_rows > 1 and pieces.n_items >= settings.world_size):
        assert len({len(one) for one in sizes}) == 1
        batch_sizes = [size for one in sizes for size in one]
        assert not batch_sizes or max(batch_sizes) - min(batch_sizes) <= 1


@given(cases(), st.data())
def test_a_pass_goes_on_behind_any_batch(case: tuple[Pieces, OrderSettings, int, int], data: st.DataObject) -> None:
    pieces, settings, n_workers, number = case
    epoch = epoch_of(pieces, settings, number, 0)
    whole = in_turn(epoch, n_workers)
    done = data.draw(st.integers(0, len(whole)))
    taken = [taken_by(worker, n_workers, done) for worker in range(n_workers)]
    assert sum(taken) == done
    parts = [batches_of(epoch, worker, n_workers, taken[worker]) for worker in range(n_workers)]
    turned = [parts[(worker + done) % n_workers] for worker in range(n_workers)]
    rest = [
        turned[worker][turn]
        for turn in range(max(map(len, turned)))
        for worker in range(n_workers)
        if turn < len(turned[worker])
    ]
    assert rest == whole[done:]


@given(cases())
def test_groups_are_bounded_and_skipped_without_being_made(case: tuple[Pieces, OrderSettings, int, int]) -> None:
    pieces, settings, n_workers, number = case
    epoch = epoch_of(pieces, settings, number, 0)
    groups = list(epoch.groups(0, n_workers))
    assert all(len(group.order_R) <= settings.buffer_rows for group in groups)
    assert all(sum(count for _, count in group.spans) == len(group.order_R) for group in groups)
    if len(groups) > 1:
        behind_the_first = next(epoch.groups(0, n_workers, skip=len(groups[0].bounds)))
        assert behind_the_first.spans == groups[1].spans


@given(cases())
def test_a_group_reads_runs_of_whole_pieces(case: tuple[Pieces, OrderSettings, int, int]) -> None:
    """So a chunk is read twice only where a worker's part, a batch of unshuffled rows or a buffer ends in it."""
    pieces, settings, n_workers, number = case
    whole = set(zip(pieces.first_P.tolist(), pieces.count_P.tolist(), strict=True))
    for worker in range(n_workers):
        for group in epoch_of(pieces, settings, number, 0).groups(worker, n_workers):
            if settings.shuffle or n_workers == 1:
                assert len(set(group.spans) - whole) <= 2


@given(cases())
def test_rows_in_their_own_order_do_not_depend_on_workers(case: tuple[Pieces, OrderSettings, int, int]) -> None:
    pieces, settings, n_workers, number = case
    settings = replace(settings, shuffle=False, drop_last=False, world_size=1)
    epoch = epoch_of(pieces, settings, number, 0)
    assert [item for batch in in_turn(epoch, n_workers) for item in batch] == items_in(pieces)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    pieces = made_pieces([8] * 32)

    def order(seed: int = 0, number: int = 0) -> list[list[int]]:
        return batches_of(epoch_of(pieces, replace(SETTINGS, seed=seed), number, 0))

    assert order() == order()
    assert order() != order(number=1)
    assert order() != order(seed=1)
    assert order(seed=1) != order(number=1)


def test_order_is_what_it_has_always_been() -> None:
    """A state that was saved by an earlier version goes on in the same order."""
    epoch = epoch_of(made_pieces([4, 4, 4, 3]), replace(SETTINGS, seed=7), 3, 1)
    assert batches_of(epoch) == [[9, 11, 5, 7], [6, 10, 8]]


def test_a_batch_mixes_places_of_the_store() -> None:
    pieces = made_pieces([16] * 64)
    settings = replace(SETTINGS, batch_rows=32, buffer_rows=256, world_size=1)
    batch = np.array(batches_of(epoch_of(pieces, settings, 0, 0))[0])
    # 32 rows of a buffer of 16 pieces: most of its pieces are in the batch
    assert len(set((batch // 16).tolist())) > 8


@pytest.mark.parametrize(("n", "parts"), [(0, 3), (2, 3), (7, 3), (9, 3), (5, 1)])
def test_even_bounds(n: int, parts: int) -> None:
    sizes = np.diff(even_bounds(n, parts)).tolist()
    assert sum(sizes) == n
    assert len(sizes) == parts
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
