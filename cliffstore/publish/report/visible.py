"""Text of others, made fit to be read on a page: what would not be seen, or would turn what follows, gets a sign.

Control characters become their pictures (U+2400 and on); marks of direction, joiners, separators and the like are
written as their escapes. `scripts/text.js` does the same for what scripts draw.
"""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"}
_MAY_HIDE = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u02ff]")


def visible(text: object, most: int | None = None) -> str:
    """Return any value as one line of text that hides nothing, at most so many characters of it."""
    whole = str(text)
    cut = whole if most is None or len(whole) <= most else whole[: most - 1]
    shown = _MAY_HIDE.sub(lambda found: _sign(found[0]), cut)
    return shown if len(cut) == len(whole) else f"{shown}…"


def _sign(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if unicodedata.category(char) in _HIDDEN:
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return char
