"""Whether a response refuses, told by the words that it begins with.

A word such as "however", "helpful" or "safe" stands in refusals and in answers alike, so no single word decides: a
response is a refusal if, after courtesies ("I'm sorry, but", "As an AI language model,"), it begins with a phrase that
declines the very request ("I can't help", "I must decline"). That misses refusals in the middle of a response, and
those in other languages: a file of one's own phrases takes the place of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cliffstore.errors import SelectionError

_UNABLE = (
    "i can't", "i cannot", "i can not", "i won't", "i will not", "i'm unable to", "i am unable to",
    "i'm not able to", "i am not able to", "i'm not going to", "i am not going to",
    "i won't be able to", "i will not be able to",
)  # fmt: skip
_DEEDS = (
    "advise", "aid", "answer", "assist", "comply", "create", "describe", "discuss", "do that", "do this", "encourage",
    "engage", "explain", "facilitate", "fulfil", "generate", "give", "help", "offer", "participate", "produce",
    "promote", "provide", "respond", "share", "support", "teach", "tell you", "write",
)  # fmt: skip
PHRASES = (
    *(f"{unable} {deed}" for unable in _UNABLE for deed in _DEEDS),
    "i cannot and will not", "i can't and won't", "i will not and cannot", "i can't in good conscience",
    "i cannot in good conscience", "i must decline", "i have to decline", "i need to decline", "i must refuse",
    "i have to refuse", "i refuse to", "i decline to", "i'd rather not", "i would rather not",
    "i'm not comfortable", "i am not comfortable", "i don't feel comfortable", "it would not be appropriate for me",
    "it would be inappropriate for me", "it is not appropriate for me",
)  # fmt: skip
"""What refusals begin with, in lower case."""

_COURTESY = re.compile(
    r"(?:(?:oh|no|hello|hi|well|i'm (?:very |really |so )?sorry|i am (?:very |really |so )?sorry|sorry|i apologi[sz]e"
    r"|my apologies|unfortunately|i'm afraid(?: that)?|i understand"
    r"|as an ai(?: language)?(?: model| assistant)?|as a (?:large )?language model"
    r"|but|however|and)\b[\s,.;:!\u2013\u2014-]*)*"
)
_ORNAMENT = re.compile(r"^[\s*_#>\"'\u201c`-]+")
_EMPHASIS = re.compile("[*_`]")
LOOKED_AT = 400
"""Characters of a response that are looked at."""


class Refusals:
    """Tells refusals by phrases.

    Parameters
    ----------
    phrases : what refusals begin with; case and the shape of apostrophes do not matter
    """

    def __init__(self, phrases: Iterable[str] = PHRASES) -> None:
        longest_first = sorted({_plain(phrase) for phrase in phrases}, key=lambda one: (-len(one), one))
        self._phrase = re.compile("|".join(re.escape(phrase) for phrase in longest_first))

    def matches(self, response: str) -> bool:
        """Return whether a response begins with a refusal, courtesies and Markdown before it apart."""
        text = _plain(_ORNAMENT.sub("", response[:LOOKED_AT]))
        if self._phrase.match(text):
            return True
        courtesy = _COURTESY.match(text)
        return courtesy is not None and self._phrase.match(text, courtesy.end()) is not None


def read_phrases(path: str) -> tuple[str, ...]:
    """Return the phrases of a file, one a line; empty lines and those that begin with `#` are passed over.

    Raises
    ------
    SelectionError
        It cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SelectionError(f"--rules {path}: {reason or error}") from None
    phrases = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not phrases:
        raise SelectionError(f"--rules {path} has no phrase: write one a line, such as `I can't help`")
    return phrases


def _plain(text: str) -> str:
    """Return text in lower case, with straight apostrophes, single spaces and no emphasis."""
    return " ".join(_EMPHASIS.sub("", text.casefold()).replace("\u2019", "'").split())
