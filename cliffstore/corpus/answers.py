"""What a model wrote behind a prompt, told apart into thinking and answer.

Thinking that never ends is thinking all the same: a text that was cut off has no answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from cliffstore.corpus.markers import DEFAULT_MARKERS, KNOWN_MARKERS, ThinkMarkers, split_thinking

_CLOSE = DEFAULT_MARKERS.close.strip()


@dataclass(frozen=True, slots=True)
class Answer:
    """Thinking and response of a text; null where it has none."""

    thinking: str | None
    response: str | None


def read_answer(text: str, markers: ThinkMarkers | None, *, is_open: bool) -> Answer:
    """Take a text apart by the marks of its model.

    Parameters
    ----------
    markers : None for a model that does not think: all of the text is the response
    is_open : whether the prompt ends within the thinking
    """
    if markers is None:
        return Answer(None, text or None)
    parts = split_thinking(text, markers, is_open=is_open)
    if parts is not None:
        return Answer(parts[0] if parts[0].strip() else None, parts[1])
    return _unclosed(text, markers, is_open=is_open)


def read_any_answer(text: str) -> Answer:
    """Take apart what a server says, of whose template nothing is known: by any pair of marks.

    A close without an open, on a line that it begins, is the end of a thinking that the template opened; elsewhere it
    is quoted.
    """
    ends_a_line = text.partition(_CLOSE)[0].endswith("\n")
    for markers in KNOWN_MARKERS:
        parts = split_thinking(text, markers, is_open=markers == DEFAULT_MARKERS and ends_a_line)
        if parts is not None:
            return Answer(parts[0] if parts[0].strip() else None, parts[1])
    opened = next((pair for pair in KNOWN_MARKERS if text.lstrip().startswith(pair.open.strip())), None)
    return Answer(None, text or None) if opened is None else _unclosed(text, opened, is_open=False)


def _unclosed(text: str, markers: ThinkMarkers, *, is_open: bool) -> Answer:
    open_ = markers.open.strip()
    begun = text.lstrip().startswith(open_)
    if not begun and not is_open:
        return Answer(None, text or None)
    thinking = (text.lstrip().removeprefix(open_) if begun else text).strip("\n")
    return Answer(thinking if thinking.strip() else None, None)
