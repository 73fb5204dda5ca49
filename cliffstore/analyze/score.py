"""Scores of a probe at every stored token, unit by unit; a unit that has its scores is not scored again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from cliffstore.schema import ProbeDocument
from cliffstore.store import receipts
from cliffstore.store.arrays import ArraySpec, to_float32
from cliffstore.store.probes import ProbeWeights, read_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import COLUMNS, ProbeKey, scored_units, write_unit_scores

Advance = Callable[[int], None]
"""Called with the tokens of a unit that has its scores now."""


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What scoring did. `units_missing` are planned but not extracted yet."""

    probe: str
    units: int
    units_done_before: int
    units_missing: int
    tokens: int


def score_units(
    reader: StoreReader,
    probe: str,
    begin: Callable[[int], None],
    advance: Advance,
    units: Collection[int] | None = None,
) -> ScoreReport:
    """Score every extracted unit that has no scores of this probe yet.

    Parameters
    ----------
    units : score no others than these; None means all

    Raises
    ------
    ProbeError
        There is no such probe.
    """
    document, weights = read_probe(reader.objects, probe)
    scored = scored_units(reader.objects, probe_key(document))
    planned = set(reader.plan_tables.units)
    if planned <= scored:  # all of them, perhaps by a run that stored no activation
        begin(0)
        return ScoreReport(probe, 0, len(scored), 0, 0)
    _, spec = reader.find_array(document.site, document.layer, document.alias)
    extracted = set(receipts.committed(reader.objects, document.capture))
    pending = sorted(unit for unit in extracted - scored if units is None or unit in units)
    begin(len(pending))
    tokens = 0
    for unit in pending:
        scored_now = _score_unit(reader, document, weights, spec, unit)
        tokens += scored_now
        advance(scored_now)
    done_before = len(scored & planned)
    return ScoreReport(probe, len(pending), done_before, len(planned - scored - extracted), tokens)


def probe_key(document: ProbeDocument) -> ProbeKey:
    """Return what scores name their probe by."""
    return ProbeKey(document.name, document.digest, document.capture)


def _score_unit(reader: StoreReader, probe: ProbeDocument, weights: ProbeWeights, spec: ArraySpec, unit: int) -> int:
    tokens = reader.plan_tables.tokens(unit, COLUMNS)
    rows_N = tokens["row"].drop_null().to_numpy()
    first, last = int(rows_N.min()), int(rows_N.max())
    stored = reader.arrays.read_range(spec.key, first, last + 1)
    scores_R = weights.scores(to_float32(stored, spec.dtype).reshape(last - first + 1, -1))
    plan = reader.plan_tables.units[unit].plan
    return write_unit_scores(reader.objects, plan, probe_key(probe), unit, tokens, first, scores_R).n_tokens
