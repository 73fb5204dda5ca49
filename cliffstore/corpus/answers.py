"""What a model wrote behind a prompt, told apart into thinking and answer.

Thinking that never ends is thinking all the same: a text that was cut off has no answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from cliffstore.corpus.markers import KNOWN_MARKERS, ThinkMarkers, split_thinking


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
    head, closed, rest = text.partition(markers.close.strip())
    if is_open and closed and not head.lstrip().startswith(markers.open.strip()):
        # it is the thinking that the prompt has opened, also where that speaks of the marks
        return Answer(head.strip("\n") if head.strip() else None, rest.lstrip("\n") or None)
    parts = split_thinking(text, markers, is_open=is_open)
    if parts is not None:
        return Answer(parts[0] if parts[0].strip() else None, parts[1])
    return _unclosed(text, markers, is_open=is_open)


def read_any_answer(text: str, own: ThinkMarkers | None = None) -> Answer:
    """Take apart what a server says, of whose template nothing is known: by any pair of marks, `own` before others.

    A close without an open, on a line that it begins, is the end of a thinking that the template opened; elsewhere it
    is quoted.
    """
    pairs = KNOWN_MARKERS if own is None else (own, *KNOWN_MARKERS)
    ends_a_line = text.partition(pairs[0].close.strip())[0].endswith("\n")
    for markers in pairs:
        parts = split_thinking(text, markers, is_open=markers == pairs[0] and ends_a_line)
        if parts is not None:
            return Answer(parts[0] if parts[0].strip() else None, parts[1])
    opened = next((pair for pair in pairs if text.lstrip().startswith(pair.open.strip())), None)
    return Answer(None, text or None) if opened is None else _unclosed(text, opened, is_open=False)


def _unclosed(text: str, markers: ThinkMarkers, *, is_open: bool) -> Answer:
    open_ = markers.open.strip()
    begun = text.lstrip().startswith(open_)
    if not begun and not is_open:
        return Answer(None, text or None)
    thinking = (text.lstrip().removeprefix(open_) if begun else text).strip("\n")
    return Answer(thinking if thinking.strip() else None, None)
