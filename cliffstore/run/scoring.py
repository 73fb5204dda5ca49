"""Scoring a store: which units lack scores of which probes, and an executor that makes them.

A unit goes to a worker once for all probes that it lacks. What has a receipt of a probe's very weights is left alone,
so the same command goes on after a crash, and a probe that was fitted later is scored alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from cliffstore.analyze.score import ScoredProbe, ScoreJob, ScoreSpec
from cliffstore.errors import InterruptedRunError, ProbeError, StoreError
from cliffstore.run.executor import from_anywhere
from cliffstore.run.outcomes import Outcomes
from cliffstore.run.placement import choose_scoring_executor
from cliffstore.run.progress import Reporter
from cliffstore.store import receipts
from cliffstore.store.probes import list_probes, read_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import ProbeKey, scored_units

ALL = "all"
"""In the place of a probe's name: every probe of the store."""


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What scoring did for one probe.

    Attributes
    ----------
    units : scored now
    units_done_before : had scores already
    units_missing : planned but not extracted yet
    tokens : scored now
    """

    probe: str
    units: int
    units_done_before: int
    units_missing: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ScoringReport:
    """What scoring did, all probes together: a unit, and its tokens, count once, whatever number of probes it lacked.

    Attributes
    ----------
    units_done_before : units that had scores of all probes
    units_missing : units that are not extracted yet for one of the probes
    seconds : wall time of the units
    """

    units: int
    units_done_before: int
    units_missing: int
    tokens: int
    seconds: float
    executor: str
    probes: tuple[ScoreReport, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A probe and the units that it is to be scored on; `probe` is None where there are none."""

    key: ProbeKey
    probe: ScoredProbe | None
    done: frozenset[int]
    missing: frozenset[int]
    pending: frozenset[int]


def score_store(
    reader: StoreReader,
    probes: Sequence[str],
    reporter: Reporter,
    *,
    executor: str = "auto",
    actors: int | None = None,
    units: Collection[int] | None = None,
) -> ScoringReport:
    """Score every extracted unit with each of the probes that it has no scores of.

    Parameters
    ----------
    probes : names; `all` means every probe of the store
    executor, actors : as for extraction
    units : score no others than these; None means all

    Raises
    ------
    ProbeError, StoreError, ConfigError
        There is no such probe, its array is not captured, or there are no such workers.
    ExtractionError
        Some units could not be scored; all others have their scores.
    InterruptedRunError
        Ctrl-C; the same call goes on from there.
    """
    planned = frozenset(reader.plan_tables.units)
    wanted = _find_all(reader, probes, planned, units, reporter)
    pending = sorted(frozenset[int]().union(*(one.pending for one in wanted)))
    missing = frozenset[int]().union(*(one.missing for one in wanted))
    done = planned.intersection(*(one.done for one in wanted))
    if missing:
        reporter.notice(f"{len(missing)} units are not extracted yet and have no scores")
    if not pending:
        return _report(wanted, done, missing, Outcomes(reporter), 0.0, "none")
    scored = tuple(one.probe for one in wanted if one.probe is not None)
    job = ScoreJob(reader.url, scored, dict(reader.objects.storage_options))
    total, resumed = len(pending) + len(done), f", {len(done)} have their scores already" if done else ""
    chosen, outcomes = choose_scoring_executor(executor, actors), Outcomes(reporter)
    try:
        chosen.start(ScoreSpec())
        reporter.stage(f"score: {len(pending)} units by {_names(scored)}{resumed}, {chosen.description}")
        reporter.begin("score", total, len(done))
        begun = time.monotonic()
        try:
            chosen.run(job, from_anywhere(pending), outcomes.take, reporter.notice)
        finally:
            reporter.end()
    except InterruptedRunError:
        kept = planned.intersection(*(scored_units(reader.objects, one.key) for one in wanted))
        raise InterruptedRunError(
            f"interrupted: {len(kept)} of {total} units have their scores; run the same command again to go on"
        ) from None
    finally:
        chosen.close()
    outcomes.check(total)
    return _report(wanted, done, missing, outcomes, time.monotonic() - begun, chosen.description)


def _find_all(
    reader: StoreReader,
    probes: Sequence[str],
    planned: frozenset[int],
    units: Collection[int] | None,
    reporter: Reporter,
) -> list[_Wanted]:
    """Return what is to be scored; of `all` probes, those are left out, and told, whose array is not in the store."""
    if ALL not in probes:
        return [_find(reader, name, planned, units) for name in dict.fromkeys(probes)]
    found = []
    for document in list_probes(reader.objects):
        try:
            found.append(_find(reader, document.name, planned, units))
        except StoreError as error:
            reporter.notice(f"probe {document.name} is left out: {error}")
    if not found:
        raise ProbeError(f"store {reader.url} has no probe to score with: fit one with `cliffstore probe fit`")
    return found


def _find(reader: StoreReader, name: str, planned: frozenset[int], units: Collection[int] | None) -> _Wanted:
    document, weights = read_probe(reader.objects, name)
    key = ProbeKey(document.name, document.digest, document.capture)
    done = planned & scored_units(reader.objects, key)
    if done == planned:  # perhaps by a run that stored no activation
        return _Wanted(key, None, done, frozenset(), frozenset())
    _, array = reader.find_array(document.site, document.layer, document.alias)
    if (width := prod(array.row_shape)) != len(weights.w_D):
        raise ProbeError(f"probe {name!r} has {len(weights.w_D)} weights, and vectors of {array.name} are of {width}")
    extracted = planned & receipts.committed(reader.objects, document.capture)
    pending = extracted - done if units is None else (extracted - done) & frozenset(units)
    return _Wanted(key, ScoredProbe(key, array, weights, pending), done, planned - done - extracted, pending)


def _report(
    wanted: Sequence[_Wanted],
    done: Collection[int],
    missing: Collection[int],
    outcomes: Outcomes,
    seconds: float,
    executor: str,
) -> ScoringReport:
    def tokens(pending: Collection[int]) -> int:
        return sum(report.n_tokens for report in outcomes.found if report.unit in pending)

    return ScoringReport(
        units=len(outcomes.found),
        units_done_before=len(done),
        units_missing=len(missing),
        tokens=sum(report.n_tokens for report in outcomes.found),
        seconds=round(seconds, 3),
        executor=executor,
        probes=tuple(
            ScoreReport(one.key.name, len(one.pending), len(one.done), len(one.missing), tokens(one.pending))
            for one in wanted
        ),
    )


def _names(probes: Sequence[ScoredProbe]) -> str:
    """Return the probes' names, some of them where there are many."""
    names = [probe.key.name for probe in probes]
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)
