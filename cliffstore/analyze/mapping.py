"""How work over parts of a store is shared out, as analysis sees it: one function over many payloads.

`run.tasks` has what does it in several processes or on Ray. Functions are of a module, and functions, payloads and
results pickle; payloads and results are small beside the vectors that the function reads from the store by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

P = TypeVar("P")
R = TypeVar("R")


class Mapper(Protocol):
    """Runs a function over payloads, somewhere.

    Attributes
    ----------
    n_workers : how many payloads are worked on at the same time
    """

    n_workers: int

    def map(self, function: Callable[[P], R], payloads: Iterable[P]) -> Iterator[R]:
        """Yield results in the order of the payloads, some of which may be ahead. What a function raises is raised."""


class InTurn:
    """One payload after the other, here."""

    n_workers = 1

    def map(self, function: Callable[[P], R], payloads: Iterable[P]) -> Iterator[R]:
        """Yield the result of each payload."""
        return map(function, payloads)
