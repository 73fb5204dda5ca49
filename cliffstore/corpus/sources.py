"""A corpus: files to `CorpusRow`s with ids, labels and extra columns, and what was left out, with reasons.

Steps: read the files, map their columns to the known names, check and normalise each row, give ids, settle
the types of the other columns, filter. Row ids and column types are settled before `where` and `limit`, and
do not depend on the order of the files, so a filtered corpus names its rows as the whole one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cliffstore.corpus.columns import settle_names, settle_types
from cliffstore.corpus.files import RawFile, RawRow, read_files
from cliffstore.corpus.rows import (
    KNOWN,
    BadRowError,
    Conversation,
    check_unicode,
    content_id,
    given_id,
    given_source,
    normalise_label,
    parse_conversation,
)
from cliffstore.corpus.where import rows_where
from cliffstore.errors import CorpusError
from cliffstore.records import CorpusRow, SkippedRow


@dataclass(frozen=True, slots=True)
class LocatedRow:
    """A usable row and where it stands: `file:line` or `file:row`, counted from 1."""

    row: CorpusRow
    location: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """What `read_corpus` found.

    Attributes
    ----------
    rows : usable rows, in input order
    skipped : rows that cannot be used, with reasons, in input order
    extra_schema : Arrow types of `CorpusRow.extra`, sorted by column name
    notices : one line each, for the user to see
    """

    rows: tuple[LocatedRow, ...]
    skipped: tuple[SkippedRow, ...]
    extra_schema: pa.Schema
    notices: tuple[str, ...]


def read_corpus(
    inputs: Sequence[str],
    *,
    mapping: Mapping[str, str] = {},
    where: str | None = None,
    limit: int | None = None,
    storage_options: Mapping[str, object] | None = None,
) -> Corpus:
    """Read the rows of all inputs.

    Parameters
    ----------
    inputs : files, globs, folders or `datasets` folders; any fsspec URL
    mapping : known name -> the corpus column that holds it
    where : SQL boolean expression over the corpus columns; other rows are left out
    limit : keep only so many rows, in input order, after `where`
    storage_options : for fsspec, given to remote inputs only

    Raises
    ------
    CorpusError
        The corpus as a whole cannot be used.
    QueryError
        `where` is malformed.
    """
    if limit is not None and limit < 1:
        raise CorpusError(f"limit must be at least 1, not {limit}")
    columns = _known_columns(mapping)
    text_columns = frozenset(column for name, column in columns.items() if name != "messages")
    files = list(read_files(inputs, text_columns, storage_options))
    _check_columns(files, columns, mapping)

    drafts = [_draft(raw, columns) for file in files for raw in file.rows]
    ids = _ids(drafts)
    names, renamed = settle_names([*dict.fromkeys(name for draft in drafts for name in draft.extra)])
    extra_rows = [{names[name]: value for name, value in draft.extra.items()} for draft in drafts]
    extras, schema, retyped = settle_types(extra_rows, list(names.values()))
    notices = [*(notice for file in files for notice in file.notices), *renamed, *retyped]

    kept = list(range(len(drafts)))
    if where is not None:
        kept = rows_where(_query_table(drafts, ids, extras, schema, mapping), where)
        notices.append(f"--where keeps {len(kept)} of {len(drafts)} rows")
        if not kept:
            raise CorpusError(f"empty corpus: --where {where!r} keeps none of {len(drafts)} rows; change it")
    if limit is not None and limit < len(kept):
        notices.append(f"--limit keeps the first {limit} of {len(kept)} rows")
        kept = kept[:limit]

    skipped = tuple(drafts[i].skipped_row(ids[i]) for i in kept if drafts[i].conversation is None)
    rows = tuple(
        LocatedRow(_corpus_row(drafts[i], conversation, ids[i], extras[i]), drafts[i].raw.location)
        for i in kept
        if (conversation := drafts[i].conversation) is not None
    )
    if not rows:
        reasons = Counter(row.reason for row in skipped).most_common()
        counts = ", ".join(f"{n} {reason}" for reason, n in reasons)
        first = f"{skipped[0].location}: {skipped[0].detail}"
        raise CorpusError(f"every row was skipped: {counts}; the first is {first}")
    return Corpus(rows, skipped, schema, tuple(notices))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row on its way: `conversation` is None where the row is to be skipped for `reason`."""

    raw: RawRow
    known: Mapping[str, object]
    extra: Mapping[str, object]
    id: str
    has_own_id: bool
    source: str | None
    label: str | None
    conversation: Conversation | None
    reason: str
    detail: str

    def skipped_row(self, id_: str) -> SkippedRow:
        return SkippedRow(id_, self.source, self.raw.location, self.reason, self.detail)

    def text(self, name: str) -> str | None:
        """Give a known column as `--where` sees it; for a row to be skipped, as far as it is text."""
        if self.conversation is not None:
            return {
                "prompt": self.conversation.prompt,
                "system": self.conversation.system,
                "thinking": self.conversation.thinking,
                "response": self.conversation.response,
            }[name]
        value = self.known.get(name)
        return value if isinstance(value, str) else None


