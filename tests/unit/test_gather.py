"""Gathering rows: right for any rows, each chunk read once, memory bounded, and shared by threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import ConfigError, DamagedStoreError
from cliffstore.store import chunks, gather
from cliffstore.store.chunks import CACHE_VARIABLE, ChunkCache, default_limit
from cliffstore.store.shards import Grid, Piece

CHUNK_ROWS = 4
STORED = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32}


class Memory:
    """Arrays in memory, `key` -> [rows, ...], that count how often each of their chunks is read."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays, self.reads = arrays, Counter[tuple[str, int]]()
        self.before_it_is_there: Callable[[str], None] = lambda key: None

    def grid(self, key: str) -> Grid:
        array = self.arrays[key]
        return Grid(len(array), CHUNK_ROWS, 4 * CHUNK_ROWS, array.shape[1:], array.dtype)

    def fetch(self, key: str, pieces: Sequence[Piece]) -> Callable[[], None]:
        for first, block in pieces:
            assert first >= 0
            assert first + len(block) <= len(self.arrays[key])
            for chunk in range(first // CHUNK_ROWS, (first + len(block) - 1) // CHUNK_ROWS + 1):
                self.reads[key, chunk] += 1

        def wait() -> None:
            self.before_it_is_there(key)
            for first, block in pieces:
                block[...] = self.arrays[key][first : first + len(block)]

        return wait

    def read_range(self, key: str, row_start: int, row_stop: int) -> np.ndarray:
        block = np.empty((row_stop - row_start, *self.arrays[key].shape[1:]), self.arrays[key].dtype)
        self.fetch(key, [(row_start, block)])()
        return block


def made_up(n_rows: int, row_shape: tuple[int, ...] = (3,), dtype: str = "bfloat16", seed: int = 0) -> np.ndarray:
    """Return distinct values as they are stored."""
    values = np.random.default_rng(seed).normal(size=(n_rows, *row_shape)).astype(np.float32)
    return values.astype(ml_dtypes.bfloat16).view(np.uint16) if dtype == "bfloat16" else values.astype(STORED[dtype])


def as_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    return (stored.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else stored).astype(np.float32)


def held_bytes(cache: ChunkCache) -> int:
    return sum(pool.block.nbytes for pool in cache._pools.values())


ROWS = st.integers(1, 60).flatmap(
    lambda n_rows: st.tuples(st.just(n_rows), st.lists(st.integers(0, n_rows - 1), max_size=80))
)


@given(
    of=ROWS,
    is_sorted=st.booleans(),
    row_shape=st.sampled_from([(3,), (2, 3)]),
    dtype=st.sampled_from(sorted(STORED)),
    portion=st.integers(1, 5),
    kept=st.none() | st.integers(0, 20),
    copied=st.integers(1, 200),
)
def test_any_rows_in_any_order(
    of: tuple[int, list[int]],
    is_sorted: bool,
    row_shape: tuple[int, ...],
    dtype: str,
    portion: int,
    kept: int | None,
    copied: int,
) -> None:
    n_rows, wanted = of
    stored = made_up(n_rows, row_shape, dtype)
    rows_N = np.array(sorted(wanted) if is_sorted else wanted, dtype=np.int64)
    io = Memory({"a": stored})
    chunk_bytes = io.grid("a").chunk_bytes
    cache = None if kept is None else ChunkCache(kept * chunk_bytes)
    with (
        patch.object(gather, "_PORTION_BYTES", portion * chunk_bytes),
        patch.object(gather, "_CACHED_BYTES", copied),
    ):
        bits = gather.read_rows(io, "a", rows_N, cache=cache)
        assert all(count == 1 for count in io.reads.values())
        assert {chunk for _, chunk in io.reads} == {*(rows_N // CHUNK_ROWS).tolist()}
        wide = gather.read_float32(io, "a", dtype, rows_N, cache=cache)
    assert bits.dtype == stored.dtype
    assert np.array_equal(bits, stored[rows_N])
    assert wide.dtype == np.float32
    assert np.array_equal(wide, as_float32(stored, dtype)[rows_N])
    if cache is not None:
        assert held_bytes(cache) <= (kept or 0) * chunk_bytes
        if (kept or 0) >= len(io.reads):  # they fit: the second call found them
            assert all(count == 1 for count in io.reads.values())


@given(cuts=st.lists(st.integers(0, 50), min_size=1, max_size=9), dtype=st.sampled_from(sorted(STORED)))
def test_scan_gives_ranges_in_turn(cuts: list[int], dtype: str) -> None:
    stored = made_up(50, dtype=dtype)
    edges = [0, *sorted(cuts), 50]
    ranges = list(pairwise(edges))
    io = Memory({"a": stored})
    for asked, expected in ((None, stored), (dtype, as_float32(stored, dtype))):
        found = list(gather.scan(io, "a", ranges, asked))
        assert [first for first, _ in found] == [first for first, _ in ranges]
        assert np.array_equal(np.concatenate([block for _, block in found]), expected)


@pytest.mark.parametrize("rows", [[-1], [3, -1], [12], [0, 12, 1]])
@pytest.mark.parametrize("limit", [None, 1 << 20])
def test_rows_outside_are_refused(rows: list[int], limit: int | None) -> None:
    io = Memory({"a": made_up(12)})
    cache = None if limit is None else ChunkCache(limit)
    with pytest.raises(IndexError, match="rows 0-11"):
        gather.read_float32(io, "a", "bfloat16", np.array(rows), cache=cache)
    assert not io.reads


def test_each_chunk_is_read_once_by_many_calls_where_it_fits() -> None:
    stored = made_up(400)
    io = Memory({"a": stored})
    cache = ChunkCache(100 * io.grid("a").chunk_bytes)
    order_N = np.random.default_rng(1).permutation(400)
    for part in np.array_split(order_N, 20):
        assert np.array_equal(gather.read_rows(io, "a", part, cache=cache), stored[part])
    assert len(io.reads) == 100
    assert set(io.reads.values()) == {1}


def test_what_was_used_longest_ago_makes_room() -> None:
    io = Memory({"a": made_up(40)})
    cache = ChunkCache(3 * io.grid("a").chunk_bytes)

    def read(*wanted: int) -> list[int]:
        before = io.reads.copy()
        gather.read_rows(io, "a", np.array(wanted) * CHUNK_ROWS, cache=cache)
        return sorted(chunk for _, chunk in io.reads - before)

    assert read(0, 1, 2) == [0, 1, 2]
    assert read(0) == []
    assert read(3) == [3]  # in the place of 1 or 2, for 0 was used since
    assert read(0, 3) == []
    assert len(read(1, 2)) == 1


def test_arrays_and_forms_share_one_limit() -> None:
    arrays = {"a": made_up(40), "b": made_up(40, seed=1), "z": made_up(40, (2, 3), "float32")}
    io = Memory(arrays)
    limit = 12 * io.grid("a").chunk_bytes
    cache = ChunkCache(limit)
    for seed in range(12):
        for key, stored in arrays.items():
            rows_N = np.random.default_rng(seed).integers(0, 40, 9)
            assert np.array_equal(gather.read_rows(io, key, rows_N, cache=cache), stored[rows_N]), key
            assert held_bytes(cache) <= limit
    assert len(cache._pools) == 2


def test_threads_that_want_the_same_chunk_read_it_once() -> None:
    stored = made_up(40)
    io, is_asked, go_on = Memory({"a": stored}), threading.Semaphore(0), threading.Event()

    def slowly(key: str) -> None:
        is_asked.release()
        assert go_on.wait(30)

    io.before_it_is_there = slowly
    cache = ChunkCache(1 << 20)
    rows_N = np.arange(0, 40, 3)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(gather.read_rows, io, "a", rows_N, cache=cache) for _ in range(4)]
        assert is_asked.acquire(timeout=30)
        go_on.set()
        for future in found:
            assert np.array_equal(future.result(timeout=30), stored[rows_N])
    assert set(io.reads.values()) == {1}


def test_a_read_that_fails_is_an_error_for_who_began_it_and_is_done_again_by_others() -> None:
    stored = made_up(40)
    io, go_on, failures = Memory({"a": stored}), threading.Event(), iter([DamagedStoreError("torn")])

    def fail_once(key: str) -> None:
        assert go_on.wait(30)
        for failure in failures:
            raise failure

    io.before_it_is_there = fail_once
    cache = ChunkCache(1 << 20)
    rows_N = np.arange(0, 40, 3)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(gather.read_rows, io, "a", rows_N, cache=cache) for _ in range(3)]
        go_on.set()
        errors = [future.exception(timeout=30) for future in found]
    assert [type(error) for error in errors if error is not None] == [DamagedStoreError]
    for future, error in zip(found, errors, strict=True):
        assert error is not None or np.array_equal(future.result(), stored[rows_N])
    again = io.reads.copy()
    for _ in range(2):
        assert np.array_equal(gather.read_rows(io, "a", rows_N, cache=cache), stored[rows_N])
    assert max((io.reads - again).values(), default=0) <= 1


def test_an_interrupted_call_leaves_nothing_pinned() -> None:
    io = Memory({"a": made_up(40)})
    chunk_bytes = io.grid("a").chunk_bytes
    cache = ChunkCache(4 * chunk_bytes)

    def interrupt(key: str) -> None:
        raise KeyboardInterrupt

    io.before_it_is_there = interrupt
    with patch.object(gather, "_PORTION_BYTES", chunk_bytes), pytest.raises(KeyboardInterrupt):
        gather.read_rows(io, "a", np.arange(40)[::2], cache=cache)
    io.before_it_is_there = lambda key: None
    io.reads.clear()
    for _ in range(2):
        gather.read_rows(io, "a", np.array([0, 9, 4]), cache=cache)
    assert io.reads == {("a", 0): 1, ("a", 1): 1, ("a", 2): 1}
    assert all((pool.pins_S == 0).all() for pool in cache._pools.values())


@pytest.mark.parametrize("kept", [0, 3, 9, 40])
def test_threads_with_little_room_get_what_they_asked_for(kept: int) -> None:
    arrays = {"a": made_up(120), "b": made_up(120, seed=1)}
    io = Memory(arrays)
    chunk_bytes = io.grid("a").chunk_bytes
    cache = ChunkCache(kept * chunk_bytes)

    def read_many(seed: int) -> int:
        generator = np.random.default_rng(seed)
        for _ in range(150):
            key, rows_N = "ab"[generator.integers(2)], generator.integers(0, 120, generator.integers(1, 30))
            found = gather.read_rows(io, key, rows_N, cache=cache)
            assert np.array_equal(found, arrays[key][rows_N])
        return seed

    with patch.object(gather, "_PORTION_BYTES", 2 * chunk_bytes), ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read_many, range(6))) == list(range(6))
    assert held_bytes(cache) <= kept * chunk_bytes
    assert all((pool.pins_S == 0).all() for pool in cache._pools.values())


def test_without_memory_for_the_cache_nothing_is_kept(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = made_up(40)
    io = Memory({"a": stored})
    cache = ChunkCache(1 << 60)  # more than there are addresses
    monkeypatch.setattr(chunks, "_MOST_CHUNKS", 1 << 60)
    for _ in range(2):
        assert np.array_equal(gather.read_rows(io, "a", np.array([5, 0]), cache=cache), stored[[5, 0]])
    assert set(io.reads.values()) == {2}
    assert caplog.text.count("no memory for a cache") == 1


def test_limit_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "available_memory", lambda: 1 << 30)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert default_limit() == 256 << 20
    monkeypatch.setattr(chunks, "available_memory", lambda: 1 << 50)
    assert default_limit() == 2 << 30
    for given_text, expected in (("0", 0), ("12", 12 << 20)):
        monkeypatch.setenv(CACHE_VARIABLE, given_text)
        assert default_limit() == expected
    for wrong in ("-1", "many", "1.5", ""):
        monkeypatch.setenv(CACHE_VARIABLE, wrong)
        with pytest.raises(ConfigError, match=CACHE_VARIABLE):
            default_limit()


def test_available_memory_is_believable() -> None:
    assert 1 << 20 < chunks.available_memory() < 1 << 50
