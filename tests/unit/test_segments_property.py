"""Properties of segments that hold for every text: they cover the tokens, in the order of the layout."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cliffstore.corpus.chat import Region
from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.template import Renderer, segments_of
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ue000\ue001"), max_size=30) | st.sampled_from(
    ["user", "assistant", "s", "\n", "<|im_end|>", "<think>", "</think>", "<|im_start|>user\n"]
)
ORDER = [Segment.THINK_OPEN, Segment.THINK, Segment.THINK_CLOSE, Segment.RESPONSE, Segment.END]


@cache
def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


@cache
def _renderer(folder: str) -> Renderer:
    return Renderer(_tokenizer(folder))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(prompt=TEXT, system=TEXT | st.none(), thinking=TEXT | st.none(), response=TEXT | st.none())
def test_segments_follow_the_layout(
    smollm2: str, prompt: str, system: str | None, thinking: str | None, response: str | None
) -> None:
    renderer = _renderer(smollm2)
    turns = (*((Message("system", system),) if system is not None else ()), Message("user", prompt))
    row = CorpusRow("r", prompt, turns, system=system, thinking=thinking, response=response)
    (example,), _ = renderer.render([LocatedRow(row, "f:1")])
    assert isinstance(example, RenderedExample)
    assert example.token_ids.dtype == np.int32
    assert example.segments.dtype == np.uint8
    assert example.token_ids.shape == example.segments.shape
    assert 0 <= example.decision < len(example.token_ids)

    tokenizer = _tokenizer(smollm2)
    conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
    text = str(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    if example.row.thinking is not None:
        thinking = example.row.thinking.strip("\n")
        text += renderer.markers.open + thinking + renderer.markers.close
    if example.row.response is not None:
        text += example.row.response + "<|im_end|>\n"
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert example.token_ids.tolist() == whole["input_ids"]
    covered = {place for start, end in whole["offset_mapping"] for place in range(start, end)}
    # SmolLM2's vocabulary lacks some bytes: it drops them, and offsets are then off within their word.
    if tokenizer.decode(whole["input_ids"]) == text:
        assert covered == set(range(len(text)))

    found = [SEGMENTS[code] for code in example.segments.tolist()]
    last_header = max(i for i, segment in enumerate(found) if segment is Segment.HEADER)
    tail = [ORDER.index(segment) for segment in found[last_header + 1 :]]
    assert tail == sorted(tail)
    assert not set(found[: last_header + 1]) & set(ORDER)
    answer = [i for i, s in enumerate(found) if s in (Segment.RESPONSE, Segment.END)]
    assert answer == list(range(example.decision + 1, len(found)))
    if example.row.thinking is not None:
        assert found[example.decision] is Segment.THINK_CLOSE


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8), data=st.data())
def test_each_token_belongs_to_the_region_of_its_last_character(lengths: list[int], data: st.DataObject) -> None:
    ends = np.cumsum(lengths).tolist()
    codes = data.draw(st.lists(st.sampled_from(SEGMENTS), min_size=len(ends), max_size=len(ends)))
    regions = [Region(end - n, end, code) for end, n, code in zip(ends, lengths, codes, strict=True)]
    by_character = [region.segment for region in regions for _ in range(region.start, region.end)]
    found = segments_of(np.arange(ends[-1]), regions)
    assert [SEGMENTS[code] for code in found.tolist()] == by_character
