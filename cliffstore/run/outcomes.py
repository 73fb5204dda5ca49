"""What became of the units of a run, as they end: told to the user, and kept for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cliffstore.errors import ExtractionError
from cliffstore.records import UnitReport
from cliffstore.run.executor import UnitOutcome
from cliffstore.run.progress import Piece, Reporter


@dataclass(slots=True)
class Outcomes:
    """Reports of units that are done, and errors of those that were given up."""

    reporter: Reporter
    found: list[UnitReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def take(self, outcome: UnitOutcome) -> None:
        """Keep how one unit ended."""
        done = outcome.report
        if done is not None:
            self.found.append(done)
            self.tell(done.notices)
        else:
            self.errors.append(outcome.error or f"unit {outcome.unit} failed")
            self.tell((self.errors[-1],))
        self.reporter.advance(Piece(done.n_tokens, done.bytes) if done else Piece(failed=True))

    def tell(self, notices: Sequence[str]) -> None:
        """Tell the user."""
        for notice in notices:
            self.reporter.notice(notice)

    def check(self, total: int) -> None:
        """Raise `ExtractionError` where units of the `total` of a run were given up."""
        if self.errors:
            raise ExtractionError(
                f"{len(self.errors)} of {total} units failed, the others are stored "
                f"(SELECT unit, error FROM units WHERE error IS NOT NULL); the first: {self.errors[0]}"
            )
