"""Threads that look at many objects at once, a bounded number of them ahead of who asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

N_READERS = 16
_AHEAD = 2 * N_READERS


class Readers:
    """A pool of threads. Use as a context manager."""

    def __init__(self, n_threads: int = N_READERS) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="verify")

    def __enter__(self) -> Readers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(self, action: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield what `action` gives for each item, in their order; few results wait at any time."""
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(self._pool.submit(action, item))
            if len(pending) >= _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
