"""The tokens of the examples that are shown, and their scores, packed for the page.

Each distinct pair of token id and text is written once, the frequent ones first, and a token is its number. Segments
are runs. Scores are whole numbers of the last decimal that the page shows: three decimals of a logit, or as many more
as it takes for a thousand steps up to where the colours of a probe end. Some ten bytes a token and probe. Only units
that hold an example are read.

Legend: N tokens of an example.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.publish.report.choice import ShownExamples
from cliffstore.publish.report.scale import limit_of
from cliffstore.schema import ProbeDocument
from cliffstore.store import layout, tables
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import ProbeKey, scored_units

_COLUMNS = ["example", "position", "token_id", "token", "segment"]

Pair = tuple[int, str]


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """All tokens, with scores by probe.

    Attributes
    ----------
    vocabulary : (token id, text), by number
    segments : names, by number
    examples : by ordinal ascending: `first` position, `tokens` as numbers, `runs` of segments (number, length, ...),
        `scores` by probe
    limits : by probe, where the colours end, in logits
    digits : by probe, decimals of its scores
    unscored : by probe, how many of the examples have no score at all
    """

    vocabulary: Sequence[Pair]
    segments: Sequence[str]
    examples: Sequence[Mapping[str, Any]]
    limits: Mapping[str, float]
    digits: Mapping[str, int]
    unscored: Mapping[str, int]

    @property
    def n_tokens(self) -> int:
        return sum(len(one["tokens"]) for one in self.examples)

    def to_plain(self) -> dict[str, object]:
        return {
            "ids": [number for number, _ in self.vocabulary],
            "texts": [text for _, text in self.vocabulary],
            "segments": list(self.segments),
            "examples": list(self.examples),
        }


def pack_tokens(reader: StoreReader, shown: ShownExamples, probes: Sequence[ProbeDocument]) -> PackedTokens:
    """Read the tokens and scores of the examples that are shown.

    Raises
    ------
    DamagedStoreError
        A table of tokens or scores cannot be read.
    """
    keys = {probe.name: ProbeKey(probe.name, probe.digest, probe.capture) for probe in probes}
    scored = {name: scored_units(reader.objects, key) for name, key in keys.items()}
    found: dict[int, dict[str, Any]] = {}
    held: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in keys}
    unscored: Counter[str] = Counter()
    for unit, ordinals in shown.units.items():
        table = _of_examples(reader.plan_tables.tokens(unit, _COLUMNS), ordinals)
        place_N = _places(table)
        score_by_probe = {
            name: _scores_at(reader, name, unit, ordinals, place_N) if unit in units else _nothing(len(place_N))
            for name, units in scored.items()
        }
        for name, score_N in score_by_probe.items():
            held[name].append(score_N)
        for example, slice_N in _by_example(table["example"].to_numpy()):
            own = {name: score_N[slice_N] for name, score_N in score_by_probe.items()}
            for name in [name for name, score_N in own.items() if not np.isfinite(score_N).any()]:
                unscored[name] += 1
                own[name] = _nothing(0)
            found[example] = _packed(table.slice(slice_N.start, slice_N.stop - slice_N.start), own)
    counts = Counter(pair for one in found.values() for pair in one["tokens"])
    vocabulary = sorted(counts, key=lambda pair: (-counts[pair], pair))
    number_of = {pair: number for number, pair in enumerate(vocabulary)}
    segments = list(dict.fromkeys(name for one in found.values() for name in one["runs"][::2]))
    limits = {name: limit_of(np.concatenate([_nothing(0), *parts])) for name, parts in held.items()}
    digits = {name: digits_of(limit) for name, limit in limits.items()}
    examples = []
    for example in sorted(found):
        one = found[example]
        runs = [segments.index(part) if isinstance(part, str) else part for part in one["runs"]]
        scores = {name: _steps(score_N, digits[name]) for name, score_N in one["scores"].items()}
        numbers = [number_of[pair] for pair in one["tokens"]]
        examples.append({"first": one["first"], "tokens": numbers, "runs": runs, "scores": scores})
    return PackedTokens(vocabulary, segments, examples, limits, digits, dict(unscored))


def digits_of(limit: float) -> int:
    """Return with how many decimals scores are written whose colours end at a limit."""
    return max(3, 3 - math.floor(math.log10(limit)))


def _packed(table: pa.Table, scores: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Any]:
    runs: list[Any] = []
    for segment, own in groupby(table["segment"].to_pylist()):
        runs += [segment, sum(1 for _ in own)]
    pairs = list(zip(table["token_id"].to_pylist(), table["token"].to_pylist(), strict=True))
    first = table["position"][0].as_py() if table.num_rows else 0
    return {"first": first, "tokens": pairs, "runs": runs, "scores": dict(scores)}


def _of_examples(table: pa.Table, ordinals: list[int]) -> pa.Table:
    chosen = table.filter(pa.compute.is_in(table["example"], pa.array(ordinals, pa.int64())))
    return chosen.sort_by([("example", "ascending"), ("position", "ascending")])


def _places(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return one number for each (example, position), ascending with both."""
    return (table["example"].to_numpy().astype(np.int64) << 32) + table["position"].to_numpy().astype(np.int64)


def _scores_at(
    reader: StoreReader, probe: str, unit: int, ordinals: list[int], place_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return the score at each place, NaN where there is none."""
    columns = ["example", "position", "score"]
    table = _of_examples(tables.read(reader.objects, layout.scores_table(probe, unit), columns), ordinals)
    score_N = _nothing(len(place_N))
    if table.num_rows:
        place_M = _places(table)
        at_N = np.minimum(np.searchsorted(place_M, place_N), len(place_M) - 1)
        is_there_N = place_M[at_N] == place_N
        score_N[is_there_N] = table["score"].to_numpy()[at_N[is_there_N]]
    return score_N


def _nothing(n: int) -> npt.NDArray[np.float32]:
    return np.full(n, np.nan, dtype=np.float32)


def _by_example(example_N: npt.NDArray[np.int64]) -> list[tuple[int, slice]]:
    """Return each example and where its tokens lie."""
    begins = np.flatnonzero(np.diff(example_N, prepend=example_N[:1] - 1))
    ends = [*begins[1:], len(example_N)]
    return [(int(example_N[begin]), slice(int(begin), int(end))) for begin, end in zip(begins, ends, strict=True)]


def _steps(score_N: npt.NDArray[np.float32], digits: int) -> list[int | None]:
    scaled_N = np.rint(score_N.astype(np.float64) * 10**digits)
    return [int(step) if np.isfinite(step) else None for step in scaled_N.tolist()]
