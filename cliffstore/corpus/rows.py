"""One raw row to a `CorpusRow` or a `SkippedRow`: known columns, conversations, labels, ids.

A row has either a `prompt` (with an optional `system`) or `messages`. A trailing assistant turn of `messages`
becomes the response. A row that cannot be used is skipped with a reason; only a prompt that is not text stops
the run, because then the column as a whole is the wrong one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from cliffstore.corpus.files import RawRow
from cliffstore.errors import CorpusError
from cliffstore.records import Message

KNOWN = ("id", "prompt", "messages", "system", "thinking", "response", "label", "source")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

EMPTY_PROMPT = "empty prompt"
BAD_ROW = "bad row"


class BadRowError(ValueError):
    """The row cannot be used. `reason` is what `skipped` counts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a row says, apart from its identity. `turns` ends with a user turn."""

    turns: tuple[Message, ...]
    system: str | None
    thinking: str | None
    response: str | None

    @property
    def prompt(self) -> str:
        return self.turns[-1].content


def parse_conversation(known: Mapping[str, object], location: str) -> tuple[Conversation, tuple[Message, ...]]:
    """Read the prompt or the messages of a row, with its system message, thinking and response.

    Returns
    -------
    The conversation, and all messages as given (empty for a row with a `prompt`).

    Raises
    ------
    BadRowError
        The row is to be skipped.
    CorpusError
        The prompt is not text.
    """
    columns = {name: _text(name, known.get(name)) for name in ("system", "thinking", "response")}
    if known.get("messages") is None:
        prompt = known.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            hint = "choose the column of the prompts with --map prompt=COLUMN"
            raise CorpusError(f"{location}: the prompt must be text, this is {type(prompt).__name__}; {hint}")
        turns = (*_system_turn(columns["system"]), Message("user", prompt or ""))
        given: tuple[Message, ...] = ()
        found = Conversation(turns, columns["system"], columns["thinking"], columns["response"])
    else:
        given, thinking = _messages(known["messages"])
        found = _from_messages(given, thinking, columns)
    if not found.prompt.strip():
        raise BadRowError(EMPTY_PROMPT, "the prompt is empty")
    return found, given


def _from_messages(given: tuple[Message, ...], thinking: str | None, columns: Mapping[str, str | None]) -> Conversation:
    turns, response = given, None
    if turns[-1].role == "assistant":
        turns, response = turns[:-1], turns[-1].content or None
    if not turns or turns[-1].role != "user":
        last = turns[-1].role if turns else "nothing"
        raise BadRowError(BAD_ROW, f"messages: the turn before the answer must be the user's, it is {last!r}")
    system = next((turn.content for turn in turns if turn.role == "system"), None)
    if system is None:
        turns = (*_system_turn(columns["system"]), *turns)
    return Conversation(
        turns,
        _agree("system", system, columns["system"]),
        _agree("thinking", thinking, columns["thinking"]),
        _agree("response", response, columns["response"]),
    )


def _agree(name: str, said: str | None, column: str | None) -> str | None:
    """Join what the messages and a column of the same meaning say; to choose silently would lose one."""
    if said and column and said != column:
        raise BadRowError(BAD_ROW, f"the column {name!r} and the messages disagree")
    return said or column


def _system_turn(system: str | None) -> tuple[Message, ...]:
    return (Message("system", system),) if system else ()


def _messages(value: object) -> tuple[tuple[Message, ...], str | None]:
    """Check the messages; also give the thinking that the trailing assistant message carries."""
    if not isinstance(value, list) or not value:
        raise BadRowError(BAD_ROW, "messages must be a list of {role, content}, with at least one")
    messages = []
    for i, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("role"), str):
            raise BadRowError(BAD_ROW, f"messages[{i}] must be an object with a role and a content")
        if item.get("tool_calls") or item.get("function_call"):
            raise BadRowError(BAD_ROW, f"messages[{i}] calls a tool, and calls are not rendered")
        messages.append(Message(item["role"], _content(i, item.get("content"))))
    last = value[-1]
    if last["role"] != "assistant":
        return tuple(messages), None
    reasoning = next((last[name] for name in _REASONING_FIELDS if last.get(name) is not None), None)
    return tuple(messages), _text("thinking", reasoning)


def _content(i: int, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(value):
            return "".join(texts)
    raise BadRowError(BAD_ROW, f"messages[{i}].content must be text, this is {type(value).__name__}")


def _text(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    raise BadRowError(BAD_ROW, f"{name} must be text, this is {type(value).__name__}")


def normalise_label(value: object) -> str | None:
    """Give a label as text, the same for `1`, `1.0` and `"1"`; null for an empty one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return value.strip() or None
    raise BadRowError(BAD_ROW, f"label must be text, a number or a boolean, this is {type(value).__name__}")


def given_id(value: object) -> str | None:
    """Give the row's own id as text, or null where it has none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise BadRowError(BAD_ROW, f"id must be text or a number, this is {type(value).__name__}")


def given_source(value: object, row: RawRow) -> str:
    return _text("source", value) or row.stem


def content_id(known: Mapping[str, object], extra: Mapping[str, object]) -> str:
    """Name a row by what it says: equal in whatever file and at whatever line the row stands.

    Nulls are left out, so that a JSON Lines row without a key equals the Parquet row with a null.
    """
    present = [{name: value for name, value in part.items() if value is not None} for part in (known, extra)]
    text = json.dumps(present, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    return f"auto-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_unicode(values: Mapping[str, object]) -> None:
    """Refuse lone surrogates (`"\\ud800"` in JSON): neither a tokenizer nor Arrow can take them."""
    try:
        json.dumps(values, ensure_ascii=False, default=_plain).encode()
    except UnicodeEncodeError as error:
        raise BadRowError(BAD_ROW, f"not valid Unicode: {error.reason}") from error


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
