"""Scores of a probe at every stored token, unit by unit; a unit that has its scores is not scored again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cliffstore.schema import SCORES, ProbeDocument, ScoreReceipt
from cliffstore.store import layout, receipts, tables
from cliffstore.store.arrays import ArraySpec, to_float32
from cliffstore.store.probes import ProbeWeights, read_probe
from cliffstore.store.reader import StoreReader

Advance = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What scoring did. `units_missing` are planned but not extracted yet."""

    probe: str
    units: int
    units_done_before: int
    units_missing: int
    tokens: int


def score_units(reader: StoreReader, probe: str, begin: Callable[[int], None], advance: Advance) -> ScoreReport:
    """Score every extracted unit that has no scores of this probe yet.

    Raises
    ------
    ProbeError
        There is no such probe.
    """
    document, weights = read_probe(reader.objects, probe)
    _, spec = reader.find_array(document.site, document.layer, document.alias)
    extracted = sorted(receipts.committed(reader.objects, document.capture))
    scored = _scored(reader, document)
    pending = [unit for unit in extracted if unit not in scored]
    plan_of = {row["unit"]: row["plan"] for row in reader.units().to_pylist()}
    begin(len(pending))
    tokens = 0
    for unit in pending:
        tokens += _score_unit(reader, document, weights, spec, plan_of[unit], unit)
        advance("")
    return ScoreReport(probe, len(pending), len(extracted) - len(pending), len(plan_of) - len(extracted), tokens)


def _scored(reader: StoreReader, probe: ProbeDocument) -> set[int]:
    """Return units whose scores were made with these very weights."""
    keys = [key for key in reader.objects.list(layout.scores_of(probe.name)) if key.endswith(".json")]
    found = (ScoreReceipt.model_validate_json(reader.objects.get(key)) for key in keys)
    return {receipt.unit for receipt in found if receipt.probe_digest == probe.digest}


def _score_unit(
    reader: StoreReader, probe: ProbeDocument, weights: ProbeWeights, spec: ArraySpec, plan: str, unit: int
) -> int:
    columns = ["example", "position", "to_decision", "segment", "row"]
    tokens = tables.read(reader.objects, layout.tokens_table(plan, unit), columns)
    tokens = tokens.filter(tokens["row"].is_valid())
    rows_N = tokens["row"].to_numpy()
    first, last = int(rows_N.min()), int(rows_N.max())
    stored = reader.arrays.read_range(spec.key, first, last + 1)
    scores_R = weights.scores(to_float32(stored, spec.dtype).reshape(last - first + 1, -1))
    table = tokens.drop_columns(["row"]).append_column("score", pa.array(scores_R[rows_N - first], pa.float32()))
    provenance = {"plan": plan, "capture": probe.capture, "probe": probe.name, "probe_digest": probe.digest}
    key = layout.scores_table(probe.name, unit)
    digest = tables.write(reader.objects, key, table.cast(SCORES), provenance)
    receipt = ScoreReceipt(
        probe=probe.name, probe_digest=probe.digest, unit=unit, n_tokens=len(np.asarray(rows_N)), digest=digest
    )
    reader.objects.put(layout.scores_receipt(probe.name, unit), receipt.to_bytes())
    return receipt.n_tokens
