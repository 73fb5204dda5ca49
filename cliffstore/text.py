"""Text of others, made fit to be shown: on a terminal, in a picture.

Prompts, ids, labels and tokens are whatever a corpus has: control characters and escape sequences that would drive a
terminal, marks that turn the direction of what follows, halves of surrogate pairs. What does not print is written as
its escape (`\\x1b`, `\\u202e`, `\\n`), as Python writes it.
"""

from __future__ import annotations


def printable(text: str, most: int | None = None) -> str:
    """Return text as one line of characters that print, at most so many; where it is cut it ends in `…`."""
    if most is not None and len(text) > most:
        return printable(text[: max(most - 1, 0)]) + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
