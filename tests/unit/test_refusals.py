"""Refusals are told by how a response begins, not by words that stand in answers too."""

from __future__ import annotations

from pathlib import Path

import pytest

from cliffstore.errors import SelectionError
from cliffstore.publish.refusals import Refusals, read_phrases

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


def test_own_phrases_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("# ours\n\n  Das kann ich nicht \nI can’t\n", encoding="utf-8")
    refusals = Refusals(read_phrases(str(file)))
    assert refusals.matches("das kann  ich nicht sagen")
    assert refusals.matches("I can't wait")
    assert not refusals.matches("I must decline.")


@pytest.mark.parametrize(("content", "told"), [(b"# none\n", "no phrase"), (b"\xff\xfe", "UTF-8"), (None, "No such")])
def test_file_without_phrases(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SelectionError, match=told):
        read_phrases(str(file))
