"""Cliffs: how far the score falls between the thinking and the last token before the answer, of every scored example.

What a plateau, a cliff, its steepest position and its length are is said in `plateau` and `falls`. Here units are read,
one after the other, some ahead, and the table that comes of them is written. Cost: one pass over the scores, some sixty
nanoseconds a token, in memory for some units and for seven numbers an example.

Where not all positions are stored, the plateau is that of the thinking tokens that are; examples are counted that have
only a part of their thinking, or none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cliffstore import __version__
from cliffstore.analyze.falls import falls
from cliffstore.analyze.plateau import PlateauRule
from cliffstore.analyze.token_scores import THINK, each_unit
from cliffstore.errors import DamagedStoreError, ProbeError
from cliffstore.records import PlannedUnit
from cliffstore.schema import CLIFFS, CliffsDocument, ScoreReceipt
from cliffstore.store import documents, layout, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import find_scores, no_scores, scores_digest

MEAN_OVER_ALL = PlateauRule()


@dataclass(frozen=True, slots=True)
class CliffReport:
    """What was ranked: examples with scores. The further counts are zero where all positions are stored.

    Attributes
    ----------
    without_thinking : examples that have no thinking with scores, hence no cliff
    without_decision : examples that have no score at the decision position, hence no cliff
    partial_thinking : examples whose plateau is that of a part of their thinking
    plateau, window : what the plateau is, see `PlateauRule`
    replaced : the rule of the cliffs that were there, where it is another one
    """

    probe: str
    examples: int
    without_thinking: int
    without_decision: int = 0
    partial_thinking: int = 0
    plateau: str = MEAN_OVER_ALL.statistic
    window: str = MEAN_OVER_ALL.window
    replaced: str | None = None


@dataclass(frozen=True, slots=True)
class _Unit:
    """Cliffs of a unit, and examples of which a part of the thinking, or all of it, is not stored."""

    cliffs: pa.Table
    partial: int
    absent: int


def rank_cliffs(reader: StoreReader, probe: str, rule: PlateauRule = MEAN_OVER_ALL) -> CliffReport:
    """Compute the cliff of every scored example, unless that was done already by this rule for the scores there are.

    Writes `cliffs/<probe>.parquet` and its document.

    Raises
    ------
    ProbeError
        There is no such probe, or it has no scores, or none that a cliff could be made of.
    DamagedStoreError
        Scores of a unit cannot be read.
    """
    objects = reader.objects
    document, receipts = find_scores(reader, probe)
    scores = scores_digest(receipts)
    before = _document(objects, probe)
    held = _held(objects, before, scores, rule) if before is not None else None
    if held is not None:
        return held
    table, partial, absent = cliff_table(reader, receipts, rule)
    if not table.num_rows:
        raise no_scores(reader, probe)
    if table["cliff"].null_count == table.num_rows and (absent or table["final"].null_count):
        raise ProbeError(
            "no example has scores both in its thinking and at its decision position: extract with `think,decision` "
            "among the --positions, into another --store"
        )
    provenance = {"capture": document.capture, "probe": probe, "probe_digest": document.digest}
    provenance |= {"plateau": rule.statistic, "window": rule.window}
    digest = tables.write(objects, layout.cliffs_table(probe), table, provenance)
    documents.put(
        objects,
        CliffsDocument(
            probe=probe,
            probe_digest=document.digest,
            capture=document.capture,
            scores=scores,
            plateau=rule.statistic,
            window=rule.window,
            examples=table.num_rows,
            partial_thinking=partial,
            digest=digest,
            cliffstore_version=__version__,
        ),
    )
    former = PlateauRule(before.plateau, before.window) if before is not None else rule
    return _report(probe, table, partial, rule, None if former == rule else str(former))


def rule_of(objects: ObjectStore, probe: str) -> PlateauRule:
    """Return the rule by which the cliffs of a probe were made; the usual one where that is not known."""
    document = _document(objects, probe)
    return MEAN_OVER_ALL if document is None else PlateauRule(document.plateau, document.window)


def _document(objects: ObjectStore, probe: str) -> CliffsDocument | None:
    try:
        return documents.read(objects, CliffsDocument, layout.cliffs_document(probe))
    except (FileNotFoundError, DamagedStoreError):
        return None


def _held(objects: ObjectStore, document: CliffsDocument, scores: str, rule: PlateauRule) -> CliffReport | None:
    """Return the report of cliffs that are whole, by this rule and of these very scores; None if they are not."""
    key = layout.cliffs_table(document.probe)
    try:
        content = objects.get(key)
        table = tables.decode(key, content)
    except (FileNotFoundError, DamagedStoreError):
        return None
    made_from = (document.scores, document.cliffstore_version, document.plateau, document.window, document.digest)
    wanted = (scores, __version__, rule.statistic, rule.window, hashlib.sha256(content).hexdigest())
    if made_from != wanted or table.schema.names != CLIFFS.names:
        return None
    documents.keep_copy(objects, layout.cliffs_document(document.probe))
    return _report(document.probe, table, document.partial_thinking, rule, None)


def _report(
    probe: str, cliffs: pa.Table, partial_thinking: int, rule: PlateauRule, replaced: str | None
) -> CliffReport:
    return CliffReport(
        probe,
        examples=cliffs.num_rows,
        without_thinking=cliffs["plateau"].null_count,
        without_decision=cliffs["final"].null_count,
        partial_thinking=partial_thinking,
        plateau=rule.statistic,
        window=rule.window,
        replaced=replaced,
    )


def cliff_table(reader: StoreReader, receipts: list[ScoreReceipt], rule: PlateauRule) -> tuple[pa.Table, int, int]:
    """Return a line of `CLIFFS` for every scored example, by example, and two counts of what is not stored.

    They are of examples that lack a part of their thinking, and of those that lack all of it. Errors as for
    `rank_cliffs`.
    """
    planned = reader.plan_tables.units
    units = []
    for receipt, scores in each_unit(reader.objects, receipts):
        cliffs = falls(scores, rule)
        units.append(_Unit(cliffs, *_gaps(reader, planned.get(receipt.unit), receipt, cliffs)))
    table = pa.concat_tables([unit.cliffs for unit in units]) if units else CLIFFS.empty_table()
    table = table.sort_by("example").combine_chunks()
    return table, sum(unit.partial for unit in units), sum(unit.absent for unit in units)


def _gaps(reader: StoreReader, planned: PlannedUnit | None, receipt: ScoreReceipt, cliffs: pa.Table) -> tuple[int, int]:
    """Return of how many examples with scores a part of the thinking is not stored, and of how many all of it."""
    if planned is None or planned.n_tokens == receipt.n_tokens:
        return 0, 0
    tokens = reader.plan_tables.tokens(receipt.unit, ["example", "segment", "row"])
    lacking = tokens.filter(tokens["row"].is_null())
    is_think = pc.equal(lacking["segment"].cast(pa.string()), THINK)
    examples = lacking.filter(is_think)["example"].unique()
    n_think = cliffs.filter(pc.is_in(cliffs["example"], value_set=examples))["n_think"].to_numpy()
    return int((n_think > 0).sum()), int((n_think == 0).sum())
