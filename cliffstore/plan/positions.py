"""Which positions of an example are stored: the option `--positions`.

A choice is a union of words joined by commas. `all` is everything; `decision` the last token before the answer;
`think` the thinking; `last:N` the N tokens before the answer; `stride:K` every K-th token from the first. Equal
choices have one canonical text, which is part of a plan's settings and hence of its digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ConfigError
from cliffstore.records import SEGMENTS, Segment

_THINK = SEGMENTS.index(Segment.THINK)
_PLAIN = ("all", "decision", "think")
_NUMBERED = re.compile(r"(last|stride):0*([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Positions:
    """A union of choices. `str` gives its canonical text.

    Attributes
    ----------
    everything : every position, whatever else is chosen
    decision, think : the decision position; the segment `think`
    last : the numbers N of every `last:N`, ascending
    strides : the numbers K of every `stride:K`, ascending
    """

    everything: bool = False
    decision: bool = False
    think: bool = False
    last: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.everything:
            return "all"
        words = [word for word, chosen in (("decision", self.decision), ("think", self.think)) if chosen]
        numbered = [f"last:{n}" for n in self.last] + [f"stride:{n}" for n in self.strides]
        return ",".join(words + numbered)


ALL = Positions(everything=True)


def parse_positions(text: str) -> Positions:
    """Return the positions that `text` names, such as `all` or `think,last:8`.

    Raises
    ------
    ConfigError
        A word is none of those that there are.
    """
    plain: set[str] = set()
    numbers: dict[str, set[int]] = {"last": set(), "stride": set()}
    for word in (part.strip() for part in text.split(",")):
        numbered = _NUMBERED.fullmatch(word)
        if numbered:
            numbers[numbered[1]].add(int(numbered[2]))
        elif word in _PLAIN:
            plain.add(word)
        else:
            raise ConfigError(
                f"--positions {text!r}: {word!r} is none of all, decision, think, last:N and stride:K "
                "(N and K whole numbers from 1); join several with commas"
            )
    if "all" in plain:
        return ALL
    return Positions(
        decision="decision" in plain,
        think="think" in plain,
        last=tuple(sorted(numbers["last"])),
        strides=tuple(sorted(numbers["stride"])),
    )


def selected(positions: Positions, segments_T: npt.NDArray[np.uint8], decision: int) -> npt.NDArray[np.bool_]:
    """Return which of the T positions of an example are chosen, bool [T].

    `last:N` counts back from the decision position: the last N tokens *before the answer*, the decision position
    among them, not the last tokens of the response. `stride:K` is positions 0, K, 2K ... of the whole example.

    Parameters
    ----------
    segments_T : uint8 [T], indices into `SEGMENTS`
    decision : position of the last token before the answer; it may lie behind these tokens, where it is not known yet
    """
    if positions.everything:
        return np.ones(len(segments_T), dtype=np.bool_)
    selected_T = np.zeros(len(segments_T), dtype=np.bool_)
    if positions.decision:
        selected_T[decision : decision + 1] = True
    if positions.think:
        selected_T |= segments_T == _THINK
    for n in positions.last:
        selected_T[max(decision + 1 - n, 0) : decision + 1] = True
    for step in positions.strides:
        selected_T[::step] = True
    return selected_T
