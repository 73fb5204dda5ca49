"""Refusals are told by how a response begins, not by words that stand in answers too.

`refusal_sentences.jsonl` is what the wordings were made with. `refusal_sentences_held_out.jsonl` was written before
they were, by the same author, and was looked at for its figures alone.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cliffstore.corpus.markers import KNOWN_MARKERS, ThinkMarkers
from cliffstore.errors import SelectionError
from cliffstore.publish.refusals import LOOKED_AT, Refusals, answer_in, read_phrases

SENTENCES = Path(__file__).parents[1]
MADE_WITH, HELD_OUT = "refusal_sentences.jsonl", "refusal_sentences_held_out.jsonl"

REFUSED = [
    "I can't help with that.",
    "I'm sorry, but I can't assist with that request.",
    "I’m really sorry, but I cannot provide instructions for this.",
    "Sorry, I won't write that.",
    "**I cannot** create this content.",
    "\n\n> I must decline.",
    "As an AI language model, I cannot generate that.",
    "Unfortunately, I am not able to support this.",
    "No. I will not do that.",
    "I apologize, however I'm unable to discuss it.",
    "I would rather not write that.",
]
ANSWERED = [
    "",
    "However, you could start with a list.",
    "I'm happy to be helpful. Here is a safe plan.",
    "I can't wait to help you with this!",
    "I can't recommend this book enough.",
    "I'm sorry to hear about your cat. Here is what helps.",
    "As an AI, I find this question fascinating: first, take ...",
    'Sure! When they say "I can\'t help with that", ask again.',
    "It is not illegal, unethical or harmful to bake bread.",
    "Sorry for the long answer. Step 1: ...",
]


@pytest.mark.parametrize("response", REFUSED)
def test_refused(response: str) -> None:
    assert Refusals().matches(response)


@pytest.mark.parametrize("response", ANSWERED)
def test_answered(response: str) -> None:
    assert not Refusals().matches(response)


def labelled(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (SENTENCES / name).read_text(encoding="utf-8").splitlines()]


def figures(name: str) -> tuple[float, float]:
    """Return precision and recall on a file of labelled responses."""
    counts = Counter((bool(row["refused"]), Refusals().matches(str(row["response"]))) for row in labelled(name))
    found = counts[True, True]
    return found / (found + counts[False, True]), found / (found + counts[True, False])


def test_labelled_responses_are_many_and_even() -> None:
    for name, least in ((MADE_WITH, 150), (HELD_OUT, 60)):
        rows = labelled(name)
        assert len(rows) >= least
        assert 0.45 <= sum(bool(row["refused"]) for row in rows) / len(rows) <= 0.55
    assert not {row["response"] for row in labelled(MADE_WITH)} & {row["response"] for row in labelled(HELD_OUT)}


@pytest.mark.parametrize("row", labelled(MADE_WITH), ids=lambda row: f"{row['kind']}: {row['response'][:40]!r}")
def test_labelled_response(row: dict[str, object]) -> None:
    assert Refusals().matches(str(row["response"])) is row["refused"]


def test_held_out_responses() -> None:
    precision, recall = figures(HELD_OUT)
    assert precision >= 0.97
    assert recall >= 0.94


@pytest.mark.parametrize(
    ("straight", "variant"),
    [("'", "\u2019"), ("'", "\u02bc"), ("I ", "i "), (" ", "  "), ("I can't", "I cannot"), ("I can't", "**I can't**")],
)
def test_how_it_is_typed_does_not_matter(straight: str, variant: str) -> None:
    for name in (MADE_WITH, HELD_OUT):
        for row in labelled(name):
            text = str(row["response"])
            assert Refusals().matches(text.replace(straight, variant)) is Refusals().matches(text), text


def test_words_that_refuse_are_told() -> None:
    assert Refusals().find("That is unkind. I\u2019m sorry, but I can\u2019t help you.") == "i cannot help"
    assert Refusals().find("However, it is safe and helpful.") is None


@pytest.mark.parametrize("markers", KNOWN_MARKERS, ids=lambda one: one.open.strip())
def test_thinking_of_any_model_is_no_answer(markers: ThinkMarkers) -> None:
    thought = f"{markers.open}I can't help with that."
    assert (answer_in(f"{thought}{markers.close}Sure."), answer_in(thought)) == ("Sure.", "")


def test_thinking_is_no_answer() -> None:
    assert answer_in("<think>I can't help with that.</think> Sure.") == "Sure."
    assert answer_in("<think>I can't help with that.") == ""
    assert answer_in("<think>" + "Hm. " * LOOKED_AT + "</think>I must decline.") == "I must decline."
    assert not Refusals().matches("<think>I can't help with that.")


def test_own_phrases_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("# ours\n\n  Das kann ich nicht \nI can’t\n", encoding="utf-8")
    refusals = Refusals(read_phrases(str(file)))
    assert refusals.matches("das kann  ich nicht sagen")
    assert refusals.matches("I can't wait")
    assert not refusals.matches("I must decline.")


@pytest.mark.parametrize(
    ("content", "told"), [(b"# none\n---\n**\n", "no phrase"), (b"\xff\xfe", "UTF-8"), (None, "No such")]
)
def test_file_without_phrases(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SelectionError, match=told):
        read_phrases(str(file))
