"""Which examples heads are measured on, and what of their tokens: read from the plan, unit by unit.

Tokens are those of the plan, stored or not: a model can be run on any example that is planned.

Legend: E examples, T tokens of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.curves import grouped_examples
from cliffstore.errors import ConfigError, ProbeError, StoreError
from cliffstore.model.undisturbed import Prompt
from cliffstore.records import Segment
from cliffstore.schema import ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader

Ablated = Literal["template", "all", "decision"]
ABLATED: tuple[Ablated, ...] = ("template", "all", "decision")
MOST_RESAMPLED = 250_000_000
"""Resamples times figures that are held at once: 2 GB twice."""
_TEMPLATE = (Segment.HEADER, Segment.THINK_OPEN, Segment.THINK_CLOSE)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Examples, ascending, and the group of each."""

    examples_E: npt.NDArray[np.int64]
    groups: Sequence[str | None]
    group_E: npt.NDArray[np.int64]

    def of(self, examples_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the group of some of the examples."""
        return self.group_E[np.searchsorted(self.examples_E, examples_U)]


@dataclass(frozen=True, slots=True)
class ExampleTokens:
    """The tokens of one example.

    Attributes
    ----------
    token_ids_T : int32
    to_decision_T : int64
    rows_T : int64, -1 where a position is not stored
    template_T : whether the template wrote it between the thinking (or the prompt) and the answer, or before
    """

    example: int
    token_ids_T: npt.NDArray[np.int32]
    to_decision_T: npt.NDArray[np.int64]
    rows_T: npt.NDArray[np.int64]
    template_T: npt.NDArray[np.bool_]

    @property
    def decision(self) -> int:
        """The decision position."""
        return int(np.flatnonzero(self.to_decision_T == 0)[0])

    def prompt(self, positions: Ablated) -> Prompt:
        """Return the tokens up to the decision position, and which of them are ablated."""
        return Prompt(self.token_ids_T[: self.decision + 1].astype(np.int64), self.first_ablated(positions))

    def first_ablated(self, positions: Ablated) -> int:
        """Return the first position that is ablated; all from there to the decision are."""
        if positions == "all":
            return 0
        if positions == "decision":
            return self.decision
        others = np.flatnonzero(~self.template_T[: self.decision + 1])
        return min(int(others[-1]) + 1 if len(others) else 0, self.decision)


def check_unchanged(probe: ProbeDocument) -> None:
    """Raise `ProbeError` where a probe is of a model that was changed while it ran."""
    if probe.interventions is not None:
        raise ProbeError(
            f"probe {probe.name!r} is of model {probe.alias!r}, which was changed while it ran, and heads are measured "
            "of models as they are: choose another probe"
        )


def check_size(n_figures: int, resamples: int) -> None:
    """Raise `ConfigError` where figures of all groups are more than can be resampled in memory."""
    if max(resamples, 1) * n_figures > MOST_RESAMPLED:
        raise ConfigError(
            f"{n_figures:,} figures with {resamples:,} resamples are more than {MOST_RESAMPLED:,} numbers to hold: "
            "choose fewer --resamples, or fewer figures with --positions, --heads or a coarser --group-by"
        )


def check_lengths(catalog: Catalog, examples: Sequence[int], limit: int | None) -> None:
    """Raise `ConfigError` where an example is longer than positions mean the same in; see `length_dependent_above`."""
    if limit is None:
        return
    longer = catalog.arrow(
        "SELECT id FROM examples WHERE list_contains($1, example) AND n_tokens > $2 ORDER BY example",
        [list(examples), limit],
    )
    if longer.num_rows:
        raise ConfigError(
            f"{longer.num_rows:,} examples are longer than {limit:,} tokens ({longer['id'][0].as_py()!r} is the "
            "first), above which positions of this model depend on the whole length: leave them out with "
            f"--where 'n_tokens <= {limit}'"
        )


def id_of(reader: StoreReader, example: int) -> str:
    """Return the id of an example."""
    for unit in reader.plan_tables.units:
        table = reader.plan_tables.examples(unit, ["example", "id"])
        ordinals = table["example"].to_pylist()
        if example in ordinals:
            return str(table["id"][ordinals.index(example)].as_py())
    raise StoreError(f"store {reader.url} has no example {example}")


def choose_examples(catalog: Catalog, where: str | None, group_by: str | None) -> Chosen:
    """Return the examples that a condition leaves. Raises `ConfigError` where it leaves none."""
    chosen = Chosen(*grouped_examples(catalog, group_by, where))
    if not len(chosen.examples_E):
        raise ConfigError(f"no example is left{f' where {where}' if where else ''}: choose others with --where")
    return chosen


def read_units(reader: StoreReader, chosen: Chosen) -> Iterator[tuple[int, list[ExampleTokens]]]:
    """Yield number and chosen examples of each unit that has some, in order."""
    for unit in reader.plan_tables.units:
        if examples := read_unit(reader, unit, chosen.examples_E):
            yield unit, examples


def read_unit(reader: StoreReader, unit: int, wanted_E: npt.ArrayLike) -> list[ExampleTokens]:
    """Return those examples of a unit that are wanted, in order."""
    columns = ["example", "token_id", "segment", "to_decision", "row"]
    tokens = reader.plan_tables.tokens(unit, columns)
    ordinals = tokens["example"].to_numpy()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordinals)) + 1, [len(ordinals)]])
    wanted = np.isin(ordinals[starts[:-1]], wanted_E)
    if not wanted.any():
        return []
    token_ids = tokens["token_id"].to_numpy().astype(np.int32)
    to_decision = tokens["to_decision"].to_numpy().astype(np.int64)
    rows = tokens["row"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    template = np.isin(np.array(tokens["segment"].to_pylist()), [str(one) for one in _TEMPLATE])
    return [
        ExampleTokens(
            int(ordinals[first]),
            token_ids[first:last],
            to_decision[first:last],
            rows[first:last],
            template[first:last],
        )
        for (first, last), is_wanted in zip(pairwise(starts), wanted, strict=True)
        if is_wanted
    ]
