"""Work on blocks by several processes, in order and in bounded memory; small work stays in this process.

Processes are started by loky, which does not run the user's script again, and end with this one. Each computes with
one thread, for there are as many processes as there is room for.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import TypeVar

from joblib.externals.loky import ProcessPoolExecutor, process_executor

A = TypeVar("A")
B = TypeVar("B")

_BLOCKS_HERE = 4
"""Blocks that are done before it is worth starting processes."""
_AHEAD = 2
"""Blocks that each process may be ahead of who takes the results."""
_SETTLE_SECONDS = 2.0
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "1",  # else threads that come and go leave a quarter more memory behind
}
"""Read when libraries are loaded, so it is there before a process begins."""


class BlockPool:
    """Maps functions over blocks like `map`. Use as a context manager.

    Parameters
    ----------
    processes : how many; with one, everything is done here
    blocks_here : done in this process before others are started
    without_torch : keep torch out of processes that load transformers for a tokenizer only: importing it takes most of
        their time and memory. Not for those that load scipy, which takes what stands in its place for torch
    """

    def __init__(self, processes: int, blocks_here: int | None = None, *, without_torch: bool = False) -> None:
        self._processes, self._without_torch = processes, without_torch
        self._blocks_here = _BLOCKS_HERE if blocks_here is None else blocks_here
        self._executor: ProcessPoolExecutor | None = None
        self._under_way: list[Future] = []

    def __enter__(self) -> BlockPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._settle()
            self._executor.shutdown(wait=True, kill_workers=True)

    def map(self, function: Callable[[A], B], blocks: Iterable[A]) -> Iterator[B]:
        """Yield the function's results in the order of the blocks. What it raises is raised here."""
        rest = iter(blocks)
        for block in islice(rest, None if self._processes == 1 else self._blocks_here):
            yield function(block)
        window: deque = deque()
        for block in rest:
            window.append(self._submit(function, block))
            if len(window) >= self._processes * _AHEAD:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()

    def _submit(self, function: Callable[[A], B], block: A) -> Future[B]:
        self._under_way = [future for future in self._under_way if not future.done()]
        executor = self._started()
        with _interrupts_held():
            self._under_way.append(executor.submit(function, block))
        return self._under_way[-1]

    def _settle(self) -> None:
        """Wait until what was submitted last is on its way: loky stumbles where it is told to stop before that."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline and not all(one.running() or one.done() for one in self._under_way):
            time.sleep(0.001)

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._processes, initializer=_begin, initargs=(self._without_torch,), env=_ENVIRONMENT
            )
        return self._executor


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes are started, which inherit that.

    It is for this process, which ends them; one that is still importing when it comes would print where it was.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # as it starts it lets interrupts through, whatever held them back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(without_torch: bool) -> None:
    """Prepare a process.

    Ctrl-C is for the process that started this one, and that ends it; not every system can hold it back. loky takes a
    process that has grown for one that leaks and replaces it: ours hold blocks of a store, within bounds of their own.
    """
    process_executor._USE_PSUTIL = False
    if without_torch:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # else it says that torch is missing
    signal.signal(signal.SIGINT, signal.SIG_IGN)
