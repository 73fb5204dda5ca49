"""What a run works on: the plan of a corpus, or every plan that the store holds."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cliffstore.config import ExtractConfig
from cliffstore.corpus.template import tokenizer_digest
from cliffstore.errors import ConfigError
from cliffstore.model.identity import ModelSource
from cliffstore.model.loader import load_tokenizer
from cliffstore.records import PlannedUnit
from cliffstore.run.planned import Planned, held_plan, write_plan
from cliffstore.run.planning import plan_corpus
from cliffstore.run.progress import Reporter
from cliffstore.run.tokenizers import check_tokens
from cliffstore.schema import Manifest
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

_ABOUT_A_CORPUS = (
    "append", "map", "where", "limit", "positions", "unit_rows", "max_tokens", "think_open", "think_close",
    "template_date",
)  # fmt: skip
"""Options that mean nothing without a corpus."""


@dataclass(frozen=True, slots=True)
class Work:
    """Plans and their units. Use as a context manager.

    Parameters
    ----------
    store : where plans are that have no local tables; None before the store is begun
    """

    planned: tuple[Planned, ...]
    store: ObjectStore | None

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        for planned in self.planned:
            planned.close()

    @property
    def units(self) -> list[PlannedUnit]:
        """All units, in order."""
        return [unit for planned in self.planned for unit in planned.units]

    @property
    def plans(self) -> tuple[str, ...]:
        """Names of the plans."""
        return tuple(planned.document.plan for planned in self.planned)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the store, or with which it begins."""
        return self.planned[0].manifest

    @property
    def n_examples(self) -> int:
        return sum(planned.document.counts.examples for planned in self.planned)

    @property
    def n_skipped(self) -> int:
        return sum(planned.document.counts.skipped for planned in self.planned)

    @property
    def n_tokens(self) -> int:
        return sum(unit.n_tokens for unit in self.units)

    @property
    def n_rows(self) -> int:
        return sum(unit.n_rows for unit in self.units)

    def tokens(self, unit: PlannedUnit) -> pa.Table:
        """Return the tokens of a unit."""
        planned = next(planned for planned in self.planned if planned.document.plan == unit.plan)
        key = layout.tokens_part(unit.plan, unit.part)
        if planned.tables is not None:
            return tables.read_row_group(ObjectStore(str(planned.tables)), layout.path_in_plan(key), unit.row_group)
        assert self.store is not None
        return tables.read_row_group(self.store, key, unit.row_group)

    def write(self, objects: ObjectStore) -> None:
        """Put into the store what it does not have yet."""
        for planned in self.planned:
            write_plan(objects, planned)

    def describe(self) -> str:
        """Return one line for the user."""
        n_nodes = sum(unit.n_nodes for unit in self.units)
        plans = "plan" if len(self.planned) == 1 else f"{len(self.planned)} plans"
        counted = f"{plans}: {self.n_examples:,} examples, {self.n_tokens:,} tokens"
        if not self.units:
            return f"{counted} to add"
        if n_nodes == self.n_rows:
            stored = f"are {self.n_rows:,} rows ({self.n_tokens / self.n_rows:.2f} tokens a row)"
        else:
            stored = f"of which {self.n_rows:,} rows are stored and {n_nodes:,} prefixes computed for them"
        return f"{counted} {stored}, {len(self.units)} units"


def find_work(
    config: ExtractConfig, source: ModelSource, held: StoreReader | None, bytes_per_row: int, reporter: Reporter
) -> Work:
    """Plan the corpus that is given, or take the plans of the store. Nothing is written.

    Raises
    ------
    UserError
        The input is wrong; see `plan_corpus`.
    """
    store = held.objects if held is not None else None
    if config.corpus:
        return Work((plan_corpus(config, source, held, bytes_per_row, reporter),), store)
    if held is None or not (documents := held.plans()):
        raise ConfigError(f"corpus is not given: say CORPUS..., or a --store that holds plans (not {config.store})")
    defaults = ExtractConfig(model="", store="")
    for name in _ABOUT_A_CORPUS:
        if getattr(config, name) != getattr(defaults, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} says how a corpus is planned: give CORPUS..., or leave it out"
            )
    check_tokens(config.store, held.manifest, tokenizer_digest(load_tokenizer(source)), source.identity.name)
    return Work(tuple(held_plan(held, document) for document in documents), store)
