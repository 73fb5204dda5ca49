"""The option `--positions`: its words, its canonical text, and which positions of an example it means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import ConfigError
from cliffstore.plan.positions import ALL, parse_positions, selected
from cliffstore.records import SEGMENTS, Segment

WORD = st.sampled_from(["all", "decision", "think"]) | st.builds(
    "{}:{}".format, st.sampled_from(["last", "stride"]), st.integers(1, 12)
)
WORDS = st.lists(WORD, min_size=1, max_size=5)
SEGMENT_NAMES = [*["user"] * 3, "header", "think_open", *["think"] * 4, "think_close", *["response"] * 3, "end"]
DECISION = SEGMENT_NAMES.index("think_close")


def _codes(names: list[str]) -> np.ndarray:
    return np.array([SEGMENTS.index(Segment(name)) for name in names], dtype=np.uint8)


def _chosen(text: str, names: list[str] = SEGMENT_NAMES, decision: int = DECISION) -> list[int]:
    mask_T = selected(parse_positions(text), _codes(names), decision)
    assert mask_T.dtype == np.bool_
    assert mask_T.shape == (len(names),)
    return np.flatnonzero(mask_T).tolist()


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("all", list(range(14))),
        ("decision", [9]),
        ("think", [5, 6, 7, 8]),
        ("last:1", [9]),
        ("last:3", [7, 8, 9]),
        ("last:10", list(range(10))),
        ("last:999999999", list(range(10))),
        ("stride:1", list(range(14))),
        ("stride:4", [0, 4, 8, 12]),
        ("stride:14", [0]),
        ("stride:999999999", [0]),
        ("think,decision", [5, 6, 7, 8, 9]),
        ("stride:5,last:2", [0, 5, 8, 9, 10]),
        ("stride:5, stride:7", [0, 5, 7, 10]),
        ("last:2,last:4", [6, 7, 8, 9]),
        ("decision,all", list(range(14))),
    ],
)
def test_words_mean_these_positions(text: str, positions: list[int]) -> None:
    assert _chosen(text) == positions


def test_last_tokens_are_those_before_the_answer_not_of_it() -> None:
    assert {SEGMENT_NAMES[position] for position in _chosen("last:3")} == {"think", "think_close"}


def test_example_without_thinking_has_no_think_position() -> None:
    names = ["user", "header", "response"]
    assert _chosen("think", names, 1) == []
    assert _chosen("think,decision", names, 1) == [1]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("all", "all"),
        ("all,think,last:3", "all"),
        (" think , decision ", "decision,think"),
        ("stride:2,last:10,last:9,think", "think,last:9,last:10,stride:2"),
        ("last:3,last:03,last:3", "last:3"),
    ],
)
def test_text_is_canonical(text: str, canonical: str) -> None:
    assert str(parse_positions(text)) == canonical


@given(WORDS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(words: list[str], random: object) -> None:
    positions = parse_positions(",".join(words))
    mixed = [*words, *words]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert parse_positions(",".join(mixed)) == positions
    assert parse_positions(str(positions)) == positions
    assert (positions == ALL) == ("all" in words)


@given(WORDS, st.lists(st.sampled_from([segment.value for segment in Segment]), min_size=1, max_size=20), st.data())
def test_several_words_are_a_union(words: list[str], names: list[str], data: st.DataObject) -> None:
    decision = data.draw(st.integers(0, len(names) - 1))
    union = {position for word in words for position in _chosen(word, names, decision)}
    assert _chosen(",".join(words), names, decision) == sorted(union)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", ""),
        ("decission", "decission"),
        ("last:0", "last:0"),
        ("last:x", "last:x"),
        ("last:", "last:"),
        ("last: 3", "last: 3"),
        ("stride:-1", "stride:-1"),
        ("stride:1.5", "stride:1.5"),
        ("last", "last"),
        ("all,foo", "foo"),
        ("think,", ""),
        ("decision:3", "decision:3"),
        ("all\nthink", "all\nthink"),
        ("Think", "Think"),
    ],
)
def test_other_words_are_refused(text: str, culprit: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_positions(text)
    message = str(caught.value)
    assert message.startswith(f"--positions {text!r}: {culprit!r} is none of ")
    for word in ("all", "decision", "think", "last:N", "stride:K"):
        assert word in message
    assert "\n" not in message
