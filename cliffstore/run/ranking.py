"""Cliffs, curves and their controls as a user asks for them: settings read, what is left out told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.cliff import CliffReport, rank_cliffs
from cliffstore.analyze.curves import CurveSettings, mean_curves
from cliffstore.analyze.plateau import PlateauRule
from cliffstore.config import CurveConfig
from cliffstore.run.progress import Reporter
from cliffstore.settings import read_config
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader


def rank(reader: StoreReader, probe: str, plateau: str, window: str, reporter: Reporter) -> CliffReport:
    """Rank examples by cliff, and tell what has none. Errors as for `Store.cliff`."""
    report = rank_cliffs(reader, probe, PlateauRule.parse(plateau, window))
    if report.replaced:
        reporter.notice(f"the cliffs of {probe} by the {report.replaced} are replaced")
    for count, what in (
        (report.without_thinking, "have no stored thinking, hence no cliff"),
        (report.without_decision, "have no stored decision position, hence no cliff"),
        (report.partial_thinking, "have a plateau over that part of their thinking which is stored"),
    ):
        if count:
            reporter.notice(f"{count} of {report.examples} examples {what}")
    return report


def draw_curves(
    catalog: Catalog, probes: Sequence[str], positions: str, settings: Mapping[str, object], reporter: Reporter
) -> pa.Table:
    """Return mean curves. Errors as for `Store.curves`."""
    asked = read_config(CurveConfig, None, {"store": "", "probe": tuple(probes), "positions": positions, **settings})
    chosen = asked.model_dump(exclude={"store", "storage_options", "probe", "positions"})
    distances = Distances.parse(asked.positions)
    return mean_curves(catalog, asked.probe, CurveSettings(distances, **chosen), reporter.notice)
