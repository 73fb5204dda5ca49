"""A store of made-up scores whose examples have texts as long, and words as many, as those of a real corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from score_store import PlantedUnit, ScoreStore

_SYLLABLES = ("ka", "lo", "mi", "ren", "tus", "or", "ve", "sha", "pin", "dol", "eth", "ur")
_N_WORDS = 6_000


def _word(number: int) -> str:
    parts = [_SYLLABLES[number // 12**power % 12] for power in range(2 + number % 3)]
    return (" " if number % 4 else "") + "".join(parts) + ("." if number % 97 == 0 else "")


WORDS = [_word(number) for number in range(_N_WORDS)]


@dataclass(frozen=True)
class ReportStore(ScoreStore):
    """Words are drawn as those of a language are: the first is frequent, most are rare."""

    def _words(self, unit: int, planted: PlantedUnit) -> npt.NDArray[np.int64]:
        generator = np.random.default_rng([self.seed, unit, 1])
        return np.minimum(generator.zipf(1.3, size=len(planted.example_N)) - 1, _N_WORDS - 1)

    def _tokens(self, unit: int) -> pa.Table:
        table = super()._tokens(unit)
        word_N = self._words(unit, self.planted(unit))
        distinct, code_N = np.unique(word_N, return_inverse=True)
        texts = pa.DictionaryArray.from_arrays(
            pa.array(code_N.astype(np.int32)), pa.array([WORDS[number] for number in distinct])
        )
        for name, column in (("token_id", pa.array(word_N.astype(np.int32))), ("token", texts)):
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
        return table

    def _examples(self, unit: int, planted: PlantedUnit) -> pa.Table:
        table = super()._examples(unit, planted)
        word_N = self._words(unit, planted)
        for segment, name in ((0, "prompt"), (1, "thinking"), (3, "response")):
            texts: list[str | None] = []
            for number in range(planted.n_examples):
                own = word_N[(planted.example_N == number) & (planted.segment_N == segment)]
                texts.append("".join(WORDS[word] for word in own).strip() or None)
            if name == "prompt":
                texts = [f"question q{planted.first_example + number:03d}: {text}" for number, text in enumerate(texts)]
            table = table.set_column(
                table.schema.get_field_index(name), table.schema.field(name), pa.array(texts, pa.string())
            )
        return table
