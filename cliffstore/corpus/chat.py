"""A chat template as a function from turns to text, with the place of every turn's content in that text.

Algorithm: contents are not searched for, since a prompt `user` also occurs in a header. For each pattern of
roles the template is rendered once more with a private-use sentinel in the place of each content. What lies
between the sentinels are the template's literals; a walk along the real text (literal, content, literal, ...)
then gives the spans, and tells when a template has altered a content. Skeletons are cached by pattern, so an
example costs one rendering.

Determinism: some templates write today's date. `date_string` is passed, and `strftime_now` is shadowed by a
macro in front of the template, since transformers lets no callable through to a template. Only templates that
name `strftime_now` get the macro.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from cliffstore.corpus.markers import KNOWN_MARKERS
from cliffstore.errors import ModelError
from cliffstore.records import Message, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTINEL = re.compile("\ue000([0-9]+)\ue001")
_DIRECTIVES = "aAbBcdDeFGhHIjmMnpSTuUVwWxXyYZ"
_UNPADDED = "deHIjmMSUWVy"


class TemplateRefusedError(ValueError):
    """The template raised for these turns."""


class TemplateAlteredError(ValueError):
    """The text cannot be told apart into the template's literals and the contents."""


@dataclass(frozen=True, slots=True)
class Region:
    """The characters [start, end) of a text, and their role."""

    start: int
    end: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The prompt's text, ready for the answer. The regions cover it; the generation prompt is its tail."""

    text: str
    regions: tuple[Region, ...]
    generation_start: int


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """literals[0] contents[0] literals[1] ... literals[n]; `contents` are turn indices, as they appear."""

    literals: tuple[str, ...]
    contents: tuple[int, ...]


