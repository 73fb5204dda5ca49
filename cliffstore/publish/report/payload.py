"""Data for the page's scripts, as JSON inside the page.

An HTML parser ends a script where it reads `</script`, whatever surrounds it, and an editor or a diff turns lines round
at a mark of direction. So `<`, `>` and `&`, separators, marks and control characters are written as JSON escapes: the
values are the same, and the page's source has none of them.
"""

from __future__ import annotations

import json
import math
import re

from cliffstore.text import json_escape

_ESCAPED = re.compile(
    r"[<>&\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ufffe\uffff"
    r"\U000e0000-\U000e007f]"
)


def to_payload(value: object) -> str:
    """Return a value as JSON that can stand in a script element. Raises ValueError where a number is not finite."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _ESCAPED.sub(lambda found: json_escape(found[0]), text)


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold, None for any other."""
    return value if value is not None and math.isfinite(value) else None
