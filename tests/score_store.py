"""A store of scores of one probe, planted and of any number, made by cliffstore's own writers; it has no vectors.

Examples are of unequal length, and some have no thinking. Scores are multiples of 1/8, so that their sums are exact:
thinking swings around the plateau of an example, evenly, so that mean and median are the plateau; three tokens of
`think_close` fall to the final score at the decision position in even steps; prompts and responses are loud.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from made_up import make_probe
from made_up_store import made_up_capture, made_up_manifest, made_up_plan

from cliffstore.records import PlannedUnit
from cliffstore.schema import EXAMPLES, SKIPPED, TOKENS
from cliffstore.store import documents, writer
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanWriter, put_tables
from cliffstore.store.probes import write_probe
from cliffstore.store.scores import ProbeKey, write_unit_scores

PLAN = "plan-of-scores"
SEGMENTS = ("user", "think", "think_close", "response")
N_CLOSE = 3

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlantedUnit:
    """Lengths and levels of a unit's examples, [E], and its tokens, [N]."""

    first_example: int
    n_think_E: Ints
    n_user_E: Ints
    n_response_E: Ints
    plateau_E: npt.NDArray[np.float64]
    drop_E: npt.NDArray[np.float64]
    example_N: Ints
    position_N: Ints
    to_decision_N: Ints
    segment_N: Ints
    score_N: npt.NDArray[np.float32]

    @property
    def n_examples(self) -> int:
        return len(self.n_think_E)

    @property
    def n_tokens_E(self) -> Ints:
        return np.bincount(self.example_N, minlength=self.n_examples)

    @property
    def decision_E(self) -> Ints:
        return self.n_tokens_E - self.n_response_E - 1


