"""Where the rows of a view come from: tables of the plans, folders of named tables, and what documents say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.dataset as ds

from cliffstore.schema import CLIFFS, EXAMPLES, EXPERIMENTS, HEADS, SCORES, SELECTIONS
from cliffstore.store import layout, tables
from cliffstore.store.reader import StoreReader


class PlanTables:
    """The tables of one kind of all plans."""

    def __init__(self, reader: StoreReader, kind: str, schema: pa.Schema) -> None:
        self._reader, self._kind, self.schema = reader, kind, schema

    def __call__(self, _: Sequence[str]) -> ds.Dataset:
        return tables.dataset(self._reader.objects, self._reader.table_sizes(self._kind), self.schema)


class NamedTables:
    """All tables in a folder that have their document, each under its name in a first column. Listed once."""

    def __init__(
        self, reader: StoreReader, folder: str, schema: pa.Schema, column: str, name_of: Callable[[str], str]
    ) -> None:
        self._reader, self._folder, self._names = reader, folder, (column, name_of)
        self.schema = pa.schema([pa.field(column, pa.string()), *schema])

    def __call__(self, _: Sequence[str]) -> ds.Dataset:
        return self._listed

    @cached_property
    def _listed(self) -> ds.Dataset:
        sizes = self._reader.objects.sizes(self._folder)
        parquet = {key: size for key, size in sizes.items() if key.endswith(".parquet")}
        parquet = {key: size for key, size in parquet.items() if layout.vouches_for(key) in sizes}
        return tables.dataset(self._reader.objects, parquet, self.schema, self._names)


class Told:
    """A table that documents tell, made when it is asked for."""

    def __init__(self, schema: pa.Schema, table: Callable[[], pa.Table]) -> None:
        self.schema, self._table = schema, table

    def __call__(self, _: Sequence[str]) -> ds.Dataset:
        return ds.dataset(self._table())


def named_tables(reader: StoreReader) -> dict[str, NamedTables]:
    """Return the views over folders of named tables."""
    return {
        "scores": NamedTables(reader, layout.SCORES, SCORES, "probe", layout.probe_of),
        "cliffs": NamedTables(reader, layout.CLIFFS, CLIFFS, "probe", layout.stem),
        "heads": NamedTables(reader, layout.HEADS, HEADS, "name", layout.stem),
        "experiments": NamedTables(reader, layout.EXPERIMENTS, EXPERIMENTS, "name", layout.stem),
        "selections": NamedTables(reader, layout.SELECTIONS, SELECTIONS, "selection", layout.stem),
    }


def examples_schema(reader: StoreReader) -> pa.Schema:
    """Return the schema of all plans' examples: the corpus's own columns differ from plan to plan."""
    sizes = reader.table_sizes("examples")
    first_of_plan = {layout.plan_of(key): key for key in reversed(sizes)}
    schemas = [tables.schema_of(reader.objects, key, sizes[key]).remove_metadata() for key in first_of_plan.values()]
    return pa.unify_schemas([EXAMPLES, *schemas], promote_options="permissive")
