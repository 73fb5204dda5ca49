"""Raw rows to drafts: checked and normalised as far as one row alone allows, laid out as a table.

Ids of copies, types of further columns, `--where` and `--limit` need the whole corpus; `sources` settles them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cliffstore.corpus.columns import Settled
from cliffstore.corpus.files import RawRow
from cliffstore.corpus.kinds import Kind, kind_of_all
from cliffstore.corpus.rows import (
    BadRowError,
    Conversation,
    check_unicode,
    content_id,
    given_id,
    given_source,
    normalise_label,
    parse_conversation,
)
from cliffstore.corpus.values import from_text, to_text
from cliffstore.records import CorpusRow, Message, SkippedRow

_TEXTS = ("prompt", "system", "thinking", "response")
DRAFTS = pa.schema(
    [
        ("id", pa.string()),
        ("has_own_id", pa.bool_()),
        ("location", pa.string()),
        *((name, pa.string()) for name in _TEXTS),
        ("label", pa.string()),
        ("source", pa.string()),
        ("turns", pa.string()),
        ("extra", pa.string()),
        ("raw", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""`reason` is null for a usable row; `turns`, `extra` and `raw` (columns that `--map` renames) are `values` texts."""


@dataclass(frozen=True, slots=True)
class LocatedRow:
    """A usable row and where it stands: `file:line` or `file:row`, counted from 1."""

    row: CorpusRow
    location: str


@dataclass(frozen=True, slots=True)
class DraftRules:
    """Which columns are what.

    Attributes
    ----------
    columns : known name -> column of the corpus
    raw : columns to keep under their own name too, for `--where`
    """

    columns: Mapping[str, str]
    raw: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DraftBlock:
    """Drafts of some rows (`DRAFTS`), and what their further and raw columns hold."""

    drafts: pa.Table
    kinds: Mapping[str, Kind]
    raw_kinds: Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class _Draft:
    raw: RawRow
    known: Mapping[str, object]
    extra: Mapping[str, object]
    id: str
    has_own_id: bool
    source: str | None
    label: str | None
    conversation: Conversation | None
    reason: str | None
    detail: str | None

    def text(self, name: str) -> str | None:
        """Give a known column as `--where` sees it; for a row to be skipped, as far as it is text."""
        if self.conversation is not None:
            found: str | None = getattr(self.conversation, name)
            return found
        value = self.known.get(name)
        return value if isinstance(value, str) else None


def draft_block(rows: Sequence[RawRow], rules: DraftRules) -> DraftBlock:
    """Draft some rows. Raises `CorpusError` where the column of prompts holds no text."""
    drafts = [_draft(raw, rules.columns) for raw in rows]
    raws = [{name: draft.raw.values.get(name) for name in rules.raw} for draft in drafts]
    data: dict[str, list[object]] = {
        "id": [draft.id for draft in drafts],
        "has_own_id": [draft.has_own_id for draft in drafts],
        "location": [raw.location for raw in rows],
        **{name: [draft.text(name) for draft in drafts] for name in _TEXTS},
        "label": [draft.label for draft in drafts],
        "source": [draft.source for draft in drafts],
        "turns": [_turns_text(draft.conversation) for draft in drafts],
        "extra": [to_text(draft.extra) if draft.extra else None for draft in drafts],
        "raw": [to_text(values) if values else None for values in raws],
        "reason": [draft.reason for draft in drafts],
        "detail": [draft.detail for draft in drafts],
    }
    return DraftBlock(
        pa.table(data, schema=DRAFTS), _kinds([draft.extra for draft in drafts]), _kinds(raws) if rules.raw else {}
    )


def corpus_rows(drafts: pa.Table, settled: Settled) -> list[LocatedRow]:
    """Return usable drafts as rows, every further column of the corpus in `extra`."""
    return [
        LocatedRow(
            CorpusRow(
                id=draft["id"],
                prompt=draft["prompt"],
                turns=tuple(Message(role, content) for role, content in _turns(draft["turns"], draft["prompt"])),
                system=draft["system"],
                thinking=draft["thinking"],
                response=draft["response"],
                label=draft["label"],
                source=draft["source"],
                extra=settled.row(extra_of(draft["extra"])),
            ),
            draft["location"],
        )
        for draft in drafts.to_pylist()
    ]


def skipped_rows(drafts: pa.Table) -> list[SkippedRow]:
    """Return drafts that cannot be used."""
    columns = ("id", "source", "location", "reason", "detail")
    return [SkippedRow(*(draft[name] for name in columns)) for draft in drafts.select(columns).to_pylist()]


def extra_of(text: str | None) -> dict[str, object]:
    """Return the values that a draft keeps as one text."""
    return from_text(text) if text else {}


def _kinds(rows: Sequence[Mapping[str, object]]) -> dict[str, Kind]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: kind_of_all(row.get(name) for row in rows) for name in names}


def _turns_text(conversation: Conversation | None) -> str | None:
    """Return the turns as text; the commonest, one user turn, is the prompt and needs none."""
    if conversation is None or (len(conversation.turns) == 1 and conversation.turns[0].role == "user"):
        return None
    return to_text([[turn.role, turn.content] for turn in conversation.turns])


def _turns(text: str | None, prompt: str) -> list[list[str]]:
    return from_text(text) if text else [["user", prompt]]  # type: ignore[return-value]


def _draft(raw: RawRow, columns: Mapping[str, str]) -> _Draft:
    known = {name: raw.values.get(column) for name, column in columns.items()}
    used = frozenset(columns.values())
    extra = {column: value for column, value in raw.values.items() if column not in used}
    own_id = label = conversation = None
    source: str | None = raw.stem
    reason = detail = None
    content = content_id(known, extra)
    try:
        check_unicode(raw.values)
    except BadRowError as error:
        # Nothing of such a row can enter an Arrow table, not even the one that `--where` sees.
        bare = RawRow({}, raw.location, raw.stem)
        return _Draft(bare, {}, {}, content, False, source, None, None, error.reason, error.detail)
    try:
        own_id = given_id(known.get("id"))
        source = given_source(known.get("source"), raw)
        label = normalise_label(known.get("label"))
        conversation, messages = parse_conversation(known, raw.location)
        if messages:
            extra["messages"] = [{"role": turn.role, "content": turn.content} for turn in messages]
            if known.get("prompt") not in (None, conversation.prompt):
                extra["prompt"] = known["prompt"]
    except BadRowError as error:
        reason, detail = error.reason, error.detail
    has_own_id = own_id is not None
    return _Draft(raw, known, extra, own_id or content, has_own_id, source, label, conversation, reason, detail)
