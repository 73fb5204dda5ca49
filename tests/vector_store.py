"""A store of synthetic vectors with labels, of any size, made by cliffstore's own writers; no model is needed.

Every example has rows of its own, the last of which is its decision position. Vectors are normal, with a few loud
dimensions as residual streams have; labels are drawn by a planted direction. What is stored can be made again by
`vectors_of` without reading the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from made_up_store import made_up_capture, made_up_manifest, made_up_plan

from cliffstore.records import PlannedUnit
from cliffstore.schema import EXAMPLES, SKIPPED, TOKENS
from cliffstore.store import writer
from cliffstore.store.arrays import open_arrays, to_float32
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanWriter, put_tables
from cliffstore.store.writer import UnitFacts, capture_specs


@dataclass(frozen=True, slots=True)
class VectorStore:
    """What the store is made of.

    Attributes
    ----------
    tokens : of each example; the last is at its decision position, those before are `think`
    distinct_prompts : prompts repeat after so many examples; None for all different
    strength : of the planted direction; labels are certain where it is large, coin tosses where it is 0
    """

    n_units: int
    unit_rows: int = 1_024
    width: int = 8
    n_layers: int = 2
    tokens: int = 4
    dtype: str = "float32"
    distinct_prompts: int | None = None
    strength: float = 3.0
    alias: str = "main"
    seed: int = 0

    @property
    def examples_per_unit(self) -> int:
        return self.unit_rows // self.tokens

    @property
    def n_rows(self) -> int:
        """Rows of a unit that hold vectors."""
        return self.examples_per_unit * self.tokens

    @property
    def n_examples(self) -> int:
        return self.n_units * self.examples_per_unit

    def direction_D(self, layer: int) -> npt.NDArray[np.float64]:
        """Return the planted direction, of length `strength`."""
        w_D = np.random.default_rng([self.seed, 1, layer]).normal(size=self.width)
        return self.strength * w_D / np.linalg.norm(w_D)

    def stored_of(self, layer: int, unit: int) -> npt.NDArray[np.generic]:
        """Return the rows of a unit as they are stored, [n_rows, width]."""
        generator = np.random.default_rng([self.seed, 2, layer, unit])
        h_RD = generator.standard_normal((self.n_rows, self.width), dtype=np.float32)
        h_RD[:, :: max(self.width // 3, 1)] *= 20
        h_RD += np.float32(0.5)
        if self.dtype == "bfloat16":
            return (h_RD.view(np.uint32) >> 16).astype(np.uint16)
        return h_RD.astype(self.dtype)

    def vectors_of(self, layer: int, unit: int) -> npt.NDArray[np.float32]:
        """Return the rows of a unit as float32 [n_rows, width]."""
        return to_float32(self.stored_of(layer, unit), self.dtype)

    def labels_of(self, unit: int) -> npt.NDArray[np.int64]:
        """Return 0 or 1 for each example of a unit: drawn by the planted direction of the last layer."""
        layer = self.n_layers - 1
        h_ED = self.vectors_of(layer, unit)[self.tokens - 1 :: self.tokens].astype(np.float64)
        h_ED = h_ED - 0.5
        h_ED[:, :: max(self.width // 3, 1)] /= 20
        chance_E = 1 / (1 + np.exp(-(h_ED @ self.direction_D(layer))))
        return (np.random.default_rng([self.seed, 3, unit]).random(len(chance_E)) < chance_E).astype(np.int64)

    def make(self, objects: ObjectStore) -> None:
        """Write the store."""
        writer.create_manifest(objects, made_up_manifest(self.unit_rows))
        plan = "plan-of-vectors"
        with TemporaryDirectory() as folder:
            tables = PlanWriter(Path(folder), plan, EXAMPLES, {"plan": plan})
            for unit in range(self.n_units):
                part, row_group = tables.place()
                tables.add(self._planned(plan, unit, part, row_group), self._examples(unit), self._tokens(unit))
            digests = tables.finish([SKIPPED.empty_table()])
            put_tables(objects, plan, Path(folder), digests)
        n_rows = self.n_units * self.n_rows
        writer.commit_plan(
            objects,
            made_up_plan(plan, n_examples=self.n_examples, n_tokens=n_rows, n_units=self.n_units, tables=digests),
        )
        self.add_capture(objects, plan)

    def add_capture(self, objects: ObjectStore, plan: str = "plan-of-vectors") -> None:
        """Write the vectors of one model; with another `alias` and `seed` a second one of the same plan."""
        capture = made_up_capture(f"capture-of-{self.alias}", self.n_layers, self.width, self.dtype, self.alias)
        manifest = made_up_manifest(self.unit_rows)
        capture = writer.create_capture(objects, capture, n_units=self.n_units, chunking=manifest.chunking)
        arrays = open_arrays(objects)
        for unit in range(self.n_units):
            blocks = {}
            for spec in capture_specs(capture):
                stored = self.stored_of(spec.layer, unit)
                block = np.zeros((self.unit_rows, self.width), dtype=stored.dtype)
                block[: self.n_rows] = stored
                blocks[spec.name] = block
            writer.commit_unit(objects, arrays, capture, self._facts(plan, unit), blocks, 1.0)

    def _facts(self, plan: str, unit: int) -> UnitFacts:
        return UnitFacts(
            plan=plan,
            unit=unit,
            row_start=unit * self.unit_rows,
            n_rows=self.n_rows,
            n_examples=self.examples_per_unit,
            n_tokens=self.n_rows,
            attempt=1,
            worker="host:1",
        )

    def _planned(self, plan: str, unit: int, part: int, row_group: int) -> PlannedUnit:
        return PlannedUnit(
            unit=unit,
            plan=plan,
            row_start=unit * self.unit_rows,
            n_rows=self.n_rows,
            n_examples=self.examples_per_unit,
            n_tokens=self.n_rows,
            n_nodes=self.n_rows,
            n_padded=self.n_rows,
            longest=self.tokens,
            part=part,
            row_group=row_group,
        )

    def _examples(self, unit: int) -> pa.Table:
        first, n = unit * self.examples_per_unit, self.examples_per_unit
        ordinals = range(first, first + n)
        distinct = self.distinct_prompts or self.n_examples
        columns = {
            "example": pa.array(ordinals, pa.int64()),
            "id": pa.array([f"e{example}" for example in ordinals]),
            "unit": pa.repeat(pa.scalar(unit, pa.int32()), n),
            "n_tokens": pa.repeat(pa.scalar(self.tokens, pa.int32()), n),
            "decision": pa.repeat(pa.scalar(self.tokens - 1, pa.int32()), n),
            "prompt": pa.array([f"question {example % distinct}" for example in ordinals]),
            "label": pa.array(self.labels_of(unit).astype(str)),
            "source": pa.array(["odd" if example % 2 else "even" for example in ordinals]),
            "digest": pa.repeat("0", n),
        }
        return pa.table([columns.get(field.name, pa.nulls(n)).cast(field.type) for field in EXAMPLES], schema=EXAMPLES)

    def _tokens(self, unit: int) -> pa.Table:
        first, n = unit * self.examples_per_unit, self.n_rows
        number_R = np.arange(n)
        position_R = (number_R % self.tokens).astype(np.int32)
        segments = pa.DictionaryArray.from_arrays(
            pa.array((position_R == self.tokens - 1).astype(np.int32)), pa.array(["think", "think_close"])
        )
        words = pa.DictionaryArray.from_arrays(
            pa.array(position_R), pa.array([f"w{index}" for index in range(self.tokens)])
        )
        columns = [
            pa.array(first + number_R // self.tokens),
            pa.array(position_R),
            pa.array(position_R),
            words,
            segments,
            pa.array(position_R - np.int32(self.tokens - 1)),
            pa.array(unit * self.unit_rows + number_R),
        ]
        return pa.table(columns, schema=TOKENS)

    def rows_and_labels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the row at the decision position and the label of every example, by ordinal."""
        parts: list[npt.NDArray[np.int64]] = list(self._decision_rows())
        return np.concatenate(parts), np.concatenate([self.labels_of(unit) for unit in range(self.n_units)])

    def _decision_rows(self) -> Iterator[npt.NDArray[np.int64]]:
        for unit in range(self.n_units):
            yield unit * self.unit_rows + np.arange(self.tokens - 1, self.n_rows, self.tokens)
