"""Formats of a training set: what each makes of a row, and what becomes of thinking."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import SelectionError
from cliffstore.publish.formats import Shape, Thinking, columns_of_examples, conversation, first_words
from cliffstore.schema import EXAMPLES, LINEAGE, TRAINING_SETS

ROW = {
    "id": "a", "system": "Be brief.", "prompt": "What is bread?", "thinking": "one two  three\nfour",
    "response": "Food.",
}  # fmt: skip
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello to you."},
    {"role": "user", "content": "What is bread?"},
]


def shape(format: str, thinking: str = "keep") -> Shape:
    return Shape(format, Thinking.parse(thinking), "<think>\n", "\n</think>\n\n")


@pytest.mark.parametrize(
    ("thinking", "answer"),
    [
        ("keep", "<think>\none two  three\nfour\n</think>\n\nNo."),
        ("keep:100%", "<think>\none two  three\nfour\n</think>\n\nNo."),
        ("keep:75%", "<think>\none two  three\n</think>\n\nNo."),
        ("keep:74.9%", "<think>\none two\n</think>\n\nNo."),
        ("keep:0%", "<think>\n\n</think>\n\nNo."),
        ("drop", "No."),
        ("replace:I must: decline.", "<think>\nI must: decline.\n</think>\n\nNo."),
        ("replace:", "<think>\n\n</think>\n\nNo."),
    ],
)
def test_thinking(thinking: str, answer: str) -> None:
    assert shape("messages", thinking).answer(ROW, "No.") == answer
    assert shape("messages", thinking).answer({**ROW, "thinking": None}, "No.") == "No."


@pytest.mark.parametrize("text", ["", "cut", "keep:", "keep:101%", "keep:-1%", "keep:40", "replace", "Drop"])
def test_thinking_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="keep:40%"):
        Thinking.parse(text)


@given(st.text(), st.floats(0, 1))
def test_first_words_are_a_beginning(text: str, share: float) -> None:
    kept = first_words(text, share)
    assert text.startswith(kept)
    assert first_words(text, 1.0) == text
    assert len(kept.split()) <= len(text.split())


def test_words_of_a_script_without_spaces_are_its_characters() -> None:
    assert first_words("面包是一种食物", 3 / 7) == "面包是"
    assert first_words("what is 面包 for", 0.6) == "what is 面"


def test_messages_and_prompt_completion_hold_the_same_turns() -> None:
    whole = shape("messages").columns(ROW, "No.")["messages"]
    parts = shape("prompt-completion").columns(ROW, "No.")
    assert [*parts["prompt"], *parts["completion"]] == whole
    assert [turn["role"] for turn in whole] == ["system", "user", "assistant"]
    assert [turn["role"] for turn in parts["completion"]] == ["assistant"]


def test_conversation_of_the_corpus_wins_without_its_answer() -> None:
    assert conversation({**ROW, "messages": TURNS}) == TURNS
    assert conversation({**ROW, "messages": [*TURNS, {"role": "assistant", "content": "Food."}]}) == TURNS
    assert conversation({**ROW, "messages": None, "system": None}) == [{"role": "user", "content": "What is bread?"}]


def test_alpaca_keeps_earlier_turns_as_history() -> None:
    found = shape("alpaca", "drop").columns({**ROW, "messages": TURNS}, "No.")
    assert found == {
        "instruction": "What is bread?", "input": "", "output": "No.", "system": "Be brief.",
        "history": [["Hello.", "Hello to you."]],
    }  # fmt: skip
    alone = shape("alpaca", "drop").columns({**ROW, "system": None}, "No.")
    assert (alone["system"], alone["history"]) == ("", [])


@pytest.mark.parametrize(
    "roles", [("user", "user"), ("user", "tool", "user"), ("assistant", "user"), ("user", "assistant", "tool")]
)
def test_alpaca_refuses_what_it_cannot_hold(roles: tuple[str, ...]) -> None:
    turns = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(SelectionError, match=r"'a'.*--format messages"):
        shape("alpaca").columns({**ROW, "messages": turns}, "No.")


def test_raw_keeps_columns_of_the_corpus_beside_lineage() -> None:
    corpus = pa.schema([*EXAMPLES, ("topic", pa.string()), ("rank", pa.string()), ("target", pa.int64())])
    schema, renamed = columns_of_examples(corpus)
    assert renamed == {"rank": "corpus_rank", "target": "corpus_target"}
    assert schema.names == [*TRAINING_SETS["raw"].names, "topic", "corpus_rank", "corpus_target"]
    assert len(set(schema.names)) == len(schema.names)
    raw = Shape("raw", Thinking.parse("drop"), "", "", renamed)
    found = raw.columns({**ROW, "rank": "high", "target": 7}, "No.")
    assert (found["target"], found["corpus_target"], found["corpus_rank"], found["answer"]) == ("No.", 7, "high", "No.")


def test_a_new_name_is_not_taken_either() -> None:
    corpus = pa.schema([*EXAMPLES, ("rank", pa.string()), ("corpus_rank", pa.string())])
    schema, renamed = columns_of_examples(corpus)
    assert renamed == {"rank": "corpus_rank_"}
    assert len(set(schema.names)) == len(schema.names)


@pytest.mark.parametrize("format", TRAINING_SETS)
def test_every_format_has_lineage(format: str) -> None:
    assert set(LINEAGE.names) <= set(TRAINING_SETS[format].names)
    row = {name: ROW.get(name) for name in EXAMPLES.names}
    own = set(shape(format).columns(row, "No."))
    assert own | set(LINEAGE.names) >= set(TRAINING_SETS[format].names)
