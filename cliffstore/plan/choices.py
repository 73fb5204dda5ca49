"""Which positions of an example an intervention acts on: the option `positions` of a step.

A choice is a union of words joined by commas. It knows the words of `--positions` (`all`, `decision`, `think`,
`last:N`, `stride:K`; see `positions.py`), and more:

    a segment      system, user, header, think_open, think, think_close, response, end
    template       what the chat template writes: header, think_open, think_close, end
    generated      what a model writes behind its prompt: thinking, the mark that closes it, response, end of the turn
    -1, -8..0      distances from the decision position

Equal choices have one canonical text, which is part of the digest of interventions.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError
from cliffstore.plan.positions import parse_positions, selected
from cliffstore.records import SEGMENTS, Segment

ALL, TEMPLATE, GENERATED = "all", "template", "generated"
_OF_TEMPLATE = (Segment.HEADER, Segment.THINK_OPEN, Segment.THINK_CLOSE, Segment.END)
_PROMPTING = (Segment.SYSTEM, Segment.USER, Segment.HEADER, Segment.THINK_OPEN)
_DISTANCES = re.compile(r"([+-]?[0-9]{1,6})(?:\.\.([+-]?[0-9]{1,6}))?")
_STORED = re.compile(r"all|decision|(?:last|stride):.*")


def parse_choice(text: str) -> str:
    """Return the canonical text of a choice.

    Raises
    ------
    ConfigError
        A word is none of those that there are.
    """
    words = {_canonical(word.strip(), text) for word in text.split(",")}
    return ALL if ALL in words else ",".join(sorted(words))


def chosen(choice: str, segments_T: npt.NDArray[np.uint8], decision: int) -> npt.NDArray[np.bool_]:
    """Return which of the T positions of an example are chosen, bool [T].

    Parameters
    ----------
    choice : canonical text
    segments_T : uint8 [T], indices into `SEGMENTS`
    decision : position of the last token before the answer
    """
    chosen_T = np.zeros(len(segments_T), dtype=np.bool_)
    for word in choice.split(","):
        chosen_T |= _chosen(word, segments_T, decision)
    return chosen_T


def _chosen(word: str, segments_T: npt.NDArray[np.uint8], decision: int) -> npt.NDArray[np.bool_]:
    if word in tuple(SEGMENTS):
        return np.asarray(segments_T == SEGMENTS.index(Segment(word)))
    if word == TEMPLATE:
        return np.isin(segments_T, [SEGMENTS.index(one) for one in _OF_TEMPLATE])
    if word == GENERATED:
        prompting = np.flatnonzero(np.isin(segments_T, [SEGMENTS.index(one) for one in _PROMPTING]))
        return np.arange(len(segments_T)) > (prompting[-1] if len(prompting) else -1)
    if _STORED.fullmatch(word):
        return selected(parse_positions(word), segments_T, decision)
    first, last = _range(word)
    to_decision_T = np.arange(len(segments_T)) - decision
    return (to_decision_T >= first) & (to_decision_T <= last)


def _canonical(word: str, text: str) -> str:
    if word in (*SEGMENTS, TEMPLATE, GENERATED):
        return word
    if _STORED.fullmatch(word):
        return str(parse_positions(word))
    if _DISTANCES.fullmatch(word):
        first, last = _range(word)
        if first <= last:
            return f"{first}..{last}"
    raise ConfigError(
        f"positions {text!r}: {word!r} is none of all, decision, template, generated, last:N, stride:K, a segment "
        f"({', '.join(SEGMENTS)}), and a distance from the decision such as -1 or -8..0; join several with commas"
    )


def _range(word: str) -> tuple[int, int]:
    matched = _DISTANCES.fullmatch(word)
    assert matched is not None
    return int(matched[1]), int(matched[2] if matched[2] is not None else matched[1])
