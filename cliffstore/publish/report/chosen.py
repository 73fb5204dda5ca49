"""The selections of a store, for the page: how each was made, what it left out, and why each example is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cliffstore.errors import SelectionError
from cliffstore.publish.criteria import count_top, parse_quota
from cliffstore.publish.report.facts import read_cliffs_document
from cliffstore.publish.report.payload import finite
from cliffstore.schema import SelectionDocument
from cliffstore.store import documents, layout
from cliffstore.store.catalog import Catalog

REASONS = {
    "without_value": "no value to rank by: no thinking, no score yet, or nothing in the column",
    "without_response": "no response to look at",
    "refusal": "the response refuses already",
    "below_min_plateau": "the plateau is below the least that was asked for",
    "without_vector": "its vector at the decision position is not extracted",
    "over_quota": "passed over: as many examples of its kind were chosen as the quota allows",
    "near_duplicate_prompt": "passed over: its prompt is nearly that of one that was chosen",
    "near_duplicate_activation": "passed over: its vector is nearly that of one that was chosen",
}
_PASSED_OVER = ("over_quota", "near_duplicate_prompt", "near_duplicate_activation")
_STRATEGIES = {
    "cliff": "the largest cliffs, plateau minus score before the answer",
    "final": "the lowest scores before the answer",
    "random": "drawn at random, by seed and id",
    "rules": "responses that do not begin with a refusal, drawn at random",
    "column": "the highest values of the column",
    "sql": "the highest values of the expression",
}
_CHOSEN = """
SELECT s.rank, s.example, s.id, s.value, c.cliff, c.plateau, c.final, e.label, e.source, {further}
FROM selections s JOIN examples e USING (example)
LEFT JOIN (SELECT * FROM cliffs WHERE probe = $2) c USING (example) WHERE s.selection = $1 ORDER BY s.rank
"""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many examples were left out for which reason."""

    reason: str
    meaning: str
    count: int


@dataclass(frozen=True, slots=True)
class ChosenFacts:
    """A selection.

    Attributes
    ----------
    meaning : of its strategy
    settings : those that were given, by name
    left_out : by reason, those that were no candidates first
    behind : candidates that rank behind the last that was chosen
    elsewhere : examples of the store that the condition leaves out, or that came later; None where it cannot be told
    stale : whether the cliffs were ranked anew since
    rows : of the table: `rank`, `example`, `id`, `value`, `cliff`, `plateau`, `final`, `label`, `source`, `quotas`
    """

    document: SelectionDocument
    meaning: str
    settings: Mapping[str, str]
    left_out: Sequence[LeftOut]
    behind: int
    elsewhere: int | None
    stale: bool
    rows: Mapping[str, Sequence[Any]]

    @property
    def name(self) -> str:
        return self.document.name


def read_selections(catalog: Catalog, n_examples: int) -> list[ChosenFacts]:
    """Return the selections of a store, by name."""
    objects = catalog.reader.objects
    keys = [key for key in objects.list(layout.SELECTIONS) if layout.kind_of(key) == "selection"]
    return [_facts(catalog, one, n_examples) for one in documents.read_many(objects, SelectionDocument, keys)]


def _facts(catalog: Catalog, document: SelectionDocument, n_examples: int) -> ChosenFacts:
    left_out = [
        LeftOut(reason, REASONS.get(reason, ""), document.left_out[reason])
        for reason in sorted(document.left_out, key=lambda one: (one in _PASSED_OVER, one))
    ]
    before = sum(one.count for one in left_out if one.reason not in (*_PASSED_OVER, "without_vector"))
    passed = sum(one.count for one in left_out if one.reason in _PASSED_OVER)
    without_vector = document.left_out.get("without_vector", 0)
    elsewhere = n_examples - document.candidates - before - without_vector
    kind, _, of = document.strategy.partition(":")
    meaning = _STRATEGIES.get(kind, "")
    if document.ascending:
        meaning = meaning.replace("largest", "smallest").replace("highest", "lowest")
    cliffs = read_cliffs_document(catalog.reader, document.probe) if document.probe else None
    return ChosenFacts(
        document=document,
        meaning=f"{meaning} {of}".strip(),
        settings=_settings(document),
        left_out=left_out,
        behind=document.candidates - document.examples - passed,
        elsewhere=elsewhere if elsewhere >= 0 else None,
        stale=document.cliffs_digest is not None and (cliffs is None or cliffs.digest != document.cliffs_digest),
        rows=_rows(catalog, document),
    )


def _settings(document: SelectionDocument) -> dict[str, str]:
    """Return what was asked for, without what nobody set."""
    asked: dict[str, object] = {
        "top": document.top,
        "strategy": document.strategy,
        "ascending": document.ascending or None,
        "seed": document.seed if document.strategy.partition(":")[0] in ("random", "rules") else None,
        "probe": document.probe,
        "where": document.where,
        "rules": f"{len(document.phrases)} phrases of one's own" if document.phrases is not None else None,
        "min-plateau": document.min_plateau,
        "quota": ", ".join(document.quotas) or None,
        "dedupe": ", ".join(document.dedupe) or None,
    }
    return {name: str(value) for name, value in asked.items() if value is not None}


def _rows(catalog: Catalog, document: SelectionDocument) -> dict[str, list[Any]]:
    quotas = [parse_quota(text) for text in document.quotas]
    further = ", ".join(
        [f"CAST(e.{_quoted(quota.column)} AS VARCHAR) AS quota_{number}" for number, quota in enumerate(quotas)]
        or ["NULL"]
    )
    table = catalog.arrow(_CHOSEN.format(further=further), [document.name, document.probe])
    names = ["rank", "example", "id", "value", "cliff", "plateau", "final", "label", "source"]
    rows: dict[str, list[Any]] = {name: table[name].to_pylist() for name in names}
    for name in ("value", "cliff", "plateau", "final"):
        rows[name] = [finite(value) for value in rows[name]]
    try:
        wanted = count_top(document.top, document.candidates)
    except SelectionError:
        wanted = document.examples
    rows["quotas"] = [[] for _ in range(table.num_rows)]
    for number, quota in enumerate(quotas):
        taken: Counter[str | None] = Counter()
        for place, value in enumerate(table[f"quota_{number}"].to_pylist()):
            if quota.value is None or value == quota.value:
                taken[value] += 1
                shown = "no value" if value is None else value
                rows["quotas"][place].append(
                    f"{quota.column} = {shown}: {taken[value]} of at most {quota.most(wanted)}"
                )
    return rows


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
