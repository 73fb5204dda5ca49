"""Where in an example a probe looks: the option `--positions`.

A place is the decision position, a distance from it, or a segment. At a distance each example gives one sample; of a
segment each stored token is one, and samples of one example stay on one side of every split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cliffstore.errors import ConfigError
from cliffstore.records import SEGMENTS

DECISION = "decision"
_OFFSET = re.compile(r"[+-]?[0-9]{1,6}")
_RANGE = re.compile(r"([+-]?[0-9]{1,6})\.\.([+-]?[0-9]{1,6})")
_MOST = 256


@dataclass(frozen=True, slots=True)
class Place:
    """One of the two is None.

    Attributes
    ----------
    offset : position - decision position
    segment : name of a segment
    """

    offset: int | None
    segment: str | None = None

    @property
    def name(self) -> str:
        """What documents and tables call it: `decision`, `-1`, `think`."""
        if self.segment is not None:
            return self.segment
        return DECISION if self.offset == 0 else str(self.offset)

    @property
    def words(self) -> str:
        """What messages call it."""
        if self.segment is not None:
            return f"in their {self.segment}"
        return "at their decision position" if self.offset == 0 else f"{self.offset} from their decision position"


def parse_places(text: str) -> tuple[Place, ...]:
    """Return the places that `decision`, `-8..0` or `decision,think` names, each once, in the order given.

    Raises
    ------
    ConfigError
        A word is none of those that there are, or there are too many.
    """
    found: dict[Place, None] = {}
    for word in text.split(","):
        found.update(dict.fromkeys(_places(word.strip(), text)))
        if len(found) > _MOST:
            raise ConfigError(f"positions {text!r} are more than {_MOST} places: choose fewer")
    return tuple(found)


def _places(word: str, text: str) -> list[Place]:
    if word == DECISION:
        return [Place(0)]
    if word in tuple(SEGMENTS):
        return [Place(None, word)]
    if _OFFSET.fullmatch(word):
        return [Place(int(word))]
    matched = _RANGE.fullmatch(word)
    first, last = (int(matched[1]), int(matched[2])) if matched else (0, -1)
    if first > last:
        raise ConfigError(
            f"positions {text!r}: write `decision`, a distance from it such as -1, a range of these such as -8..0, "
            f"a segment ({', '.join(SEGMENTS)}), or several joined by commas"
        )
    return [Place(offset) for offset in range(first, min(last, first + _MOST) + 1)]
