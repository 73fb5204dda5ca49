"""Cliffs: how far the score falls between the thinking and the last token before the answer. Plain SQL over scores.

plateau = mean score over the segment `think`; final = score at the decision position; cliff = plateau - final
(DESIGN: Words). Scores are logits. Each example is averaged over the tokens it has: nothing is padded. An example
without thinking has no plateau and no cliff; it stays in the table, with null in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cliffstore.errors import ProbeError
from cliffstore.schema import CLIFFS
from cliffstore.store import layout, tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

CLIFF_SQL = """
WITH s AS (SELECT example, position, to_decision, segment, score FROM scores WHERE probe = $probe),
ends AS (
    SELECT example, avg(score) FILTER (segment = 'think') AS plateau,
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


@dataclass(frozen=True, slots=True)
class CliffReport:
    """What was ranked: examples with scores, and how many of them have no thinking and hence no cliff."""

    probe: str
    examples: int
    without_thinking: int


def rank_cliffs(catalog: Catalog, probe: str) -> CliffReport:
    """Compute the cliff of every scored example and write `cliffs/<probe>.parquet`.

    Raises
    ------
    ProbeError
        There is no such probe, or it has no scores.
    """
    document, _ = read_probe(catalog.reader.objects, probe)
    table = cliff_table(catalog, probe)
    if not table.num_rows:
        raise ProbeError(
            f"probe {probe!r} has no scores yet: run `cliffstore score {catalog.reader.url} --probe {probe}`"
        )
    provenance = {"capture": document.capture, "probe": probe, "probe_digest": document.digest}
    tables.write(catalog.reader.objects, layout.cliffs_table(probe), table, provenance)
    return CliffReport(probe, table.num_rows, table["cliff"].null_count)


def cliff_table(catalog: Catalog, probe: str) -> pa.Table:
    """Return example, plateau, final, cliff, n_think, steepest_position of every scored example."""
    return catalog.arrow(CLIFF_SQL, {"probe": probe}).cast(CLIFFS)
