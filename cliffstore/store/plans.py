"""Tables of plans: written unit after unit to a local folder, put into a store whole, read by unit.

One row group of `examples/part-<k>.parquet` and of `tokens/part-<k>.parquet` is one unit; parts are of a size that
suits object storage. `units.parquet` says where each unit lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.errors import StoreError
from cliffstore.records import PlannedUnit
from cliffstore.schema import SKIPPED, TOKENS, UNITS
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore

PART_TOKENS, PART_UNITS = 1 << 22, 256
"""A part ends with the unit that reaches one of these: some ten megabytes of tokens, and a short footer."""
_UPLOADS = 4


class PlanWriter:
    """Writes the tables of one plan into a local folder.

    Parameters
    ----------
    examples_schema : of the tables of examples, the corpus's further columns among them
    """

    def __init__(self, folder: Path, plan: str, examples_schema: pa.Schema, provenance: Mapping[str, str]) -> None:
        self._folder, self._plan, self._provenance = folder, plan, provenance
        self._schemas = {layout.examples_part: examples_schema, layout.tokens_part: TOKENS}
        self._writers: list[pq.ParquetWriter] = []
        self._part = -1
        self._n_tokens = self._n_units = 0
        self._units: list[PlannedUnit] = []

    def place(self) -> tuple[int, int]:
        """Return part and row group of the next unit."""
        is_full = self._n_tokens >= PART_TOKENS or self._n_units >= PART_UNITS
        return (self._part + 1, 0) if is_full or not self._writers else (self._part, self._n_units)

    def add(self, unit: PlannedUnit, examples: pa.Table, tokens: pa.Table) -> None:
        """Write the next unit, whose facts name its `place`."""
        if unit.part != self._part:
            self._close()
            self._part, self._n_tokens, self._n_units = unit.part, 0, 0
            self._writers = [self._open(key(self._plan, self._part), schema) for key, schema in self._schemas.items()]
        for writer, table in zip(self._writers, (examples, tokens), strict=True):
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._n_tokens += unit.n_tokens
        self._n_units += 1
        self._units.append(unit)

    def finish(self, skipped: Iterable[pa.Table]) -> dict[str, str]:
        """Write the tables of units and skipped rows. Return path below the plan's folder -> sha256 of each table."""
        self._close()
        units = pa.Table.from_pylist([asdict(unit) for unit in self._units], schema=UNITS)
        self._write(layout.units_table(self._plan), UNITS, [units])
        self._write(layout.skipped_table(self._plan), SKIPPED, skipped)
        files = sorted(path for path in self._folder.rglob("*.parquet"))
        return {str(path.relative_to(self._folder)): _digest(path) for path in files}

    def _write(self, key: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
        with self._open(key, schema) as writer:
            for table in parts:
                writer.write_table(table.cast(schema))

    def _open(self, key: str, schema: pa.Schema) -> pq.ParquetWriter:
        path = self._folder / layout.path_in_plan(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return pq.ParquetWriter(path, schema.with_metadata(tables.metadata(self._provenance)), compression="zstd")

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_tables(objects: ObjectStore, plan: str, folder: Path, paths: Iterable[str]) -> None:
    """Put tables of a plan into the store, each in the place of what was there."""

    def put(path: str) -> None:
        objects.put(layout.in_plan(plan, path), (folder / path).read_bytes())

    with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="plan") as pool:
        for _ in pool.map(put, paths):
            pass


class PlanTables:
    """The tables of some plans, found by unit.

    Parameters
    ----------
    plans : names of plans that are committed
    """

    def __init__(self, objects: ObjectStore, plans: Sequence[str]) -> None:
        self._objects, self.plans = objects, tuple(plans)

    @cached_property
    def units(self) -> dict[int, PlannedUnit]:
        """Every planned unit by its number, in order."""
        found = [
            PlannedUnit(**row)
            for plan in self.plans
            for row in tables.read(self._objects, layout.units_table(plan)).to_pylist()
        ]
        return {unit.unit: unit for unit in sorted(found, key=lambda unit: unit.unit)}

    def tokens(self, unit: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the tokens of a unit, sorted by example and position."""
        one = self._unit(unit)
        return tables.read_row_group(self._objects, layout.tokens_part(one.plan, one.part), one.row_group, columns)

    def examples(self, unit: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the examples of a unit, sorted by ordinal."""
        one = self._unit(unit)
        return tables.read_row_group(self._objects, layout.examples_part(one.plan, one.part), one.row_group, columns)

    def _unit(self, unit: int) -> PlannedUnit:
        if unit not in self.units:
            raise StoreError(f"store {self._objects.url} has no plan with a unit {unit}")
        return self.units[unit]
