"""Decoded chunks in bounded memory: only while they are copied (`Passing`), or kept between calls (`ChunkCache`).

Chunks of one form (shape and dtype) lie in one block of memory, slot by slot, so that rows of many chunks are taken
from it by one index. A slot in use is pinned; a new chunk takes the slot that was used longest ago. Threads that want
the same chunk at the same moment read it once: the later waits for the earlier. A thread waits for what it began
itself first, in the order in which it began, so none waits in a circle.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Lock
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError
from cliffstore.store.array_io import ArrayIO, Waiting
from cliffstore.store.patience import log
from cliffstore.store.shards import Grid, Piece, Vectors

Numbers: TypeAlias = npt.NDArray[np.int64]

CACHE_VARIABLE = "CLIFFSTORE_CHUNK_CACHE_MB"
_SHARE_OF_MEMORY, _MOST_BYTES = 0.25, 2 << 30
_MOST_CHUNKS = 1 << 20
"""Of one form: beside each there are some thirty bytes about it."""


class Lease(Protocol):
    """Chunks that stay where they are until they are released.

    Attributes
    ----------
    block : [slots, chunk rows, ...]
    slot_C : where in it each chunk lies, once `wait` has returned
    """

    block: Vectors
    slot_C: Numbers

    def wait(self) -> None:
        """Return once all chunks are there. Errors as for `ArrayIO.fetch`."""

    def release(self) -> None:
        """Let go, waited for or not."""


class Holder(Protocol):
    """Where decoded chunks lie."""

    def lease(self, io: ArrayIO, key: str, chunk_C: Numbers) -> Lease:
        """Begin to read those chunks that are not there; `chunk_C` is sorted and distinct."""


class Passing:
    """Memory that keeps nothing, for two leases at a time of at most `n_chunks`, of one thread."""

    def __init__(self, grid: Grid, n_chunks: int, at_once: int = 2) -> None:
        shape = (n_chunks, grid.chunk_rows, *grid.row_shape)
        self._blocks: list[Vectors] = [np.empty(shape, dtype=grid.dtype) for _ in range(at_once)]

    def lease(self, io: ArrayIO, key: str, chunk_C: Numbers) -> Lease:
        block, slot_C = self._blocks.pop(), np.arange(len(chunk_C))
        waiting = io.fetch(key, _pieces(io.grid(key), chunk_C, slot_C, block))
        return _Passed(self._blocks, block, slot_C, waiting)


class _Passed:
    def __init__(self, blocks: list[Vectors], block: Vectors, slot_C: Numbers, waiting: Waiting) -> None:
        self._blocks, self.block, self.slot_C, self._waiting = blocks, block, slot_C, waiting

    def wait(self) -> None:
        self._waiting()

    def release(self) -> None:
        self._blocks.append(self.block)


class ChunkCache:
    """Keeps the decoded chunks that were used last, of all arrays of a store, for all threads.

    Parameters
    ----------
    limit : bytes; by default what CLIFFSTORE_CHUNK_CACHE_MB says, or a quarter of the memory that is available when
        this is made, at most 2 GiB. Memory is taken as chunks come.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = default_limit() if limit is None else limit
        self._lock = Lock()
        self._pools: dict[tuple[object, ...], _Pool] = {}

    def lease(self, io: ArrayIO, key: str, chunk_C: Numbers) -> Lease:
        grid = io.grid(key)
        with self._lock:
            kept = self._pool(grid).lease(key, grid, chunk_C)
        if kept is None:  # no room for so many beside those in use
            return Passing(grid, len(chunk_C), 1).lease(io, key, chunk_C)
        kept.begin(io, key, grid)
        return kept

    def _pool(self, grid: Grid) -> _Pool:
        """Return the memory of chunks of one form. All forms share the limit evenly; a new one empties the others."""
        form = (grid.chunk_rows, grid.row_shape, grid.dtype)
        if form not in self._pools:
            share = self._limit // (len(self._pools) + 1)
            self._pools = {one: _Pool(self._lock, pool.grid, share) for one, pool in self._pools.items()}
            self._pools[form] = _Pool(self._lock, grid, share)
        elif self._pools[form].is_spoilt:
            self._pools[form] = _Pool(self._lock, grid, self._limit // len(self._pools))
        return self._pools[form]


class _Load:
    """Chunks that a thread has begun to read."""

    def __init__(self) -> None:
        self.done, self.failed = Event(), False


class _Pool:
    """Slots for chunks of one form. Its methods are called under the lock."""

    def __init__(self, lock: Lock, grid: Grid, limit: int) -> None:
        self.lock, self.grid, self.is_spoilt = lock, grid, False
        n_slots = min(limit // grid.chunk_bytes, _MOST_CHUNKS)
        shape = (grid.chunk_rows, *grid.row_shape)
        try:
            self.block: Vectors = np.empty((n_slots, *shape), dtype=grid.dtype)
        except MemoryError:
            log.warning("no memory for a cache of %d bytes: chunks are read again by each call that needs them", limit)
            n_slots, self.block = 0, np.empty((0, *shape), dtype=grid.dtype)
        self._n_slots, self._n_taken, self._clock = n_slots, 0, 0
        self.pins_S = np.zeros(n_slots, dtype=np.int32)
        self.load_S = np.full(n_slots, None, dtype=np.object_)
        self._used_S = np.zeros(n_slots, dtype=np.int64)
        self._owner_S = np.zeros(n_slots, dtype=np.int64)
        self._chunk_S = np.zeros(n_slots, dtype=np.int64)
        self._owners: dict[str, int] = {}
        self._slots: list[Numbers] = []

    def lease(self, key: str, grid: Grid, chunk_C: Numbers) -> _Kept | None:
        """Pin the chunks that are there and slots for those that are not; None where there is no room."""
        if key not in self._owners:
            self._owners[key] = len(self._slots)
            self._slots.append(np.full(-(-grid.n_rows // grid.chunk_rows), -1, dtype=np.int64))
        owner = self._owners[key]
        slot_C = self._slots[owner][chunk_C]
        is_new_C = slot_C < 0
        found = slot_C[~is_new_C]
        self.pins_S[found] += 1
        taken = self._take(int(is_new_C.sum()))
        if taken is None:
            self.pins_S[found] -= 1
            return None
        load = _Load()
        earlier = {*self.load_S[found]} - {None}
        slot_C[is_new_C] = taken
        self._slots[owner][chunk_C] = slot_C
        self._owner_S[taken], self._chunk_S[taken] = owner, chunk_C[is_new_C]
        self.pins_S[taken] += 1
        self.load_S[taken] = load
        self._clock += 1
        self._used_S[slot_C] = self._clock
        return _Kept(self, chunk_C, slot_C, is_new_C, load, earlier)

    def _take(self, n: int) -> Numbers | None:
        """Return `n` slots that hold nothing now, sorted: fresh ones first, then those used longest ago."""
        n_fresh = min(n, self._n_slots - self._n_taken)
        fresh = np.arange(self._n_taken, self._n_taken + n_fresh)
        if n_fresh < n:
            idle = np.flatnonzero(self.pins_S[: self._n_taken] == 0)
            if len(idle) < n - n_fresh:
                return None
            old = np.sort(idle[np.argpartition(self._used_S[idle], n - n_fresh - 1)[: n - n_fresh]])
            for owner, slots in enumerate(self._slots):
                own = old[self._owner_S[old] == owner]
                slots[self._chunk_S[own]] = -1
            fresh = np.concatenate([old, fresh])
        self._n_taken += n_fresh
        return fresh


class _Kept:
    """A lease of a pool's slots. Where reading fails, the pool is given up: it may still be written to."""

    def __init__(
        self, pool: _Pool, chunk_C: Numbers, slot_C: Numbers, is_new_C: npt.NDArray[np.bool_], own: _Load,
        earlier: set[_Load],
    ) -> None:  # fmt: skip
        self.block, self.slot_C = pool.block, slot_C
        self._pool, self._chunk_C, self._is_new_C, self._own, self._earlier = pool, chunk_C, is_new_C, own, earlier
        self._pinned = slot_C

    def begin(self, io: ArrayIO, key: str, grid: Grid) -> None:
        self._io, self._key = io, key
        new = self._is_new_C
        try:
            pieces = _pieces(grid, self._chunk_C[new], self._pinned[new], self.block)
            self._waiting = io.fetch(key, pieces) if pieces else None
        except BaseException:
            self.release()
            raise

    def wait(self) -> None:
        try:
            if self._waiting is not None:
                self._waiting()
        except BaseException:
            self._settle(failed=True)
            raise
        self._settle(failed=False)
        for load in self._earlier:
            load.done.wait()
        if any(load.failed for load in self._earlier):  # tell of it by an error of our own, if it is still there
            lease = Passing(self._pool.grid, len(self._chunk_C), 1).lease(self._io, self._key, self._chunk_C)
            lease.wait()
            self.block, self.slot_C = lease.block, lease.slot_C

    def release(self) -> None:
        if not self._own.done.is_set():
            self._settle(failed=True)
        with self._pool.lock:
            self._pool.pins_S[self._pinned] -= 1

    def _settle(self, *, failed: bool) -> None:
        with self._pool.lock:
            self._pool.load_S[self._pinned[self._is_new_C]] = None
            self._pool.is_spoilt = self._pool.is_spoilt or failed
        self._own.failed = failed
        self._own.done.set()


def _pieces(grid: Grid, chunk_C: Numbers, slot_C: Numbers, block: Vectors) -> list[Piece]:
    """Return what to read for chunks into their slots, neighbours together."""
    flat = block.reshape(-1, *grid.row_shape)
    ends = np.flatnonzero((np.diff(chunk_C) != 1) | (np.diff(slot_C) != 1)) + 1
    pieces = []
    for first, last in zip([0, *ends.tolist()], [*ends.tolist(), len(chunk_C)], strict=True):
        if first == last:
            continue
        row, slot = int(chunk_C[first]) * grid.chunk_rows, int(slot_C[first]) * grid.chunk_rows
        n_rows = min((last - first) * grid.chunk_rows, grid.n_rows - row)
        pieces.append((row, flat[slot : slot + n_rows]))
    return pieces


def default_limit() -> int:
    """Return how many bytes of decoded chunks are kept.

    Raises
    ------
    ConfigError
        CLIFFSTORE_CHUNK_CACHE_MB is not a number of megabytes.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given is None:
        return min(int(available_memory() * _SHARE_OF_MEMORY), _MOST_BYTES)
    if not given.isdecimal():
        raise ConfigError(f"{CACHE_VARIABLE} is {given!r}: give a whole number of megabytes, 0 to keep nothing")
    return int(given) << 20


def available_memory() -> int:
    """Return the bytes that this process may still take: of the machine, and of its control group if it has one."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        found = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = int(found["MemAvailable"].split()[0]) << 10
    if (group / "memory.max").exists():
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        free = min(free, max(int(limit) - used, 0)) if limit.isdecimal() else free
    return free
