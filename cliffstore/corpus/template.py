"""A corpus row to tokens, segments and the decision position, through the model's chat template.

Layout of the text: rendered prompt, ending with the generation prompt + [open mark + thinking + close mark] +
[response + end of turn]. The template renders the prompt only, as text; thinking and response are appended
here, because templates drop the thinking of past turns. The whole text is tokenised once, without adding
special tokens (the template has written them). A token belongs to the region of its last character.

Cost: one or two template renderings and one tokenisation a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from cliffstore.corpus.chat import (
    ChatTemplate,
    Region,
    RenderedPrompt,
    TemplateAlteredError,
    TemplateRefusedError,
)
from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.markers import DEFAULT_MARKERS, ThinkMarkers, find_markers, split_thinking
from cliffstore.errors import ConfigError, ModelError
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, Segment, SkippedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RenderCounts", "Renderer", "ThinkMarkers", "find_markers", "tokenizer_digest"]

TokenIds: TypeAlias = npt.NDArray[np.int32]
Offsets: TypeAlias = npt.NDArray[np.int64]

REFUSED = "template refused"
ALTERED = "template altered the text"
TOO_LONG = "longer than the context"
_CODES = {segment: code for code, segment in enumerate(SEGMENTS)}
_RENDERING = 1  # raised when the same template would render otherwise


@dataclass(frozen=True, slots=True)
class RenderCounts:
    """What the user should know about rows that were rendered, counted."""

    with_default_markers: int = 0
    split: int = 0

    def __add__(self, other: RenderCounts) -> RenderCounts:
        return RenderCounts(self.with_default_markers + other.with_default_markers, self.split + other.split)


@dataclass(frozen=True, slots=True)
class _Laid:
    """A row as text, before it is tokenised; `split` where its thinking was taken out of the response."""

    row: CorpusRow
    location: str
    text: str
    regions: Sequence[Region]
    answer_start: int
    split: bool


class Renderer:
    """Renders rows for one tokenizer.

    Parameters
    ----------
    markers : what stands around the thinking; by default found in the template
    template_date : YYYY-MM-DD, what templates that write today's date get
    max_tokens : rows with more are skipped
    to_answer : end where the answer begins, also where that is told by a line break only

    Attributes
    ----------
    digest : sha256 of everything here that decides the rendering (the tokenizer has its own digest)
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        markers: ThinkMarkers | None = None,
        template_date: str = "2024-07-26",
        max_tokens: int | None = None,
        to_answer: bool = False,
    ) -> None:
        _check_fast(tokenizer)
        try:
            day = date.fromisoformat(template_date)
        except ValueError as error:
            raise ConfigError(f"template_date must be YYYY-MM-DD, not {template_date!r}") from error
        self.tokenizer = tokenizer
        self._max_tokens, self._to_answer = max_tokens, to_answer
        self._chat = ChatTemplate(tokenizer, day) if tokenizer.chat_template else None
        found = markers or find_markers(self._chat.text if self._chat else None, tokenizer)
        self.markers = found or DEFAULT_MARKERS
        self._is_default = found is None
        self._bos = "" if self._chat else _added_prefix(tokenizer)
        self.digest = _digest(
            {
                "rendering": _RENDERING,
                "template": self._chat.text if self._chat else "plain",
                "markers": asdict(self.markers),
                "date": template_date,
            }
        )

    @property
    def thinks(self) -> bool:
        """Whether the model has marks of thinking, its own or the user's."""
        return not self._is_default

    @property
    def opens(self) -> bool:
        """Whether the template opens the thinking at the end of a prompt, so that the model writes its end alone."""
        if self._chat is None:
            return False
        try:
            return _open_tail(self._chat.render([Message("user", "a")]), self.markers) is not None
        except (TemplateRefusedError, TemplateAlteredError):
            return False

    @property
    def end_of_turn(self) -> str:
        """What the template writes after an answer."""
        return self._chat.end_of_turn if self._chat else ""

    def notices(self, counts: RenderCounts) -> tuple[str, ...]:
        """Tell what the user should know about rows rendered with these counts."""
        notices = []
        if self._chat is None:
            notices.append("this tokenizer has no chat template: prompts are used as plain text")
        if counts.with_default_markers:
            marks = f"{self.markers.open.strip()} and {self.markers.close.strip()}"
            n = counts.with_default_markers
            notices.append(f"this model has no thinking markers: {marks} are used in {_rows(n)}")
        if counts.split:
            notices.append(f"the thinking was split from the response in {_rows(counts.split)}")
        return tuple(notices)

    def render(self, rows: Sequence[LocatedRow]) -> tuple[list[RenderedExample | SkippedRow], RenderCounts]:
        """Render rows, in their order. An example's row has thinking and response apart, even if the corpus had not."""
        laid = [self._lay_out(one.row, one.location) for one in rows]
        tokens = iter(self._tokenize([one.text for one in laid if isinstance(one, _Laid)]))
        rendered: list[RenderedExample | SkippedRow] = []
        n_default = n_split = 0
        for one in laid:
            found = self._finish(one, *next(tokens)) if isinstance(one, _Laid) else one
            rendered.append(found)
            if isinstance(one, _Laid) and isinstance(found, RenderedExample):
                n_default += self._is_default and one.row.thinking is not None
                n_split += one.split
        return rendered, RenderCounts(n_default, n_split)

    def _lay_out(self, row: CorpusRow, location: str) -> _Laid | SkippedRow:
        try:
            prompt = self._prompt(row)
        except TemplateRefusedError as error:
            return SkippedRow(row.id, row.source, location, REFUSED, str(error))
        except TemplateAlteredError as error:
            return SkippedRow(row.id, row.source, location, ALTERED, str(error))
        opened = _open_tail(prompt, self.markers)
        row, was_split = self._with_thinking_apart(row, is_open=opened is not None)
        text, regions, answer_start = self._with_answer(prompt, opened, row)
        return _Laid(row, location, text, regions, answer_start, was_split)

    def _finish(self, one: _Laid, token_ids: TokenIds, offsets: Offsets) -> RenderedExample | SkippedRow:
        """Give each token its segment. Shapes: token_ids int32 [T], offsets int64 [T, 2], characters [start, end)."""
        row, location = one.row, one.location
        if self._max_tokens is not None and len(token_ids) > self._max_tokens:
            detail = f"{len(token_ids)} tokens > {self._max_tokens}"
            return SkippedRow(row.id, row.source, location, TOO_LONG, detail)
        ends = offsets[:, 1]
        before = np.flatnonzero(ends <= one.answer_start)
        if not before.size:
            return SkippedRow(row.id, row.source, location, ALTERED, "no token ends before the answer")
        last_chars = np.maximum(ends - 1, offsets[:, 0])
        return RenderedExample(row, token_ids, segments_of(last_chars, one.regions), int(before[-1]), location)

    def _prompt(self, row: CorpusRow) -> RenderedPrompt:
        return self._chat.render(row.turns) if self._chat else _plain_prompt(row, self._bos)

    def _with_thinking_apart(self, row: CorpusRow, *, is_open: bool) -> tuple[CorpusRow, bool]:
        thinking, response, was_split = row.thinking, row.response, False
        if thinking is None and response is not None:
            parts = split_thinking(response, self.markers, is_open=is_open)
            if parts is not None:
                (thinking, response), was_split = parts, True
        if thinking is not None and not thinking.strip():
            thinking = None
        return replace(row, thinking=thinking, response=response or None), was_split

    def _with_answer(self, prompt: RenderedPrompt, opened: int | None, row: CorpusRow) -> tuple[str, list[Region], int]:
        """Append thinking and response; also give the character where the answer starts, or would start."""
        pieces: list[tuple[str, Segment]] = []
        regions = list(prompt.regions)
        if self._chat is None and (row.thinking or row.response or self._to_answer):
            pieces.append(("\n", Segment.HEADER))
        if opened is not None:
            regions = _cut(regions, opened)
        if row.thinking is not None:
            open_ = self.markers.open if opened is None else self._missing_open(prompt)
            thinking = row.thinking.strip("\n")
            pieces += [(open_, Segment.THINK_OPEN), (thinking, Segment.THINK)]
            pieces.append((self.markers.close, Segment.THINK_CLOSE))
        elif opened is not None and row.response is not None:
            # The prompt has opened a thinking that this row does not have.
            pieces.append((self._missing_open(prompt), Segment.THINK_OPEN))
            pieces.append((self.markers.close, Segment.THINK_CLOSE))
        answer_start = len(prompt.text) + sum(len(piece) for piece, _ in pieces)
        if row.response is not None:
            pieces += [(row.response, Segment.RESPONSE), (self.end_of_turn, Segment.END)]
        text = prompt.text
        for piece, segment in pieces:
            regions.append(Region(len(text), len(text) + len(piece), segment))
            text += piece
        return text, [region for region in regions if region.end > region.start], answer_start

    def _missing_open(self, prompt: RenderedPrompt) -> str:
        """Give the white space of the open mark that the prompt's own open mark lacks."""
        core = self.markers.open.rstrip()
        return self.markers.open[len(core) :] if prompt.text.endswith(core) else ""

    def _tokenize(self, texts: Sequence[str]) -> list[tuple[TokenIds, Offsets]]:
        """Tokenise texts as they are: for each, ids int32 [T] and character offsets int64 [T, 2]."""
        if not texts:
            return []
        encoding = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return [
            (np.asarray(ids, dtype=np.int32), np.asarray(offsets, dtype=np.int64).reshape(-1, 2))
            for ids, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]


