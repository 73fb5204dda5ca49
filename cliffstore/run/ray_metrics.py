"""Figures of a run for the metrics that Ray exports: what has been done, how fast, and how much is left.

Counters go on over several runs of one driver, gauges are of the run at work. Ray sends them to its node's export
port every few seconds (`ray start --metrics-export-port`), where Prometheus reads them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from cliffstore.run.executor import UnitJob, UnitOutcome
from cliffstore.run.progress import Piece, Tally

TAGS = ("store", "capture")


class RunMetrics:
    """Metrics of one run of units.

    Parameters
    ----------
    units : how many the run has
    """

    def __init__(self, job: UnitJob, units: int) -> None:
        self._tally = Tally(units, 0)
        tags = {"store": job.store, "capture": job.receipts_name}
        counters = (
            ("tokens_total", "tokens of units that are done"),
            ("bytes_total", "bytes of vectors, before compression, of units that are done"),
            ("units_done_total", "units that are done"),
            ("units_failed_total", "units that were given up"),
        )
        gauges = (
            ("queue_depth", "units that have not ended: they wait, or are being computed"),
            ("tokens_per_second", "tokens a second since the run began"),
            ("bytes_per_second", "bytes of vectors, before compression, a second since the run began"),
        )
        self._counters = {name: Counter(f"cliffstore_{name}", what, TAGS) for name, what in counters}
        self._gauges = {name: Gauge(f"cliffstore_{name}", what, TAGS) for name, what in gauges}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags(tags)
        self._gauges["queue_depth"].set(units)

    def take(self, outcome: UnitOutcome) -> None:
        """Count how one unit ended."""
        done = outcome.report
        self._tally.add(Piece(done.n_tokens, done.bytes) if done else Piece(failed=True))
        counted = {
            "tokens_total": done.n_tokens if done else 0,
            "bytes_total": done.bytes if done else 0,
            "units_done_total": int(done is not None),
            "units_failed_total": int(done is None),
        }
        for name, value in counted.items():
            if value:
                self._counters[name].inc(value)
        self._gauges["queue_depth"].set(self._tally.queue_depth)
        self._gauges["tokens_per_second"].set(self._tally.tokens_per_second)
        self._gauges["bytes_per_second"].set(self._tally.bytes_per_second)