class ChatTemplate:
    """The default chat template of a tokenizer, at a fixed date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_date: date) -> None:
        self.text = str(tokenizer.get_chat_template())
        self._tokenizer = tokenizer
        self._source = fix_date(self.text, template_date)
        self._date_string = template_date.strftime("%d %b %Y")
        self._skeletons: dict[tuple[str, ...], _Skeleton] = {}
        self._defaults: dict[tuple[str, ...], tuple[int, int] | None] = {}
        self._check_syntax()
        self.end_of_turn = self._end_of_turn()

    def render(self, turns: Sequence[Message]) -> RenderedPrompt:
        """Render the turns up to the generation prompt, and find each content in the text.

        Raises
        ------
        TemplateRefusedError
            The template raised: a role or an order that it does not know.
        TemplateAlteredError
            A content is not in the text as given, or stripped, or without its thinking.
        """
        text = self._render(turns)
        roles = tuple(turn.role for turn in turns)
        skeleton = self._skeleton(roles)
        for i, turn in enumerate(turns):
            if turn.content.strip() and i not in skeleton.contents:
                raise TemplateAlteredError(f"the template leaves out the {turn.role} message {i + 1}")
        regions = _walk(text, turns, skeleton)
        generation_start = regions[-1].start if regions else 0
        default = self._default_system(roles)
        if default is not None:
            start, end = default
            head = regions[0]
            parts = (Region(0, start, Segment.HEADER), Region(start, end, Segment.SYSTEM))
            regions = [*parts, Region(end, head.end, Segment.HEADER), *regions[1:]]
        return RenderedPrompt(text, tuple(r for r in regions if r.end > r.start), generation_start)

    def _render(self, turns: Sequence[Message], *, generation: bool = True) -> str:
        from jinja2.exceptions import TemplateError

        conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._source,
                add_generation_prompt=generation,
                tokenize=False,
                date_string=self._date_string,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TemplateRefusedError(" ".join(str(error).split())) from error
        return str(text)

    def _check_syntax(self) -> None:
        from jinja2.exceptions import TemplateSyntaxError

        try:
            self._render([Message("user", "a")])
        except TemplateRefusedError as error:
            # A template may refuse this one conversation; one that does not compile refuses them all.
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise ModelError(f"the chat template does not compile: {error}; repair it") from error

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        if roles not in self._skeletons:
            turns = [Message(role, f"\ue000{i}\ue001") for i, role in enumerate(roles)]
            self._skeletons[roles] = _split(self._render(turns))
        return self._skeletons[roles]

    def _default_system(self, roles: tuple[str, ...]) -> tuple[int, int] | None:
        """Give the span of the system prompt that the template puts in by itself, if it does."""
        if roles not in self._defaults:
            self._defaults[roles] = None if "system" in roles else self._find_default_system(roles)
        return self._defaults[roles]

    def _find_default_system(self, roles: tuple[str, ...]) -> tuple[int, int] | None:
        try:
            explicit = self._skeleton(("system", *roles))
        except TemplateRefusedError:
            return None
        if explicit.contents[:1] != (0,):
            return None
        head = self._skeleton(roles).literals[0]
        before, after = explicit.literals[:2]
        start, end = len(before), len(head) - len(after)
        return (start, end) if start < end and head.startswith(before) and head.endswith(after) else None

    def _end_of_turn(self) -> str:
        """Give what the template writes after an assistant message; nothing where it cannot be found."""
        turns = [Message("user", "\ue0000\ue001"), Message("assistant", "\ue0001\ue001")]
        try:
            skeleton = _split(self._render(turns, generation=False))
        except TemplateRefusedError:
            return ""
        return skeleton.literals[-1] if skeleton.contents[-1:] == (1,) else ""


def fix_date(template: str, template_date: date) -> str:
    """Shadow `strftime_now` with a macro that formats a fixed date, midnight.

    The macro is on a line of its own: the environment trims the newline after a block, so that what follows
    renders as it would at the start of the template.
    """
    if "strftime_now" not in template:
        return template
    formats = ["%-" + letter for letter in _UNPADDED] + ["%" + letter for letter in _DIRECTIVES]
    # "%%d" is a percent sign and a d: percent signs are put aside first.
    steps = [("%%", "\ue002")]
    steps += [(each, template_date.strftime(each)) for each in formats]
    steps += [("\ue002", "%")]
    chain = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in steps)
    return "{% macro strftime_now(format) %}{{ format" + chain + " }}{% endmacro %}\n" + template


def _split(text: str) -> _Skeleton:
    parts = _SENTINEL.split(text)
    return _Skeleton(tuple(parts[0::2]), tuple(int(part) for part in parts[1::2]))


def _walk(text: str, turns: Sequence[Message], skeleton: _Skeleton) -> list[Region]:
    """Match the text against the skeleton: the regions alternate literal, content, ..., literal."""
    first, *following = skeleton.literals
    if not text.startswith(first):
        raise TemplateAlteredError("the text does not begin as the template does for these roles")
    regions = [Region(0, len(first), Segment.HEADER)]
    place = len(first)
    for k, (i, literal) in enumerate(zip(skeleton.contents, following, strict=True)):
        is_last = k == len(following) - 1
        for content in _forms(turns[i].content):
            end = place + len(content)
            fits = text.startswith(content, place) and text.startswith(literal, end)
            if fits and (not is_last or end + len(literal) == len(text)):
                break
        else:
            raise TemplateAlteredError(f"the {turns[i].role} message {i + 1} is not in the text as given")
        regions.append(Region(place, end, _segment_of(turns[i].role)))
        place = end + len(literal)
        regions.append(Region(end, place, Segment.HEADER))
    if place != len(text):
        raise TemplateAlteredError("the text does not end as the template does for these roles")
    return regions


def _forms(content: str) -> list[str]:
    """List what templates make of a content, the least altered first."""
    answers = [content]
    for pair in KNOWN_MARKERS:
        close = pair.close.strip()
        if close in content:
            answers.append(content.rsplit(close, 1)[1])
    forms: list[str] = []
    for text in answers:
        forms += [text, text.rstrip(), text.lstrip(), text.strip(), text.lstrip("\n")]
    return list(dict.fromkeys(forms))


def _segment_of(role: str) -> Segment:
    if role in ("system", "developer"):
        return Segment.SYSTEM
    return Segment.RESPONSE if role == "assistant" else Segment.USER
