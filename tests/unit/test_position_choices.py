"""Words for positions that interventions act at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import ConfigError
from cliffstore.plan.choices import chosen, parse_choice
from cliffstore.records import SEGMENTS, Segment

S = Segment
THINKING = [S.HEADER, S.SYSTEM, S.HEADER, S.USER, S.USER, S.HEADER, S.THINK_OPEN, S.THINK, S.THINK, S.THINK_CLOSE,
            S.THINK_CLOSE, S.RESPONSE, S.RESPONSE, S.END]  # fmt: skip
PLAIN = [S.HEADER, S.USER, S.RESPONSE, S.END, S.USER, S.HEADER]  # a conversation without an answer yet
WHERE = {
    "all": (range(14), range(6)),
    "decision": ([10], [5]),
    "think": ([7, 8], []),
    "header": ([0, 2, 5], [0, 5]),
    "template": ([0, 2, 5, 6, 9, 10, 13], [0, 3, 5]),
    "generated": (range(7, 14), []),
    "last:3": ([8, 9, 10], [3, 4, 5]),
    "stride:5": ([0, 5, 10], [0, 5]),
    "-2..1": ([8, 9, 10, 11], [3, 4, 5]),
    "-1": ([9], [4]),
    "think_close,-3,user": ([3, 4, 7, 9, 10], [1, 2, 4]),
}


@pytest.mark.parametrize("text", WHERE)
def test_words_mean_these_positions(text: str) -> None:
    for segments, decision, expected in ((THINKING, 10, WHERE[text][0]), (PLAIN, 5, WHERE[text][1])):
        codes = np.array([SEGMENTS.index(one) for one in segments], dtype=np.uint8)
        assert np.flatnonzero(chosen(parse_choice(text), codes, decision)).tolist() == list(expected)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("think, decision", "decision,think"),
        ("all,think", "all"),
        ("-1", "-1..-1"),
        ("+0..2", "0..2"),
        ("last:08,last:8", "last:8"),
    ],
)
def test_equal_choices_have_one_text(text: str, canonical: str) -> None:
    assert parse_choice(text) == canonical
    assert parse_choice(canonical) == canonical


@pytest.mark.parametrize("text", ["", "somewhere", "3..1", "last:0", "last:", "think;decision", "-1..", "alls"])
def test_other_words_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_choice(text)
    assert "\n" not in str(caught.value)


@given(st.lists(st.sampled_from([one for one in WHERE if one != "all"]), min_size=1, max_size=4), st.integers(0, 13))
def test_a_union_is_a_union(words: list[str], decision: int) -> None:
    codes = np.array([SEGMENTS.index(one) for one in THINKING], dtype=np.uint8)
    found = chosen(parse_choice(",".join(words)), codes, decision)
    parts = [chosen(parse_choice(word), codes, decision) for word in words]
    assert np.array_equal(found, np.logical_or.reduce(parts))
