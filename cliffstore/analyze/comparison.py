"""Cliffs of several probes side by side: is it the same examples that fall, and do they fall for a control too?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.ranks import spearman
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProbeCliffs:
    """Cliffs of one probe, over its examples that have one; of scores that are no numbers there is none.

    Scales differ from probe to probe: compare `share_positive`, `effect` and `spearman`, not means.

    Attributes
    ----------
    share_positive : of cliffs that are above 0
    effect : mean / standard deviation; None where there is no deviation
    spearman : rank correlation with the first probe, over the examples that have a cliff of both; None where it has
        no meaning
    """

    probe: str
    kind: str
    examples: int
    mean: float | None
    median: float | None
    share_positive: float | None
    effect: float | None
    spearman: float | None


_CLIFFS = """
SELECT a.cliff AS first, b.cliff AS other
FROM cliffs b LEFT JOIN (SELECT * FROM cliffs WHERE probe = $1 AND isfinite(cliff)) a USING (example)
WHERE b.probe = $2 AND isfinite(b.cliff) ORDER BY example
"""


def compare_cliffs(catalog: Catalog, probes: Sequence[str]) -> list[ProbeCliffs]:
    """Return figures of each probe's cliffs, which are there. Raises `ProbeError` where a probe is not."""
    kinds = [read_probe(catalog.reader.objects, probe)[0].kind for probe in probes]
    return [_figures(catalog, probes[0], probe, kind) for probe, kind in zip(probes, kinds, strict=True)]


def _figures(catalog: Catalog, first: str, probe: str, kind: str) -> ProbeCliffs:
    table = catalog.arrow(_CLIFFS, [first, probe])
    cliff_N = table["other"].to_numpy()
    first_N = table["first"].to_numpy()  # null becomes NaN
    both_N = ~np.isnan(first_N)
    if not len(cliff_N):
        return ProbeCliffs(probe, kind, 0, None, None, None, None, None)
    deviation = float(cliff_N.std(ddof=1)) if len(cliff_N) > 1 else 0.0
    return ProbeCliffs(
        probe,
        kind,
        examples=len(cliff_N),
        mean=float(cliff_N.mean()),
        median=float(np.median(cliff_N)),
        share_positive=float((cliff_N > 0).mean()),
        effect=float(cliff_N.mean()) / deviation if deviation else None,
        spearman=spearman(first_N[both_N], cliff_N[both_N]),
    )
