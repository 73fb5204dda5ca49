"""Scores in a store: one table a probe and unit, and beside it a receipt that commits it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore import __version__
from cliffstore.errors import ProbeError
from cliffstore.schema import SCORES, ProbeDocument, ScoreReceipt, UnitError
from cliffstore.store import documents, layout, receipts, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe
from cliffstore.store.reader import StoreReader

COLUMNS = ["example", "position", "to_decision", "segment", "row"]
"""What of a tokens table its scores need."""


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """Which probe a score is of: a probe of the same name with other weights has another digest."""

    name: str
    digest: str
    capture: str


def scored_units(objects: ObjectStore, probe: ProbeKey) -> set[int]:
    """Return units whose scores were made with these very weights."""
    return {receipt.unit for receipt in score_receipts(objects, probe)}


def scores_digest(receipts: Sequence[ScoreReceipt]) -> str:
    """Return a sha256 over the scores that these receipts commit."""
    digests = sorted((receipt.unit, receipt.digest) for receipt in receipts)
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def score_receipts(objects: ObjectStore, probe: ProbeKey) -> list[ScoreReceipt]:
    """Return the receipts of all scores that were made with these very weights, by unit."""
    keys = [key for key in objects.list(layout.scores_of(probe.name)) if key.endswith(".json")]
    found = documents.read_many(objects, ScoreReceipt, keys)
    own = [receipt for receipt in found if receipt.probe_digest == probe.digest]
    return sorted(own, key=lambda receipt: receipt.unit)


def find_scores(reader: StoreReader, probe: str) -> tuple[ProbeDocument, list[ScoreReceipt]]:
    """Return a probe by its name, and the receipts of its scores by unit.

    Raises
    ------
    ProbeError
        There is no such probe, or it has no scores.
    """
    document, _ = read_probe(reader.objects, probe)
    receipts = score_receipts(reader.objects, ProbeKey(probe, document.digest, document.capture))
    if not receipts:
        raise no_scores(reader, probe)
    return document, receipts


def no_scores(reader: StoreReader, probe: str) -> ProbeError:
    """Return the error for a probe without scores."""
    return ProbeError(f"probe {probe!r} has no scores yet: run `cliffstore score {reader.url} --probe {probe}`")


def is_scored(objects: ObjectStore, probe: ProbeKey, unit: int) -> bool:
    """Return whether one unit has its scores."""
    try:
        receipt = documents.read(objects, ScoreReceipt, layout.scores_receipt(probe.name, unit))
    except FileNotFoundError:
        return False
    return receipt.probe_digest == probe.digest


def write_unit_scores(
    objects: ObjectStore,
    plan: str,
    probe: ProbeKey,
    unit: int,
    tokens: pa.Table,
    row_start: int,
    scores_R: npt.NDArray[np.float32],
    *,
    attempt: int,
    worker: str,
    seconds: float,
) -> ScoreReceipt:
    """Write the scores of a unit, then its receipt, which removes an error.

    Parameters
    ----------
    tokens : the unit's tokens table, at least `COLUMNS`; tokens without a row have no score
    scores_R : float32, score of each row from `row_start` on
    seconds : time that computing took
    """
    stored = tokens.select(COLUMNS).filter(tokens["row"].is_valid())
    rows_N = stored["row"].to_numpy()
    table = stored.drop_columns(["row"]).append_column("score", pa.array(scores_R[rows_N - row_start], pa.float32()))
    provenance: Mapping[str, str] = {
        "plan": plan,
        "capture": probe.capture,
        "probe": probe.name,
        "probe_digest": probe.digest,
    }
    key = layout.scores_table(probe.name, unit)
    digest = tables.write(objects, key, table.cast(SCORES), provenance, plain=["score"])
    receipt = ScoreReceipt(
        probe=probe.name,
        probe_digest=probe.digest,
        unit=unit,
        n_tokens=stored.num_rows,
        digest=digest,
        attempt=attempt,
        worker=worker,
        seconds=round(seconds, 3),
        cliffstore_version=__version__,
    )
    documents.put(objects, receipt)
    objects.delete(layout.unit_error(layout.score_errors(probe.name), unit))
    return receipt


def record_error(objects: ObjectStore, probe: ProbeKey, unit: int, attempt: int, worker: str, error: str) -> None:
    """Write down why a unit has no scores of a probe; the view `units` shows it."""
    capture, text = layout.score_errors(probe.name), f"probe {probe.name}: {error}"
    receipts.record_error(objects, UnitError(capture=capture, unit=unit, attempt=attempt, worker=worker, error=text))
