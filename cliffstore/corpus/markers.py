"""The marks around a model's thinking: which ones a model uses, and how to find them in a text.

A model's marks are looked up in its chat template and its added tokens, from a table of pairs in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ThinkMarkers:
    """What stands before and after the thinking, in full, white space included."""

    open: str
    close: str


def _tags(open_: str, close: str) -> ThinkMarkers:
    return ThinkMarkers(f"{open_}\n", f"\n{close}\n\n")


KNOWN_MARKERS: tuple[ThinkMarkers, ...] = (
    _tags("<think>", "</think>"),
    _tags("<thinking>", "</thinking>"),
    _tags("<thought>", "</thought>"),
    _tags("<reasoning>", "</reasoning>"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    # Mistral and Cohere write their marks without white space.
    ThinkMarkers("[THINK]", "[/THINK]"),
    ThinkMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
)
DEFAULT_MARKERS = KNOWN_MARKERS[0]


def find_markers(template: str | None, tokenizer: PreTrainedTokenizerBase) -> ThinkMarkers | None:
    """Find the model's own marks: both in the template, or both added tokens, or the close in the template.

    The last case is a template that only strips the thinking from earlier turns.
    """
    text = template or ""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    cores = {pair: (pair.open.strip(), pair.close.strip()) for pair in KNOWN_MARKERS}
    in_template = [pair for pair, (open_, close) in cores.items() if open_ in text and close in text]
    in_tokens = [pair for pair, core in cores.items() if added.issuperset(core)]
    stripped = [pair for pair, (_, close) in cores.items() if close in text]
    return next(iter([*in_template, *in_tokens, *stripped]), None)


def split_thinking(response: str, markers: ThinkMarkers, *, is_open: bool) -> tuple[str, str | None] | None:
    """Split a response that carries its thinking into the thinking and the answer (None where there is none).

    Parameters
    ----------
    markers : the model's own; a response may carry any other known pair as well
    is_open : whether the prompt ends with the open mark, so that the response need not begin with it

    Returns
    -------
    None if the response carries no closed thinking.
    """
    for pair in _unique((markers, *KNOWN_MARKERS)):
        open_, close = pair.open.strip(), pair.close.strip()
        head, found, answer = response.partition(close)
        begun = head.lstrip().startswith(open_)
        if found and (begun or (is_open and pair == markers and open_ not in head)):
            thinking = head.lstrip().removeprefix(open_) if begun else head
            return thinking.strip("\n"), answer.lstrip("\n") or None
    return None


def _unique(pairs: Iterable[ThinkMarkers]) -> list[ThinkMarkers]:
    return list(dict.fromkeys(pairs))
