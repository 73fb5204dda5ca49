"""Parts of a knock-out measurement: what is measured at once and kept as one piece.

A part is some batches of neighbouring examples of one unit of the plan. Parts depend on the examples of their unit, the
choices of heads and the size of a pass alone: not on workers, not on where a run was cut off, and leaving an example
out changes those of its own unit only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from cliffstore.model.undisturbed import Prompt
from cliffstore.run.heads.prompts import Ablated, ExampleTokens

PASSES = 16
"""Full passes that a part takes: some ten seconds to a minute of work."""


@dataclass(frozen=True, slots=True)
class Part:
    """Examples of a unit by ordinal, in batches that share passes."""

    unit: int
    batches: tuple[tuple[int, ...], ...]

    @property
    def examples(self) -> tuple[int, ...]:
        """All of them, in order."""
        return tuple(chain.from_iterable(self.batches))


def parts_of(
    units: Iterable[tuple[int, Sequence[ExampleTokens]]],
    positions: Ablated,
    n_choices: int,
    fit: Callable[[Sequence[Prompt]], bool],
    most: int,
) -> Iterator[Part]:
    """Yield the parts of all examples.

    Parameters
    ----------
    units : the examples of each unit, in order
    fit : whether prompts may share a pass
    most : positions of all lines of a part, but for a single batch that has more
    """
    for unit, examples in units:
        prompts = {one.example: one.prompt(positions) for one in examples}
        batches: list[tuple[int, ...]] = []
        n_positions = 0
        for batch in _batches(prompts, fit):
            n_own = sum((n_choices + 1) * prompts[one].n_ablated + len(prompts[one].token_ids_T) for one in batch)
            if batches and n_positions + n_own > most:
                yield Part(unit, tuple(batches))
                batches, n_positions = [], 0
            batches, n_positions = [*batches, batch], n_positions + n_own
        if batches:
            yield Part(unit, tuple(batches))


def _batches(prompts: dict[int, Prompt], fit: Callable[[Sequence[Prompt]], bool]) -> Iterator[tuple[int, ...]]:
    """Yield neighbours that share a pass."""
    batch: list[int] = []
    for example, prompt in prompts.items():
        if batch and not fit([*(prompts[one] for one in batch), prompt]):
            yield tuple(batch)
            batch = []
        batch.append(example)
    if batch:
        yield tuple(batch)