def _draft(raw: RawRow, columns: Mapping[str, str]) -> _Draft:
    known = {name: raw.values.get(column) for name, column in columns.items()}
    used = frozenset(columns.values())
    extra = {column: value for column, value in raw.values.items() if column not in used}
    own_id = label = conversation = None
    source: str | None = raw.stem
    reason = detail = ""
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


def _known_columns(mapping: Mapping[str, str]) -> dict[str, str]:
    """Give the corpus column of each known name. A mapped `prompt` wins over an unmapped `messages`."""
    unknown = sorted(mapping.keys() - set(KNOWN))
    if unknown:
        raise CorpusError(f"--map {unknown[0]}={mapping[unknown[0]]}: known names are {', '.join(KNOWN)}")
    columns = {name: mapping.get(name, name) for name in KNOWN}
    if "prompt" in mapping and "messages" not in mapping:
        del columns["messages"]
    return columns


def _check_columns(files: Sequence[RawFile], columns: Mapping[str, str], mapping: Mapping[str, str]) -> None:
    if not any(file.rows for file in files):
        names = ", ".join(file.name for file in files) or "nothing was given"
        raise CorpusError(f"empty corpus: no rows in the input ({names}); give at least one row")
    there = sorted({column for file in files for column in file.columns})
    for name, column in mapping.items():
        if column not in there:
            raise CorpusError(f"--map {name}={column}: no such column; there are {', '.join(there)}")
    needed = {columns[name] for name in ("prompt", "messages") if name in columns}
    for file in files:
        if file.rows and not needed & set(file.columns):
            wanted = " or ".join(sorted(needed))
            found = ", ".join(file.columns) or "none"
            hint = "choose one with --map prompt=COLUMN"
            raise CorpusError(f"{file.name}: no column {wanted}; there are {found}; {hint}")


def _ids(drafts: Sequence[_Draft]) -> list[str]:
    """Give each row its id: its own, or one made of its content with `-2`, `-3` for exact copies."""
    copies: Counter[str] = Counter()
    ids = []
    for draft in drafts:
        id_ = draft.id
        if not draft.has_own_id:
            copies[id_] += 1
            if copies[id_] > 1:
                id_ = f"{id_}-{copies[id_]}"
        ids.append(id_)
    first: dict[str, str] = {}
    for id_, draft in zip(ids, drafts, strict=True):
        if id_ in first:
            places = f"{first[id_]} and {draft.raw.location}"
            raise CorpusError(f"the id {id_!r} is there twice, at {places}; make ids unique or leave them out")
        first[id_] = draft.raw.location
    return ids


def _corpus_row(draft: _Draft, conversation: Conversation, id_: str, extra: Mapping[str, object]) -> CorpusRow:
    return CorpusRow(
        id=id_,
        prompt=conversation.prompt,
        turns=conversation.turns,
        system=conversation.system,
        thinking=conversation.thinking,
        response=conversation.response,
        label=draft.label,
        source=draft.source,
        extra=extra,
    )


def _query_table(
    drafts: Sequence[_Draft],
    ids: Sequence[str],
    extras: Sequence[Mapping[str, object]],
    schema: pa.Schema,
    mapping: Mapping[str, str],
) -> pa.Table:
    """Lay out the rows for `--where`: known columns as text, extra ones, mapped ones by raw name too."""
    data: dict[str, pa.Array] = {"id": _texts(ids)}
    for name in ("prompt", "system", "thinking", "response"):
        data[name] = _texts(draft.text(name) for draft in drafts)
    data["label"] = _texts(draft.label for draft in drafts)
    data["source"] = _texts(draft.source for draft in drafts)
    for field in schema:
        data[field.name] = pa.array([extra[field.name] for extra in extras], type=field.type)
    taken = {name.lower() for name in data}
    aliases = sorted({column for column in mapping.values() if column.lower() not in taken})
    raw, raw_schema, _ = settle_types([draft.raw.values for draft in drafts], aliases)
    for field in raw_schema:
        data[field.name] = pa.array([row[field.name] for row in raw], type=field.type)
    return pa.table(data)


def _texts(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), type=pa.string())