def segments_of(last_chars: npt.NDArray[np.int64], regions: Sequence[Region]) -> npt.NDArray[np.uint8]:
    """Give each token the role of the region that holds its last character.

    Parameters
    ----------
    last_chars : int64 [T], character index of each token's last character
    regions : adjoining and not empty, from character 0 to the end of the text

    Returns
    -------
    uint8 [T], indices into `SEGMENTS`
    """
    region_ends = np.asarray([region.end for region in regions], dtype=np.int64)
    codes = np.asarray([_CODES[region.segment] for region in regions], dtype=np.uint8)
    found = np.searchsorted(region_ends, last_chars, side="right")
    return codes[np.minimum(found, len(codes) - 1)]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest what decides the token ids of a text: sha256 hex of the fast tokenizer and its special tokens.

    Truncation and padding are left out: they are settings of a call, and a call changes them.
    """
    _check_fast(tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):
        backend.pop(setting, None)
    return _digest({"backend": backend, "special": tokenizer.special_tokens_map})


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ModelError(f"the tokenizer {kind} gives no character offsets; use a fast one (tokenizer.json)")


def _digest(document: object) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n} rows"


def _open_tail(prompt: RenderedPrompt, markers: ThinkMarkers) -> int | None:
    """Give the character where the generation prompt's own open mark starts, if it ends with one."""
    core = markers.open.strip()
    tail = prompt.text[prompt.generation_start :].rstrip()
    return prompt.generation_start + len(tail) - len(core) if core and tail.endswith(core) else None


def _cut(regions: Sequence[Region], start: int) -> list[Region]:
    """Make everything from the character `start` on the think_open region."""
    kept = [replace(region, end=min(region.end, start)) for region in regions if region.start < start]
    return [*kept, Region(start, regions[-1].end, Segment.THINK_OPEN)]


def _plain_prompt(row: CorpusRow, bos: str) -> RenderedPrompt:
    """Lay out a prompt without a template: beginning-of-sequence token, turns with a blank line between."""
    text, regions = bos, [Region(0, len(bos), Segment.HEADER)]
    for i, turn in enumerate(row.turns):
        join = "\n\n" if i else ""
        start = len(text) + len(join)
        segment = {"system": Segment.SYSTEM, "assistant": Segment.RESPONSE}.get(turn.role, Segment.USER)
        regions.append(Region(len(text), start, Segment.HEADER))
        regions.append(Region(start, start + len(turn.content), segment))
        text += join + turn.content
    return RenderedPrompt(text, tuple(region for region in regions if region.end > region.start), len(text))


def _added_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the text of the special tokens that the tokenizer itself would put before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return "".join(tokenizer.convert_ids_to_tokens(full[:start]))
    return ""
