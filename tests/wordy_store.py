"""A store of planted scores whose examples have texts to read: words for tokens, as long as real ones.

Texts are the words of their tokens, of a vocabulary of some thousand. `hostile` ones stand for what a corpus may hold:
markup, control characters, marks of direction, lines without an end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from score_store import SEGMENTS, PlantedUnit, ScoreStore

VOCABULARY = 4_000
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script> ]]> &amp; &lt; \" ' `${1}`",
    "bell \x07 escape \x1b[31m null \x00 delete \x7f return \r\n line",
    "\u202eright to left\u202c \u2066isolate \u200fmark\u2069 \u200b\ufeff",
    "separators \u2028 and \u2029, a noncharacter \ufffe",
    "long " + "x" * 10_000,
    "{{ 7 * 7 }} {% raw %} https://example.org/a.js url(https://example.org) @import 'x'",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U000e0041",
)


@dataclass(frozen=True)
class WordyStore(ScoreStore):
    """A `ScoreStore` with words; with `hostile`, texts, ids, labels, sources and tokens are those of `HOSTILE`."""

    hostile: bool = False

    def _words(self, planted: PlantedUnit) -> tuple[np.ndarray, list[str]]:
        """Return the token id of each token, and the word of each id."""
        generator = np.random.default_rng([self.seed, 7, planted.first_example])
        # Few words are frequent and many are rare, as in texts.
        id_N = np.minimum(generator.zipf(1.3, size=len(planted.example_N)), VOCABULARY - 1)
        if self.hostile:
            return id_N % len(HOSTILE), list(HOSTILE)
        return id_N, [f" w{number}" + "aeiou"[number % 5] * (number % 7) for number in range(VOCABULARY)]

    def _tokens(self, unit: int) -> pa.Table:
        planted = self.planted(unit)
        id_N, words = self._words(planted)
        texts = pa.DictionaryArray.from_arrays(pa.array(id_N.astype(np.int32)), pa.array(words))
        table = super()._tokens(unit)
        for name, values in (("token_id", pa.array(id_N.astype(np.int32))), ("token", texts)):
            table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
        return table

    def _examples(self, unit: int, planted: PlantedUnit) -> pa.Table:
        table = super()._examples(unit, planted)
        id_N, words = self._words(planted)
        for name, segment in (("prompt", "user"), ("thinking", "think"), ("response", "response")):
            texts: list[str | None] = []
            for example in range(planted.n_examples):
                own_N = id_N[(planted.example_N == example) & (planted.segment_N == SEGMENTS.index(segment))]
                text = "".join(words[number] for number in own_N)
                texts.append((text[:20_000] if self.hostile else text) or None)
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
        if not self.hostile:
            return table
        for shift, name in enumerate(("id", "label", "source")):
            texts = [HOSTILE[(n + shift) % len(HOSTILE)] for n in table["example"].to_pylist()]
            texts = [f"{text} {n}" for n, text in enumerate(texts)] if name == "id" else texts
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
        return table
