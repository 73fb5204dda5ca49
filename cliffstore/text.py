"""Text of others, made fit to be shown: on a terminal, in a picture.

Prompts, ids, labels and tokens are whatever a corpus has: control characters and escape sequences that would drive a
terminal, marks that turn the direction of what follows, halves of surrogate pairs. What does not print is written as
its escape (`\\x1b`, `\\u202e`, `\\n`), as Python writes it.
"""

from __future__ import annotations

import re

_OBEYED = re.compile(
    r"[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def printable(text: str, most: int | None = None) -> str:
    """Return text as one line of characters that print, at most so many; where it is cut it ends in `…`."""
    if most is not None and len(text) > most:
        return printable(text[: max(most - 1, 0)]) + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each as `printable` has it."""
    return "\n".join(printable(line) for line in text.split("\n"))


def quiet_json(text: str) -> str:
    """Return JSON with the same values, in which what JSON need not escape but a terminal would obey is escaped.

    Such characters stand in strings only. Those below a space are escaped in any JSON.
    """
    return _OBEYED.sub(lambda found: json_escape(found[0]), text)


def json_escape(char: str) -> str:
    """Return a character as JSON escapes it: `\\u202e`; two escapes where it is beyond the first 65,536."""
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
