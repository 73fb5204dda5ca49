"""Repairing what `verify` finds, in the order in which one thing depends on another.

First documents from their copies, the metadata of arrays, and tables of plans, until they agree: they say what
everything else must be. Then leftovers go, and what is condemned loses its receipt, so that nobody sees it, and is
extracted, scored, ranked and chosen again, no more than that. In the end everything is verified once more. Each step
leaves the store readable; an interrupted repair is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec

from cliffstore.analyze.cliff import rank_cliffs, rule_of
from cliffstore.errors import CliffstoreError, CorpusError, InterruptedRunError, ProbeError
from cliffstore.publish.selection import select_examples, settings_of
from cliffstore.run.origins import Origins, extraction_of, scoring_of, tables_again
from cliffstore.run.places import units_placed
from cliffstore.run.progress import Reporter
from cliffstore.run.scoring import score_store
from cliffstore.run.stages import run_extraction
from cliffstore.run.verification import verify
from cliffstore.schema import CliffsDocument, PlanDocument, SelectionDocument
from cliffstore.store import documents, layout, receipts
from cliffstore.store.catalog import Catalog
from cliffstore.store.checks.findings import Action, Finding
from cliffstore.store.checks.vectors import expected_metadata
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import put_tables
from cliffstore.store.probes import read_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.verify import VerifyReport

P = ParamSpec("P")

_GROUNDWORK = (Action.RESTORE, Action.METADATA, Action.PLAN)
_MOST_ROUNDS = 4
"""Of groundwork: a restored document may show that what it describes is damaged too."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was found, done, not done, and what is left.

    Attributes
    ----------
    found : in the order in which it came to light
    after : of the last verification, over everything
    """

    found: tuple[Finding, ...]
    done: tuple[str, ...]
    failed: tuple[str, ...]
    after: VerifyReport


def repair_store(objects: ObjectStore, origins: Origins, reporter: Reporter) -> RepairReport:
    """Find what is wrong with a store and repair it; nothing else may write to it meanwhile.

    Parameters
    ----------
    origins : where models and corpora are, of which the store holds names only

    Raises
    ------
    StoreError
        There is no store, or it is of a newer format.
    InterruptedRunError
        Ctrl-C; the same call goes on from there.
    """
    return _Repair(objects, origins, reporter).run()


@dataclass(slots=True)
class _Repair:
    objects: ObjectStore
    origins: Origins
    reporter: Reporter
    found: dict[tuple[str, str], Finding] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> RepairReport:
        self._groundwork()
        report = verify(self.objects, self.reporter)
        self._note(report.findings)
        if not self.found:
            return RepairReport((), (), (), report)
        if any(finding.action not in (*_GROUNDWORK, Action.NONE) for finding in report.findings):
            self._rebuild(report.findings)
            report = verify(self.objects, self.reporter)
        return RepairReport(tuple(self.found.values()), tuple(self.done), tuple(self.failed.values()), report)

    def _note(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.found.setdefault((finding.key, finding.problem), finding)

    def _attempt(self, what: str, how: str, action: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Repair something; what cannot be repaired is told, and the rest goes on."""
        try:
            remark = action(*args, **kwargs)
        except InterruptedRunError:
            raise
        except (CliffstoreError, FileNotFoundError) as error:
            self.failed[what] = f"{what}: {error}"
            self.reporter.notice(self.failed[what])
        else:
            self.failed.pop(what, None)
            self.done.append(f"{what}: {how}{f'; {remark}' if remark else ''}")
            self.reporter.stage(f"repair: {self.done[-1]}")

    def _groundwork(self) -> None:
        """Restore documents, metadata and tables of plans, as long as something comes of it."""
        for _ in range(_MOST_ROUNDS):
            findings = verify(self.objects, self.reporter, only_documents=True).findings
            self._note(findings)
            todo = [one for one in findings if one.action in _GROUNDWORK]
            n_done = len(self.done)
            for finding in _of(todo, Action.RESTORE):
                self._attempt(finding.key, f"copied from {finding.target}", self._restore, finding)
            if metadata := _of(todo, Action.METADATA):
                self._attempt(
                    f"metadata of {len(metadata)} arrays and groups", "written again", self._describe, metadata
                )
            for plan, own in _by_target(_of(todo, Action.PLAN)).items():
                self._attempt(f"{len(own)} tables of {plan}", "made again", self._plan, plan, own)
            if len(self.done) == n_done:
                return

    def _restore(self, finding: Finding) -> None:
        content = self.objects.get(finding.target)
        key = layout.original_of(finding.key) or finding.key
        documents.check(self.objects, key, content)
        self.objects.put(finding.key, content)

    def _describe(self, findings: Sequence[Finding]) -> None:
        reader = self._reader()
        expected = expected_metadata(reader.captures(), units_placed(self.objects), reader.manifest.chunking)
        for finding in findings:
            self.objects.put(finding.key, expected[finding.key])

    def _plan(self, plan: str, findings: Sequence[Finding]) -> None:
        """Make tables again, and put back those that come out as they were."""
        document = documents.read(self.objects, PlanDocument, layout.plan_document(plan))
        wanted = [layout.path_in_plan(finding.key) for finding in findings]
        with tables_again(self._reader(), document, self.origins, self.reporter) as planned:
            made = planned.document.tables
            equal = [path for path in wanted if made.get(path) == document.tables.get(path)]
            assert planned.tables is not None
            put_tables(self.objects, plan, planned.tables, equal)
        if len(equal) < len(wanted):
            raise CorpusError(
                f"{len(wanted) - len(equal)} came out otherwise and stay as they are: files of the corpus must have "
                "the names that they had, and cliffstore the version"
            )

    def _remove(self, key: str) -> None:
        documents.delete(self.objects, key)

    def _rebuild(self, findings: Sequence[Finding]) -> None:
        """Remove what belongs to nothing, and make again what is condemned."""
        leftovers = sorted(_of(findings, Action.REMOVE), key=lambda one: layout.kind_of(one.key) != "receipt")
        for finding in leftovers:
            self._attempt(finding.key, "removed", self._remove, finding.key)
        for capture, own in _by_target(_of(findings, Action.EXTRACT)).items():
            units = _units(own)
            self._attempt(f"{_count(units)} of {capture}", "extracted again", self._extract, capture, units)
        for probe, own in _by_target(_of(findings, Action.SCORE)).items():
            units = _units(own)
            self._attempt(f"{_count(units)} of probe {probe}", "scored again", self._score, probe, units)
        for probe in _by_target(_of(findings, Action.RANK)):
            self._attempt(f"cliffs of {probe}", "ranked again", self._rank, probe)
        for name in _by_target(_of(findings, Action.SELECT)):
            self._attempt(f"selection {name}", "chosen again", self._select, name)

    def _extract(self, name: str, units: set[int]) -> None:
        """Extract units again. Nothing is removed before the model is found."""
        capture = next(one for one in self._reader().captures() if one.capture == name)
        config = extraction_of(self.objects, capture, self.origins, self.reporter)
        for unit in sorted(units):
            # Shards stay until they are replaced: should this end early, they tell that the unit is to be extracted.
            self.objects.delete(layout.receipt(name, unit))
        run_extraction(config, self.reporter, units, capture.interventions)

    def _score(self, name: str, units: set[int]) -> None:
        """Score units again: from their vectors where those are stored, otherwise by running the model."""
        probe, _ = read_probe(self.objects, name)
        live = units - receipts.committed(self.objects, probe.capture)
        config = scoring_of(self.objects, probe, self.origins, self.reporter) if live else None
        for unit in sorted(units):
            self.objects.delete(layout.scores_receipt(name, unit))
        if stored := units - live:
            score_store(self._reader(), [name], self.reporter, executor=self.origins.executor, units=stored)
        if config is not None:
            run_extraction(config, self.reporter, live, probe.interventions)

    def _rank(self, probe: str) -> str | None:
        key = layout.cliffs_document(probe)
        before = documents.read(self.objects, CliffsDocument, key) if self.objects.exists(key) else None
        rank_cliffs(self._reader(), probe, rule_of(self.objects, probe))
        after = documents.read(self.objects, CliffsDocument, key)
        return _remark(before is None or before.digest == after.digest)

    def _select(self, name: str) -> str | None:
        key = layout.selection_document(name)
        before = documents.read(self.objects, SelectionDocument, key)
        found = None if before.probe is None else read_probe(self.objects, before.probe)[0]
        if found is not None and found.digest != before.probe_digest:
            raise ProbeError(
                f"probe {before.probe!r} has other weights now than selection {name!r} was chosen with: choose it "
                "anew with `cliffstore select --replace`"
            )
        with Catalog(self._reader()) as catalog:
            select_examples(catalog, settings_of(before), replace=True)
        after = documents.read(self.objects, SelectionDocument, key)
        return _remark(before.digest == after.digest)

    def _reader(self) -> StoreReader:
        return StoreReader(self.objects.url, self.objects.storage_options)


def _remark(is_equal: bool) -> str | None:
    return None if is_equal else "other than before, since what it is made of has changed"


def _of(findings: Sequence[Finding], action: Action) -> list[Finding]:
    return [finding for finding in findings if finding.action is action]


def _by_target(findings: Sequence[Finding]) -> Mapping[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.target, []).append(finding)
    return groups


def _units(findings: Sequence[Finding]) -> set[int]:
    return {finding.unit for finding in findings if finding.unit is not None}


def _count(units: Collection[int]) -> str:
    return f"{len(units)} unit{'s' if len(units) != 1 else ''}"