@dataclass(frozen=True)
class ScoreStore:
    """What the store is made of.

    Attributes
    ----------
    examples_per_unit : of some 195 tokens on average, where `mean_think` is 149
    without_thinking : share of examples
    """

    n_units: int
    examples_per_unit: int = 8
    mean_think: int = 12
    without_thinking: float = 0.1
    prompt: str = "question"
    seed: int = 0

    def planted(self, unit: int) -> PlantedUnit:
        """Return a unit; the same each time."""
        generator = np.random.default_rng([self.seed, unit])
        n_E = self.examples_per_unit
        n_think_E = generator.integers(1, 2 * self.mean_think, size=n_E)
        n_think_E[generator.random(n_E) < self.without_thinking] = 0
        n_user_E = generator.integers(5, 56, size=n_E)
        n_response_E = generator.integers(0, 41, size=n_E)
        plateau_E = generator.integers(8, 48, size=n_E) / 8
        drop_E = generator.integers(-8, 40, size=n_E) / 8 * N_CLOSE
        lengths = np.stack([n_user_E, n_think_E, np.where(n_think_E > 0, N_CLOSE, 0), n_response_E], axis=1)
        n_tokens_E = lengths.sum(axis=1)
        example_N = np.repeat(np.arange(n_E), n_tokens_E)
        segment_N = np.repeat(np.tile(np.arange(4), n_E), lengths.ravel())
        begin_E = np.cumsum(n_tokens_E) - n_tokens_E
        position_N = np.arange(len(example_N)) - begin_E[example_N]
        decision_E = n_tokens_E - n_response_E - 1
        to_decision_N = position_N - decision_E[example_N]
        # Swings of +1 and -1 in pairs; an odd one out stays on the plateau.
        number_N = position_N - n_user_E[example_N]
        is_paired_N = number_N < (n_think_E // 2 * 2)[example_N]
        swing_N = np.where(is_paired_N, np.where(number_N % 2, -1.0, 1.0), 0.0)
        close_N = plateau_E[example_N] - drop_E[example_N] * (to_decision_N + N_CLOSE) / N_CLOSE
        loud_N = generator.integers(-400, 400, size=len(example_N)) / 8
        score_N = np.select([segment_N == 1, segment_N == 2], [plateau_E[example_N] + swing_N, close_N], loud_N)
        return PlantedUnit(
            unit * n_E, n_think_E, n_user_E, n_response_E, plateau_E, drop_E, example_N, position_N, to_decision_N,
            segment_N, score_N.astype(np.float32),
        )  # fmt: skip

    @cached_property
    def unit_rows(self) -> int:
        """Rows of a unit: more than any has."""
        longest = 55 + 2 * self.mean_think + N_CLOSE + 40
        return -(-self.examples_per_unit * longest // 256) * 256

    def make(self, objects: ObjectStore, probe: str = "planted") -> None:
        """Write the store."""
        writer.create_manifest(objects, made_up_manifest(self.unit_rows))
        capture = made_up_capture("capture-of-scores", 1)
        documents.create(objects, capture)
        n_tokens = 0
        with TemporaryDirectory() as folder:
            tables = PlanWriter(Path(folder), PLAN, EXAMPLES, {"plan": PLAN})
            for unit in range(self.n_units):
                planted = self.planted(unit)
                n_tokens += len(planted.example_N)
                part, row_group = tables.place()
                tables.add(
                    self._planned(unit, planted, part, row_group), self._examples(unit, planted), self._tokens(unit)
                )
            digests = tables.finish([SKIPPED.empty_table()])
            put_tables(objects, PLAN, Path(folder), digests)
        n_examples = self.n_units * self.examples_per_unit
        plan = made_up_plan(PLAN, n_examples=n_examples, n_tokens=n_tokens, n_units=self.n_units, tables=digests)
        writer.commit_plan(objects, plan)
        self.add_probe(objects, probe)

    def add_probe(self, objects: ObjectStore, probe: str, *, scale: float = 1.0, seed: int = 0) -> None:
        """Write a probe and its scores of every unit, which are those that were planted, times `scale`."""
        document, weights = make_probe(made_up_capture("capture-of-scores", 1), probe, seed=seed)
        write_probe(objects, document, weights, replace=False)
        key = ProbeKey(probe, document.digest, document.capture)
        for unit in range(self.n_units):
            score_N = self.planted(unit).score_N * np.float32(scale)
            write_unit_scores(
                objects, PLAN, key, unit, self._tokens(unit), unit * self.unit_rows, score_N,
                attempt=1, worker="host:1", seconds=0.0,
            )  # fmt: skip

    def _planned(self, unit: int, planted: PlantedUnit, part: int, row_group: int) -> PlannedUnit:
        n_tokens = len(planted.example_N)
        return PlannedUnit(
            unit=unit, plan=PLAN, row_start=unit * self.unit_rows, n_rows=n_tokens, n_examples=planted.n_examples,
            n_tokens=n_tokens, n_nodes=n_tokens, n_padded=n_tokens, longest=int(planted.n_tokens_E.max()), part=part,
            row_group=row_group,
        )  # fmt: skip

    def _tokens(self, unit: int) -> pa.Table:
        planted = self.planted(unit)
        words = pa.DictionaryArray.from_arrays(pa.array(planted.segment_N.astype(np.int32)), pa.array(SEGMENTS))
        columns = [
            pa.array(planted.first_example + planted.example_N),
            pa.array(planted.position_N.astype(np.int32)),
            pa.array(planted.segment_N.astype(np.int32)),
            words,
            words,
            pa.array(planted.to_decision_N.astype(np.int32)),
            pa.array(unit * self.unit_rows + np.arange(len(planted.example_N))),
        ]
        return pa.table(columns, schema=TOKENS)

    def _examples(self, unit: int, planted: PlantedUnit) -> pa.Table:
        n = planted.n_examples
        ordinals = range(planted.first_example, planted.first_example + n)
        thinking = [f"{n_think} words" if n_think else None for n_think in planted.n_think_E]
        columns = {
            "example": pa.array(ordinals, pa.int64()),
            "id": pa.array([f"e{example}" for example in ordinals]),
            "unit": pa.repeat(pa.scalar(unit, pa.int32()), n),
            "n_tokens": pa.array(planted.n_tokens_E.astype(np.int32)),
            "decision": pa.array(planted.decision_E.astype(np.int32)),
            "prompt": pa.array([f"{self.prompt} {example}" for example in ordinals]),
            "thinking": pa.array(thinking, pa.string()),
            "label": pa.array([str(example % 2) for example in ordinals]),
            "source": pa.array(["even" if example % 3 else "third" for example in ordinals]),
            "digest": pa.repeat("0", n),
        }
        return pa.table([columns.get(field.name, pa.nulls(n)).cast(field.type) for field in EXAMPLES], schema=EXAMPLES)
