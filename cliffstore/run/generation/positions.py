"""Where interventions act while text is generated: the words of `plan/choices.py` for prompts and for new tokens.

In a prompt positions are those of the rendered example. A new token gets the role that it has when it is read: what
follows is not known yet. So

- a token of the mark that closes thinking is known as such from its second character on; white space before it counts
  as thinking;
- where the model writes its thinking, the decision position is the token with which the whole closing mark stands
  there; distances before it (`-8..-1`, `last:N`) lie in the past by then and choose nothing. A model that thinks and
  answers at once all the same has no decision position;
- where the prompt has thinking, be it the empty one that a template closes, or the model has none, the decision
  position is in the prompt.

Cost: a tokeniser call and a pass over the row's roles for each new token, only where positions other than `all` are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.corpus.markers import ThinkMarkers
from cliffstore.plan.choices import ALL, GENERATED, TEMPLATE, chosen
from cliffstore.records import SEGMENTS, Segment

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from cliffstore.model.generation import Prompt
    from cliffstore.model.interventions import PlacedChanges

_UNKNOWN = 1 << 40
"""A decision position that is not there yet: before it, everything is too far away."""
_FEWEST = 2
"""Characters of a mark that tell it from other text."""
_LONGEST_MARK = 24
"""Tokens at the end of a prompt in which the mark that closes thinking is looked for."""
TextOf = Callable[[list[int]], str]


@dataclass(slots=True)
class RowRoles:
    """The roles of one row's tokens: those of its prompt, and of what has been generated so far.

    Attributes
    ----------
    segments : indices into `SEGMENTS`
    markers : None where the row does not write its own thinking
    is_open : whether the prompt ends within thinking
    """

    segments: list[int]
    decision: int
    markers: ThinkMarkers | None
    is_open: bool
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.markers is not None:
            self.decision = _UNKNOWN

    @property
    def is_decided(self) -> bool:
        """Whether the decision position is there."""
        return self.decision != _UNKNOWN

    def read(self, token: int, text_of: TextOf) -> None:
        """Take one more token. `text_of` gives the text of token ids."""
        self.ids.append(token)
        text = "" if self.markers is None else text_of(self.ids)
        role = Segment.RESPONSE if self.markers is None else role_at_end(text, self.markers, is_open=self.is_open)
        self.segments.append(SEGMENTS.index(role))
        if self.markers is not None and self.decision == _UNKNOWN and text.endswith(self.markers.close.lstrip()):
            self.decision = len(self.segments) - 1

    def holds(self, choice: str) -> npt.NDArray[np.bool_]:
        """Return which of the tokens so far a choice means, bool [T]."""
        return chosen(choice, np.asarray(self.segments, dtype=np.uint8), self.decision)


def role_at_end(text: str, markers: ThinkMarkers, *, is_open: bool) -> Segment:
    """Return the role of the last character of what a model has written, as far as can be known by then."""
    open_, close = markers.open.strip(), markers.close.strip()
    begun = text.lstrip()
    if not is_open and not begun.startswith(open_):
        return Segment.THINK_OPEN if open_.startswith(begun) else Segment.RESPONSE
    if begun.startswith(open_) and not begun[len(open_) :].strip(markers.open[len(markers.open.rstrip()) :]):
        return Segment.THINK_OPEN
    head, found, rest = text.partition(close)
    if not found:
        partly = any(head.endswith(close[:length]) for length in range(_FEWEST, len(close)))
        return Segment.THINK_CLOSE if partly else Segment.THINK
    tail = markers.close[markers.close.rindex(close) + len(close) :]
    return Segment.THINK_CLOSE if tail.startswith(rest) else Segment.RESPONSE


def relative(choices: Sequence[str]) -> list[str]:
    """Return the choices that mean something only where there is a decision position."""
    absolute = {*SEGMENTS, ALL, TEMPLATE, GENERATED}
    return [
        choice
        for choice in choices
        if any(word not in absolute and not word.startswith("stride:") for word in choice.split(","))
    ]


@contextmanager
def acting(
    model: PreTrainedModel,
    text_of: TextOf,
    placed: Sequence[PlacedChanges],
    choices: Sequence[str],
    rows: Sequence[RowRoles],
) -> Iterator[None]:
    """Make interventions act while `model.generate` runs on a batch.

    Parameters
    ----------
    choices : the positions that they ask for
    rows : of the batch, in its order
    """
    from cliffstore.model.interventions import applied
    from cliffstore.model.pass_masks import positions_in_generation

    if not choices:
        with applied(placed):
            yield
        return

    def decode(ids_BT: torch.Tensor) -> Mapping[str, torch.Tensor]:
        import torch

        assert ids_BT.shape[1] == 1, "new tokens come one at a time"
        for row, (token,) in zip(rows, ids_BT.tolist(), strict=True):
            row.read(token, text_of)
        return {choice: torch.tensor([[bool(row.holds(choice)[-1])] for row in rows]) for choice in choices}

    masks = [{choice: row.holds(choice) for choice in choices} for row in rows]
    with applied(placed), positions_in_generation(model, masks, decode):
        yield


def roles_of(prompt: Prompt, markers: ThinkMarkers | None, text_of: TextOf) -> RowRoles:
    """Return the roles of a prompt's tokens, before anything is generated. `text_of` gives the text of token ids."""
    place = prompt.place
    assert place is not None
    own = None if place.is_fixed or _is_closed(prompt, markers, text_of) else markers
    return RowRoles(list(place.segments), place.decision, own, place.is_open)


def _is_closed(prompt: Prompt, markers: ThinkMarkers | None, text_of: TextOf) -> bool:
    """Return whether a prompt ends with thinking that its template has closed."""
    if markers is None:
        return False
    return text_of(prompt.token_ids[-_LONGEST_MARK:].tolist()).rstrip().endswith(markers.close.strip())
