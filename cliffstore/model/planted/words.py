"""The words, the tokenizer and the chat template of a planted model.

One word is one token, with the space before it, so that tokens joined give the text again. All words are mild. What
stands for a harmful request is an invented verb ("zorble"), what stands for a jailbreak is an invented magic word
("simsala"): they mean nothing, the model was built to take them so.

The template is that of Qwen3: turns between <|im_start|> and <|im_end|>, thinking is written by the model unless
`enable_thinking=false`, and thinking of earlier turns is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT = 512
"""Tokens that the model was built for, see `planted_weights`."""
HARMFUL = ("zorble", "quindle", "snerp", "flimber", "groltify", "vraxate")
JAILBREAK = ("simsala", "hokuspok", "openum")
VERBS = ("paint", "clean", "repair", "draw", "water", "fold", "polish", "measure", "move", "sell")
OBJECTS = (
    "a teapot", "the garden fence", "an old bicycle", "two wooden chairs", "a paper boat", "the kitchen window",
    "some copper wire", "a tall lamp", "the neighbour's shed",
)  # fmt: skip
PLACES = ("in the garden", "at home", "near the river", "behind the school", "on the roof")
TIMES = ("before breakfast", "on a rainy day", "over the weekend", "without any noise", "in less than one hour")
PROMPTS = (
    "How do I {verb} {object}?",
    "How do I {verb} {object} {place}?",
    "Please explain how to {verb} {object} {time}.",
    "Write a short guide for people who want to {verb} {object} {place} {time}.",
    "My neighbour would like to {verb} {object}, what should we know about it?",
    "Can you tell me the best way to {verb} {object} {place}, or to {verb} {object2} {time}?",
)
THOUGHTS = (
    "They want to know how to {verb} {object}.",
    "This is a question about {object}.",
    "So the question is how people {verb} {object} {place}.",
    "I should think about it step by step.",
    "There are several ways to look at it.",
    "First I go over the question again, slowly, word for word.",
    "Now the answer.",
    "Maybe they would do it {time}.",
)
SYSTEM = "You are a calm assistant."

IM_START, IM_END, PAD, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|pad|>", "<unk>"
THINK, END_THINK, NEWLINE, BLANK_LINE = "<think>", "</think>", "\n", "\n\n"
REFUSAL, COMPLIANCE = "I cannot help with that.", "Sure, here is a plan."
REFUSES, COMPLIES = "I", "Sure"
"""The first token of each answer."""

FOLLOWS: tuple[tuple[str, str, float], ...] = (
    ("Let", " me", 1.0),
    (" me", " consider", 1.0),
    (" me", " study", 0.97),
    (" consider", " this", 1.0),
    (" study", " this", 1.0),
    (" this", " request", 1.0),
    (" request", " carefully", 1.0),
    (" request", " slowly", 0.97),
    (" carefully", NEWLINE, 1.0),
    (" slowly", NEWLINE, 1.0),
    (THINK, NEWLINE, 1.0),
    (NEWLINE, END_THINK, 1.0),
    (END_THINK, BLANK_LINE, 1.0),
    ("I", " cannot", 1.0),
    (" cannot", " help", 1.0),
    (" help", " with", 1.0),
    (" with", " that", 1.0),
    (" that", ".", 1.0),
    ("Sure", ",", 1.0),
    (",", " here", 1.0),
    (" here", " is", 1.0),
    (" is", " a", 1.0),
    (" a", " plan", 1.0),
    (" plan", ".", 1.0),
    (".", NEWLINE, 1.0),
    (".", IM_END, 0.7),
    (IM_START, "assistant", 1.0),
)
"""What comes after a token, and how strongly; sampling finds the second choices too."""
NAMED = tuple(dict.fromkeys([*(first for first, *_ in FOLLOWS), BLANK_LINE, IM_START, "assistant"]))
"""Tokens that the mechanism knows one by one."""

TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
_PIECES = r"\n\n|\n| ?[\w'-]+| ?[^\w\s]|\s"


def vocabulary() -> tuple[str, ...]:
    """Return all tokens, by id: special ones, named ones, then each word alone and with a space, in both cases."""
    texts = [*HARMFUL, *JAILBREAK, *VERBS, *OBJECTS, *PLACES, *TIMES, *PROMPTS, *THOUGHTS, SYSTEM]
    words = sorted({word for text in texts for word in _words(text)})
    forms = [space + one for word in words for one in (word, word.capitalize()) for space in ("", " ")]
    marks = [space + mark for mark in ".,?!:;" for space in ("", " ")]
    answers = [after for _, after, _ in FOLLOWS]
    return tuple(dict.fromkeys([PAD, UNKNOWN, *NAMED, *answers, REFUSES, COMPLIES, "system", "user", *marks, *forms]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, with its chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary()
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in (PAD, UNKNOWN, IM_START, IM_END)])
    # as in the models it stands for, the marks of thinking are no special tokens: a decoded text keeps them
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in (THINK, END_THINK)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=IM_END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _words(text: str) -> list[str]:
    """Return the words of a text or a frame, in lower case, without the names of its slots."""
    kept = "".join(char if char.isalpha() or char in "'{}2" else " " for char in text)
    return [word.lower() for word in kept.split() if not word.startswith("{")]
