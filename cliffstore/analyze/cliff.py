"""Cliffs: how far the score falls between the thinking and the last token before the answer. Plain SQL over scores.

plateau = mean score over the segment `think`; final = score at the decision position; cliff = plateau - final
(DESIGN: Words). Scores are logits. Each example is averaged over the tokens it has: nothing is padded. An example
without thinking has no plateau and no cliff; it stays in the table, with null in both.

Where not all positions are stored, the mean goes over the thinking tokens that are, and the steepest position ends
the largest fall from one stored token to the next, however far apart they are.

Sums are over tokens in their order, so that equal scores give equal cliffs to the last bit, in whatever order they
are read and on however many threads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from cliffstore import __version__
from cliffstore.errors import DamagedStoreError, ProbeError
from cliffstore.schema import CLIFFS, CliffsDocument
from cliffstore.store import documents, layout, tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe
from cliffstore.store.scores import ProbeKey, scores_digest

CLIFF_SQL = """
WITH s AS (SELECT example, position, to_decision, segment, score FROM scores WHERE probe = $probe),
ends AS (
    SELECT example, list_avg(list(score ORDER BY position) FILTER (segment = 'think')) AS plateau,
           max(score) FILTER (to_decision = 0) AS final,
           count(*) FILTER (segment = 'think') AS n_think,
           min(position) FILTER (segment = 'think') AS first_think
    FROM s GROUP BY example
),
drops AS (
    SELECT example, position, lag(score) OVER (PARTITION BY example ORDER BY position) - score AS fall
    FROM s WHERE to_decision <= 0
),
steepest AS (
    SELECT example, arg_max(position, (fall, -position)) AS steepest_position
    FROM drops JOIN ends USING (example) WHERE position > first_think AND fall IS NOT NULL GROUP BY example
)
SELECT example, plateau, final, plateau - final AS cliff, n_think, steepest_position
FROM ends LEFT JOIN steepest USING (example) ORDER BY example
"""
GAPS_SQL = """
WITH s AS (
    SELECT example, count(*) FILTER (segment = 'think') AS n_think FROM scores WHERE probe = $probe GROUP BY example
),
gaps AS (SELECT DISTINCT example FROM tokens WHERE row IS NULL AND segment = 'think')
SELECT count(*) FILTER (n_think > 0) AS partial, count(*) FILTER (n_think = 0) AS absent
FROM gaps JOIN s USING (example)
"""
"""Scored examples of which a part of the thinking, or all of it, is not stored."""


@dataclass(frozen=True, slots=True)
class CliffReport:
    """What was ranked: examples with scores. The further counts are zero where all positions are stored.

    Attributes
    ----------
    without_thinking : examples that have no thinking with scores, hence no cliff
    without_decision : examples that have no score at the decision position, hence no cliff
    partial_thinking : examples whose plateau is that of a part of their thinking
    """

    probe: str
    examples: int
    without_thinking: int
    without_decision: int = 0
    partial_thinking: int = 0


def rank_cliffs(catalog: Catalog, probe: str) -> CliffReport:
    """Compute the cliff of every scored example, unless that was done already for the scores that there are.

    Writes `cliffs/<probe>.parquet` and its document.

    Raises
    ------
    ProbeError
        There is no such probe, or it has no scores, or none that a cliff could be made of.
    """
    objects = catalog.reader.objects
    document, _ = read_probe(objects, probe)
    scores = scores_digest(objects, ProbeKey(probe, document.digest, document.capture))
    held = _held(objects, probe, scores)
    if held is not None:
        return held
    table = cliff_table(catalog, probe)
    if not table.num_rows:
        raise ProbeError(
            f"probe {probe!r} has no scores yet: run `cliffstore score {catalog.reader.url} --probe {probe}`"
        )
    gaps = catalog.arrow(GAPS_SQL, {"probe": probe}).to_pylist()[0]
    if table["cliff"].null_count == table.num_rows and (gaps["absent"] or table["final"].null_count):
        raise ProbeError(
            "no example has scores both in its thinking and at its decision position: extract with `think,decision` "
            "among the --positions, into another --store"
        )
    provenance = {"capture": document.capture, "probe": probe, "probe_digest": document.digest}
    digest = tables.write(objects, layout.cliffs_table(probe), table, provenance)
    documents.put(
        objects,
        CliffsDocument(
            probe=probe,
            probe_digest=document.digest,
            capture=document.capture,
            scores=scores,
            examples=table.num_rows,
            partial_thinking=gaps["partial"],
            digest=digest,
            cliffstore_version=__version__,
        ),
    )
    return _report(probe, table, gaps["partial"])


def _held(objects: ObjectStore, probe: str, scores: str) -> CliffReport | None:
    """Return the report of cliffs that are there, whole, and of these very scores; None where there are none."""
    try:
        document = documents.read(objects, CliffsDocument, layout.cliffs_document(probe))
        content = objects.get(layout.cliffs_table(probe))
    except (FileNotFoundError, DamagedStoreError):
        return None
    made_from = (document.scores, document.cliffstore_version, document.digest)
    if made_from != (scores, __version__, hashlib.sha256(content).hexdigest()):
        return None
    documents.keep_copy(objects, layout.cliffs_document(probe))
    return _report(probe, tables.decode(layout.cliffs_table(probe), content), document.partial_thinking)


def _report(probe: str, cliffs: pa.Table, partial_thinking: int) -> CliffReport:
    without_thinking, without_decision = cliffs["plateau"].null_count, cliffs["final"].null_count
    return CliffReport(probe, cliffs.num_rows, without_thinking, without_decision, partial_thinking)


def cliff_table(catalog: Catalog, probe: str) -> pa.Table:
    """Return example, plateau, final, cliff, n_think, steepest_position of every scored example."""
    return catalog.arrow(CLIFF_SQL, {"probe": probe}).cast(CLIFFS)
