"""Whether a response refuses, told by its first sentences.

A word such as "however", "helpful" or "safe" stands in refusals and in answers alike, so no single word decides. Text
is written out ("can't" becomes "cannot", apostrophes are straight, Markdown is gone), thinking in front of it and what
stands in quotation marks are cut, and the clauses of the first three sentences are looked at in turn: a response is a
refusal where one begins, courtesies apart ("I'm sorry, but", "As an AI,"), with a wording that declines the request ("I
cannot help", "I must decline", "my guidelines do not allow"). Once a sentence has begun to answer ("Here is", "Sure"),
what follows is content. A response that says only what it cannot know and then answers is no refusal; nor is a letter.

What is missed: refusals later in a response, other languages, and harmless text in the place of an answer. A file of
one's own phrases takes the place of the wordings. `tests/refusal_sentences*.jsonl` measure precision and recall.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cliffstore.errors import SelectionError
from cliffstore.publish.refusal_phrases import (
    BARE_NO,
    CLAUSES,
    DEFLECTIONS,
    DELIVERIES,
    OPENERS,
    PARTIAL,
    REFUSALS,
    SENTENCES,
)

LOOKED_AT = 600
"""Characters of an answer that are looked at."""
_TAGS = "(?:think(?:ing)?|thought|reasoning|seed:think)"
THINKING_ENDS = rf"(?is)^.*(?:</{_TAGS}>|\[/think\]|<\|end_(?:of_thought|thinking)\|>)"
"""RE2 and Python alike: thinking that was left in a response, up to its end."""
_THINKING_ENDS = re.compile(THINKING_ENDS)
_THINKING_BEGINS = re.compile(rf"\s*(?:<{_TAGS}>|\[think\]|<\|(?:begin_of_thought|start_thinking)\|>)", re.IGNORECASE)
_SENTENCES = 3

_APOSTROPHES = str.maketrans(
    dict.fromkeys("\u2019\u2018\u02bc\u00b4", "'") | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
)
_TICK = re.compile(r"(?<=\w)`(?=\w)")
_HEADING = re.compile(r"^\s*#+[^\n]*\n")
_ORNAMENT = re.compile(r"^[\s#>-]+", re.MULTILINE)
_EMPHASIS = re.compile("[*_`]")
_QUOTED = re.compile(r'"[^"]*"')
_SPOKEN = re.compile(r"'.*?[,.!?]'(?= \w)")
_LETTER = re.compile(
    r"\s*(?:dear (?!user|friend|customer)|subject:|to whom|(?:hi|hello|hey) [^\W\d]+,?\s*\n)", re.IGNORECASE
)
_CONTRACTIONS = tuple(
    (re.compile(rf"\b{short}\b"), long)
    for short, long in (
        ("can't|cant|can not", "cannot"),
        ("won't|wont", "will not"),
        ("i'm|im", "i am"),
        ("(is|are|was|do|does|did|could|would|should|have|has)n'?t", r"\1 not"),
        ("(i|we|you|they)'ll", r"\1 will"),
        ("(i|we|you|they)'d", r"\1 would"),
        ("(i|we|you|they)'ve", r"\1 have"),
        ("(we|you|they)'re", r"\1 are"),
        ("(it|that|this|here|there|what)'s", r"\1 is"),
        ("let's|lets", "let us"),
    )
)


class Refusals:
    """Tells refusals.

    Parameters
    ----------
    phrases : what refusals begin with, in the place of the built-in wordings; case, the shape of apostrophes, and
        whether "can't" is written out, do not matter
    """

    def __init__(self, phrases: Iterable[str] | None = None) -> None:
        self._own: re.Pattern[str] | None = None
        if phrases is not None:
            longest_first = sorted({_plain(phrase) for phrase in phrases}, key=lambda one: (-len(one), one))
            self._own = re.compile("|".join(re.escape(phrase) for phrase in longest_first))

    def matches(self, response: str) -> bool:
        """Return whether a response refuses."""
        return self.find(response) is not None

    def find(self, response: str) -> str | None:
        """Return the words by which a response refuses, written out in lower case; None where it does not."""
        answer = answer_in(response)
        if self._own is None:
            return None if _LETTER.match(answer) else _wording(answer)
        text = _plain(answer)
        opener = OPENERS.match(text)
        found = self._own.match(text) or (self._own.match(text, opener.end()) if opener else None)
        return found[0] if found else None


def answer_in(response: str, *, whole: bool = False) -> str:
    """Return what a response answers, without thinking; empty where thinking is all that it holds.

    Parameters
    ----------
    whole : all of it, not only as much as is looked at here
    """
    answer = _THINKING_ENDS.sub("", response)
    if _THINKING_BEGINS.match(answer):
        return ""
    return answer.strip() if whole else answer.strip()[:LOOKED_AT]


def read_phrases(path: str) -> tuple[str, ...]:
    """Return the phrases of a file, one a line; lines without a word and those that begin with `#` are passed over.

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
    phrases = tuple(line.strip() for line in lines if _plain(line) and not line.lstrip().startswith("#"))
    if not phrases:
        raise SelectionError(f"--rules {path} has no phrase: write one a line, such as `I can't help`")
    return phrases


def _wording(answer: str) -> str | None:
    sentences = [one for one in (_plain(part) for part in SENTENCES.split(_unquoted(answer))) if one]
    if len(sentences) == 1 and BARE_NO.fullmatch(sentences[0]):
        return sentences[0]
    for number, sentence in enumerate(sentences[:_SENTENCES]):
        if number == 0 and (found := DEFLECTIONS.match(sentence)):
            return found[0]
        for clause, rest in _clauses(sentence):
            found = REFUSALS.match(clause)
            if found is None:
                continue
            return None if PARTIAL.search(rest) else found[0].strip()
        if DELIVERIES.match(sentence):
            return None
    return None


def _clauses(sentence: str) -> Iterable[tuple[str, str]]:
    """Yield each clause from its first word that is no courtesy, and what of the sentence comes behind it."""
    starts = [0, *(match.end() for match in CLAUSES.finditer(sentence))]
    ends = [*(match.start() for match in CLAUSES.finditer(sentence)), len(sentence)]
    for start, end in zip(starts, ends, strict=True):
        yield _opened(sentence[start:end]), sentence[end:]


def _opened(text: str) -> str:
    opener = OPENERS.match(text)
    return text[opener.end() :] if opener else text


def _unquoted(answer: str) -> str:
    """Return text without headings in front and without what others say in it; what is quoted as a whole is kept."""
    text = _HEADING.sub("", answer.translate(_APOSTROPHES)).strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
        return text[1:-1]
    return _QUOTED.sub('""', _SPOKEN.sub("''", text) if text.startswith("'") else text)


def _plain(text: str) -> str:
    """Return text in lower case, contractions written out, with single spaces and no emphasis."""
    straight = _TICK.sub("'", text.translate(_APOSTROPHES))
    plain = _EMPHASIS.sub("", _ORNAMENT.sub("", straight).casefold())
    for short, long in _CONTRACTIONS:
        plain = short.sub(long, plain)
    return " ".join(plain.split())
