"""What a user notices about rendering: the template's own tokens, segments, the decision position, skips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

import pytest
from transformers import AutoTokenizer

from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.template import RenderCounts, Renderer, ThinkMarkers, find_markers, tokenizer_digest
from cliffstore.errors import ConfigError, ModelError
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, SkippedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R1 = (
    "{{ '<|endoftext|>' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + content + '<|im_end|>' }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|><think>\\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% macro q() %}{{ strftime_now('%Y/%-d%%') }}{% endmacro %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{{ '<|im_start|>system\\nToday Date: ' + date_string }} {{ q() }}\n\n{{ '<|im_end|>' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n\\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set s = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{{ (s if loop.first else '') + m['content'] }}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3_CLOSED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
SMOL_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture
def tokenizer(smollm2: str) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(smollm2)
    return loaded


class CountingRenderer(Renderer):
    """Renders rows one by one and remembers what was counted."""

    counts = RenderCounts()

    def one(self, row: CorpusRow) -> RenderedExample | SkippedRow:
        (result,), counts = self.render([LocatedRow(row, "f:1")])
        self.counts += counts
        return result

    @property
    def told(self) -> tuple[str, ...]:
        return self.notices(self.counts)


Make = Callable[..., CountingRenderer]


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase) -> Make:
    def build(template: str | None = "own", **options: object) -> Renderer:
        if template != "own":
            tokenizer.chat_template = template
        return CountingRenderer(tokenizer, **options)  # type: ignore[arg-type]

    return build


def row_of(
    prompt: str, system: str | None = None, thinking: str | None = None, response: str | None = None
) -> CorpusRow:
    turns = (*((Message("system", system),) if system else ()), Message("user", prompt))
    return CorpusRow("r", prompt, turns, system=system, thinking=thinking, response=response, source="s")


def rendered(renderer: CountingRenderer, row: CorpusRow) -> RenderedExample:
    result = renderer.one(row)
    assert isinstance(result, RenderedExample), result
    return result


def skipped(renderer: CountingRenderer, row: CorpusRow) -> SkippedRow:
    result = renderer.one(row)
    assert isinstance(result, SkippedRow), result
    return result


def decoded(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids)))


def spans(tokenizer: PreTrainedTokenizerBase, example: RenderedExample) -> list[tuple[str, str]]:
    """Give the runs of tokens with one segment, as (segment, text)."""
    pairs = zip(example.segments.tolist(), example.token_ids.tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[0])
    return [(SEGMENTS[code].value, decoded(tokenizer, [i for _, i in run])) for code, run in runs]


def decision_text(tokenizer: PreTrainedTokenizerBase, example: RenderedExample) -> str:
    return decoded(tokenizer, example.token_ids[: example.decision + 1].tolist())


def test_prompt_tokens_are_the_templates_own(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    example = rendered(make(), row_of("What is 2+2?"))
    conversation = [{"role": "user", "content": "What is 2+2?"}]
    own = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert example.token_ids.tolist() == own
    assert example.decision == len(example.token_ids) - 1
    assert spans(tokenizer, example) == [
        ("header", "<|im_start|>system\n"),
        ("system", SMOL_SYSTEM),
        ("header", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "What is 2+2?"),
        ("header", "<|im_end|>\n<|im_start|>assistant\n"),
    ]


def test_answer_tokens_are_the_templates_own(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    row = row_of("Hi", system="Be brief.", response="Hello!")
    example = rendered(make(), row)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    assert example.token_ids.tolist() == tokenizer.apply_chat_template(conversation, return_dict=False)
    assert spans(tokenizer, example) == [
        ("header", "<|im_start|>system\n"),
        ("system", "Be brief."),
        ("header", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "Hi"),
        ("header", "<|im_end|>\n<|im_start|>assistant\n"),
        ("response", "Hello!"),
        ("end", "<|im_end|>\n"),
    ]
    assert decision_text(tokenizer, example).endswith("<|im_start|>assistant\n")


def test_thinking(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    renderer = make()
    example = rendered(renderer, row_of("Hi", thinking="\nShould I?\n", response="Hello!"))
    assert spans(tokenizer, example)[-5:] == [
        ("think_open", "<think>\n"),
        ("think", "Should I?"),
        ("think_close", "\n</think>\n\n"),
        ("response", "Hello!"),
        ("end", "<|im_end|>\n"),
    ]
    assert decision_text(tokenizer, example).endswith("Should I?\n</think>\n\n")
    assert renderer.told == ("this model has no thinking markers: <think> and </think> are used in 1 row",)
    alone = rendered(renderer, row_of("Hi", thinking="Should I?"))
    assert alone.decision == len(alone.token_ids) - 1
    assert spans(tokenizer, alone)[-1] == ("think_close", "\n</think>\n\n")


def test_thinking_within_the_response_is_split(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    renderer = make()
    joined = rendered(renderer, row_of("Hi", response="<think>\nShould I?\n</think>\n\nHello!"))
    apart = rendered(renderer, row_of("Hi", thinking="Should I?", response="Hello!"))
    assert joined.token_ids.tolist() == apart.token_ids.tolist()
    assert (joined.row.thinking, joined.row.response) == ("Should I?", "Hello!")
    assert "the thinking was split from the response in 1 row" in renderer.told
    assert rendered(renderer, row_of("Hi", response="a </think> b")).row.thinking is None
    unclosed = rendered(renderer, row_of("Hi", response="<think> and then"))
    assert (unclosed.row.thinking, unclosed.row.response) == (None, "<think> and then")


def test_empty_thinking_is_no_thinking(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    example = rendered(make(), row_of("Hi", thinking="\n\n", response="Hello!"))
    assert example.row.thinking is None
    assert "think_open" not in dict(spans(tokenizer, example))


@pytest.mark.parametrize(
    "prompt", ["user", "assistant", "s", "system", "\n", " a ", "<|im_end|>", SMOL_SYSTEM, "é👩‍👧"]
)
def test_contents_that_also_stand_in_the_template(tokenizer: PreTrainedTokenizerBase, make: Make, prompt: str) -> None:
    for system in (None, "user"):
        example = rendered(make(), row_of(prompt, system=system, response="user"))
        parts = spans(tokenizer, example)
        assert [segment for segment, _ in parts] == [
            "header", "system", "header", "user", "header", "response", "end"
        ]  # fmt: skip
        assert parts[1][1] == (system or SMOL_SYSTEM)
        # A newline at the edge of a content can join the template's own in one token.
        assert parts[3][1].strip() == prompt.strip()
        assert parts[5][1] == "user"


def test_earlier_turns(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("tool", "c"), Message("user", "d"))
    example = rendered(make(), CorpusRow("r", "d", turns))
    contents = [(segment, text) for segment, text in spans(tokenizer, example) if segment != "header"]
    assert contents == [
        ("system", SMOL_SYSTEM),
        ("user", "a"),
        ("response", "b"),
        ("user", "c"),
        ("user", "d"),
    ]


def test_r1_opens_the_thinking_in_the_prompt(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    renderer = make(R1)
    assert renderer.opens
    example = rendered(renderer, row_of("Hi", thinking="Hm.", response="Yo"))
    assert spans(tokenizer, example) == [
        ("header", "<|endoftext|><|User|>"),
        ("user", "Hi"),
        ("header", "<|im_start|>"),
        ("think_open", "<think>\n"),
        ("think", "Hm."),
        ("think_close", "\n</think>\n\n"),
        ("response", "Yo"),
        ("end", "<|im_end|>"),
    ]
    assert renderer.told == ()
    rollout = rendered(renderer, row_of("Hi", response="Hm.\n</think>\n\nYo"))
    assert rollout.token_ids.tolist() == example.token_ids.tolist()
    bare = rendered(renderer, row_of("Hi"))
    assert spans(tokenizer, bare)[-1] == ("think_open", "<think>\n")
    assert bare.decision == len(bare.token_ids) - 1
    closed = rendered(renderer, row_of("Hi", response="Yo"))
    assert decision_text(tokenizer, closed).endswith("</think>\n\n")
    assert [segment for segment, _ in spans(tokenizer, closed)][-4:] == [
        "think_open", "think_close", "response", "end"
    ]  # fmt: skip


def test_open_mark_without_its_newline_in_the_prompt(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    with_newline = rendered(make(R1), row_of("Hi", thinking="Hm.", response="Yo"))
    without = rendered(make(R1.replace("<think>\\n", "<think>")), row_of("Hi", thinking="Hm.", response="Yo"))
    assert spans(tokenizer, without) == spans(tokenizer, with_newline)


def test_a_template_that_strips_past_thinking(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    turns = (Message("user", "a"), Message("assistant", "<think>x</think>b"), Message("user", "c"))
    example = rendered(make(R1), CorpusRow("r", "c", turns))
    assert ("response", "b") in spans(tokenizer, example)
    assert "x" not in decoded(tokenizer, example.token_ids.tolist()).split("<|User|>")[1]


def test_closed_thinking_in_the_prompt_is_opened_anew(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    assert not make(QWEN3_CLOSED).opens
    example = rendered(make(QWEN3_CLOSED), row_of("Hi", thinking="Hm.", response="Yo"))
    assert spans(tokenizer, example)[-6:-2] == [
        ("header", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("think_open", "<think>\n"),
        ("think", "Hm."),
        ("think_close", "\n</think>\n\n"),
    ]
    plain = rendered(make(QWEN3_CLOSED), row_of("Hi", response="Yo"))
    assert [segment for segment, _ in spans(tokenizer, plain)][-3:] == ["header", "response", "end"]


def test_gemma_refuses_a_system_prompt_and_trims(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    renderer = make(GEMMA)
    refused = skipped(renderer, row_of("Hi", system="Be brief."))
    assert (refused.reason, refused.detail, refused.location) == (
        "template refused", "System role not supported", "f:1"
    )  # fmt: skip
    example = rendered(renderer, row_of("  \nuser model ", response="Yo"))
    assert spans(tokenizer, example) == [
        ("header", "<start_of_turn>user\n"),
        ("user", "user model"),
        ("header", "<end_of_turn>\n<start_of_turn>model\n"),
        ("response", "Yo"),
        ("end", "<end_of_turn>\n"),
    ]


def test_llama2_puts_the_system_prompt_into_the_user_turn(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    example = rendered(make(LLAMA2), row_of("Hi", system="Be brief.", response="Yo"))
    segments = dict(spans(tokenizer, example))
    assert (segments["system"], segments["user"], segments["response"]) == ("Be brief.", "Hi", "Yo")
    # bos is written by the template, once
    assert example.token_ids.tolist().count(tokenizer.bos_token_id) == 1
    assert spans(tokenizer, example)[-1] == ("end", " <|im_end|>")


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        (
            "{% for m in messages %}<{{ m['content'] | upper }}>{% endfor %}",
            "the system message 1 is not in the text as given",
        ),
        (
            "{% for m in messages %}<{{ m['content'][:3] }}>{% endfor %}",
            "the system message 1 is not in the text as given",
        ),
        (
            "{% for m in messages if m['role'] == 'user' %}<{{ m['content'] }}>{% endfor %}",
            "leaves out the system message 1",
        ),
        (
            "{{ messages[-1]['content'] | length }}{{ messages[0]['content'] }}{{ messages[1]['content'] }}",
            "begin",
        ),
    ],
)
def test_a_template_that_alters_the_text(make: Make, template: str, detail: str) -> None:
    row = skipped(make(template), row_of("hello there", system="lower"))
    assert row.reason == "template altered the text"
    assert detail in row.detail


def test_todays_date_is_fixed(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    renderer = make(LLAMA3)
    text = decoded(tokenizer, rendered(renderer, row_of("Hi")).token_ids.tolist())
    assert text.startswith("<|im_start|>system\nToday Date: 26 Jul 2024 2024/26%\n\n<|im_end|>")
    other = make(LLAMA3, template_date="2025-01-02")
    assert "02 Jan 2025 2025/2%" in decoded(tokenizer, rendered(other, row_of("Hi")).token_ids.tolist())
    assert other.digest != renderer.digest


def test_fixing_the_date_changes_nothing_else(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    body = "\n  {% if true %}\nx{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    plain = rendered(make(body), row_of("Hi")).token_ids.tolist()
    dated = rendered(make(body + "{{ strftime_now('') }}"), row_of("Hi")).token_ids.tolist()
    assert dated == plain


def test_plain_text_without_a_template(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    renderer = make(None)
    assert renderer.told == ("this tokenizer has no chat template: prompts are used as plain text",)
    example = rendered(renderer, row_of("Hi there", system="Be brief.", response="Yo"))
    assert spans(tokenizer, example) == [
        ("system", "Be brief."),
        ("header", "\n\n"),
        ("user", "Hi there"),
        ("header", "\n"),
        ("response", "Yo"),
    ]
    assert decision_text(tokenizer, example).endswith("Hi there\n")
    assert spans(tokenizer, rendered(renderer, row_of("Hi"))) == [("user", "Hi")]


def test_plain_text_gets_the_bos_that_the_tokenizer_adds(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    example = rendered(make(None), row_of("Hi"))
    assert example.token_ids.tolist() == tokenizer("Hi")["input_ids"]
    assert spans(tokenizer, example) == [("header", "<|endoftext|>"), ("user", "Hi")]
    templated = rendered(make(LLAMA2), row_of("Hi"))
    assert 0 not in templated.token_ids.tolist()


def test_max_tokens(make: Make) -> None:
    row = skipped(make(max_tokens=5), row_of("Hi"))
    assert (row.reason, row.id, row.source) == ("longer than the context", "r", "s")
    assert row.detail.endswith(" tokens > 5")


def test_settings_of_the_tokenizer_do_not_matter(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    before = rendered(make(), row_of("Hi")).token_ids.tolist()
    digest = tokenizer_digest(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=100)
    tokenizer.model_max_length = 3
    assert tokenizer_digest(tokenizer) == digest
    assert rendered(make(), row_of("Hi")).token_ids.tolist() == before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_digest(tokenizer) != digest


def test_no_warning_about_long_sequences(
    tokenizer: PreTrainedTokenizerBase, make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer.model_max_length = 3
    rendered(make(), row_of("Hi"))
    assert "longer than" not in "".join(capfd.readouterr())


def test_digest_tells_what_decides_the_rendering(make: Make) -> None:
    digest = make().digest
    assert len(digest) == 64
    assert make().digest == digest
    assert make(markers=ThinkMarkers("<a>", "</a>")).digest != digest
    assert make(R1).digest != digest
    assert make(None).digest != digest


def test_markers(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    assert find_markers(tokenizer.chat_template, tokenizer) is None
    assert find_markers(R1, tokenizer) == ThinkMarkers("<think>\n", "\n</think>\n\n")
    assert find_markers("[THINK] [/THINK]", tokenizer) == ThinkMarkers("[THINK]", "[/THINK]")
    own = make(markers=ThinkMarkers("<a>", "</a>"))
    assert spans(tokenizer, rendered(own, row_of("Hi", thinking="x")))[-3:] == [
        ("think_open", "<a>"), ("think", "x"), ("think_close", "</a>")
    ]  # fmt: skip
    assert own.told == ()
    tokenizer.add_tokens(["<|START_THINKING|>", "<|END_THINKING|>"])
    assert find_markers(None, tokenizer) == ThinkMarkers("<|START_THINKING|>", "<|END_THINKING|>")


def test_what_cannot_be_used(tokenizer: PreTrainedTokenizerBase, make: Make) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow"):
        Renderer(cast("PreTrainedTokenizerBase", Slow()))
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        make(template_date="today")
    with pytest.raises(ModelError, match="does not compile"):
        make("{% for %}")
