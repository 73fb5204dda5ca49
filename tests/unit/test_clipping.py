"""Where a thinking is cut, and the intervals of means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.analyze.clipping import check_keep, cut, mean_interval, parse_keep, token_ends, tokens_kept
from cliffstore.errors import ConfigError

PIECES = st.lists(st.text(st.sampled_from("ab .\n猫é"), min_size=1, max_size=5), min_size=1, max_size=30)


@given(PIECES, st.booleans())
def test_cuts_are_growing_prefixes_that_end_with_tokens(pieces: list[str], stripped: bool) -> None:
    """`stripped`: some tokenizers show a token without its space."""
    thinking = "".join(pieces)
    ends = token_ends(thinking, [piece.strip() for piece in pieces] if stripped else pieces)
    assert ends is not None
    assert len(ends) == len(pieces)
    previous = ""
    for step in range(11):
        found = cut(thinking, ends, step / 10)
        assert found.by_tokens
        assert thinking.startswith(found.text)
        assert found.text.startswith(previous)
        previous = found.text
        if step < 10:
            kept = "".join(pieces[: tokens_kept(len(pieces), step / 10)])
            assert found.text.rstrip() == kept.rstrip()
    assert cut(thinking, ends, 0).text == ""
    assert cut(thinking, ends, 1).text == thinking


def test_a_share_counts_tokens_not_characters_or_words() -> None:
    pieces = ["I", " am", " extra", "ord", "inar", "ily", " sure", ".", " Yes", "."]
    thinking = "".join(pieces)
    ends = token_ends(thinking, pieces)
    assert [cut(thinking, ends, share).text for share in (0.2, 0.4, 0.8)] == [
        "I am",
        "I am extraord",
        "I am extraordinarily sure.",
    ]


def test_marks_at_the_edges_do_not_count() -> None:
    """The first token may begin in the open mark, and the last characters may be in a token of the close mark."""
    thinking = "\nSo be it."
    ends = token_ends(thinking, ["\n\nSo", " be", " it"])
    assert ends == [3, 6, 9]
    assert cut(thinking, ends, 1).text == thinking
    assert cut(thinking, ends, 2 / 3).text == "\nSo be"


def test_a_character_over_several_tokens_is_not_cut_apart() -> None:
    thinking = "A 🦊 runs 🦊🦊 off"
    pieces = ["A", " \ufffd", "\ufffd", "\ufffd", " runs", " \ufffd", "\ufffd", "\ufffd", "\ufffd", " off"]
    ends = token_ends(thinking, pieces)
    assert ends is not None
    assert [thinking[:end] for end in ends] == [
        "A", "A", "A", "A 🦊", "A 🦊 runs", "A 🦊 runs", "A 🦊 runs", "A 🦊 runs", "A 🦊 runs 🦊🦊", thinking,
    ]  # fmt: skip


def test_a_replacement_character_of_the_text_itself_is_a_character() -> None:
    assert token_ends("a \ufffd b", ["a", " \ufffd", " b"]) == [1, 3, 5]


def test_other_tokens_leave_words_to_count() -> None:
    assert token_ends("one two", ["one", " three"]) is None
    assert token_ends("one", ["one", " two"]) is None
    found = cut("one two three  four", None, 0.5)
    assert (found.text, found.by_tokens) == ("one two", False)
    assert cut(" one two ", None, 1).text == " one two "
    assert cut("one two", None, 0).text == ""


def test_percentages_are_checked() -> None:
    assert parse_keep("100, 50%,12.5,0") == (100.0, 50.0, 12.5, 0.0)
    for wrong in ("", "all", "50,,20"):
        with pytest.raises(ConfigError, match="give percentages such as"):
            parse_keep(wrong)
    for wrong in ("120", "-1", "nan"):
        with pytest.raises(ConfigError, match="no percentage from 0 to 100"):
            parse_keep(wrong)
    with pytest.raises(ConfigError, match="twice"):
        parse_keep("50,50.0")
    with pytest.raises(ConfigError, match="nothing"):
        check_keep([])


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    mean, low, high = mean_interval(values)
    assert mean == values.mean()
    half = 1.96 * values.std() / 20
    assert (low, high) == (pytest.approx(mean - half, abs=0.03), pytest.approx(mean + half, abs=0.03))
    assert mean_interval(values) == (mean, low, high)
    assert mean_interval(np.array([2.0])) == (2.0, 2.0, 2.0)
