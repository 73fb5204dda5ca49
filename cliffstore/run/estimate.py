"""What an extraction will take, said before it begins; a question where that is much."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError
from cliffstore.extract.calibration import CorpusShape
from cliffstore.extract.unit import split_examples
from cliffstore.plan.prefix import shared_lengths
from cliffstore.records import PlannedUnit
from cliffstore.run.progress import Reporter
from cliffstore.store.arrays import ArraySpec

_SAMPLE_TOKENS = 1 << 17


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to be computed and stored. Bytes are before compression; seconds are of computing."""

    tokens: int
    rows: int
    bytes_by_site: dict[str, int]
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(self.bytes_by_site.values())

    def describe(self) -> str:
        """Return one line for the user."""
        sites = ", ".join(f"{site} {format_bytes(size)}" for site, size in self.bytes_by_site.items())
        stored = f"{format_bytes(self.bytes)} of vectors before compression ({sites})" if sites else "scores only"
        return (
            f"estimate: {self.tokens:,} tokens in {self.rows:,} rows, {stored}, about {format_seconds(self.seconds)} "
            "of computing"
        )


def estimate(specs: Sequence[ArraySpec], units: Sequence[PlannedUnit], seconds: float) -> Estimate:
    """Return the estimate of the units that are not done yet.

    Parameters
    ----------
    specs : arrays that are filled; none where only scores are stored
    seconds : expected time of one worker for them, divided by the number of workers
    """
    rows = sum(unit.n_rows for unit in units)
    by_site: dict[str, int] = {}
    for spec in specs:
        by_site[spec.site] = by_site.get(spec.site, 0) + rows * spec.bytes_per_row
    return Estimate(sum(unit.n_tokens for unit in units), rows, by_site, seconds)


def confirm(found: Estimate, config: ExtractConfig, reporter: Reporter) -> None:
    """Ask before much is computed or stored.

    Raises
    ------
    ConfigError
        The user says no, or cannot be asked and did not say `--yes`.
    """
    much = found.bytes > config.confirm_gb * 1e9 or found.seconds > config.confirm_hours * 3600
    if not much or config.yes:
        return
    limits = f"more than --confirm-gb {config.confirm_gb:g} or --confirm-hours {config.confirm_hours:g}"
    answer = reporter.ask(f"That is {limits}. Begin?") if sys.stdin is not None and sys.stdin.isatty() else None
    if answer is None:
        raise ConfigError(
            f"{format_bytes(found.bytes)} and about {format_seconds(found.seconds)} are {limits}: "
            "pass --yes to begin (nothing was written)"
        )
    if not answer:
        raise ConfigError("not begun, nothing was written")


def corpus_shape(units: Sequence[PlannedUnit], tokens: Callable[[PlannedUnit], pa.Table]) -> CorpusShape:
    """Return what calibration needs to know of the units to compute: lengths and shared prefixes, no content.

    Parameters
    ----------
    tokens : reads the tokens of a unit; one of them is read
    """
    sequences = [example.token_ids for example in split_examples(tokens(units[len(units) // 2]))]
    total = np.cumsum([len(sequence) for sequence in sequences])
    sequences = sequences[: max(int(np.searchsorted(total, _SAMPLE_TOKENS)), 1)]
    return CorpusShape(
        lengths=tuple(len(sequence) for sequence in sequences),
        shared=tuple(shared_lengths(sequences)),
        n_nodes=sum(unit.n_nodes for unit in units),
        n_padded=sum(unit.n_padded for unit in units),
        longest=max(unit.longest for unit in units),
    )


def format_bytes(size: int) -> str:
    """Return '1.5 GB'."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:,.0f} kB"


def format_seconds(seconds: float) -> str:
    """Return '2.5 h', '12 min' or '40 s'."""
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{max(seconds, 1):,.0f} s"
