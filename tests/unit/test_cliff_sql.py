"""The arithmetic of cliffs, on planted scores of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliffstore.analyze.cliff import CLIFF_SQL
from cliffstore.schema import CLIFFS

Token = tuple[int, int, str, float]
"""position, to_decision, segment, score"""


def _tokens(
    user: Sequence[float], think: Sequence[float], close: Sequence[float], response: Sequence[float]
) -> list[Token]:
    """Lay an example out as the template does; without thinking the decision is the last header token."""
    parts = [("user", user), ("header", [0.125]), ("think", think), ("think_close", close), ("response", response)]
    flat = [(segment, score) for segment, scores in parts for score in scores]
    decision = len(flat) - len(response) - 1
    return [(position, position - decision, segment, score) for position, (segment, score) in enumerate(flat)]


def _cliffs(examples: dict[int, list[Token]], probe: str = "refusal", *, reverse: bool = False) -> dict[int, dict]:
    rows = [("refusal", example, *token) for example, tokens in examples.items() for token in tokens]
    rows += [("other", example, *token[:3], -99.0) for example, tokens in examples.items() for token in tokens]
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE scores "
            "(probe VARCHAR, example BIGINT, position INT, to_decision INT, segment VARCHAR, score FLOAT)"
        )
        connection.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)", rows[::-1] if reverse else rows)
        table = connection.sql(CLIFF_SQL, params={"probe": probe}).to_arrow_table()
    assert table.column_names == CLIFFS.names
    assert table["example"].to_pylist() == sorted(table["example"].to_pylist())
    return {row["example"]: row for row in table.cast(CLIFFS).to_pylist()}


RAGGED = {
    4: _tokens([0.0, 1.0], [2.0, 4.0, 3.0], [2.5, -1.0], [-3.0, 9.0]),
    7: _tokens([0.5], [6.0], [5.0, 4.0, -2.0], []),
    2: _tokens([1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0], [8.5], [0.0]),
}


@pytest.mark.parametrize("reverse", [False, True])
def test_planted_scores_give_their_cliffs(reverse: bool) -> None:
    found = _cliffs(RAGGED, reverse=reverse)
    keys = ("plateau", "final", "cliff", "n_think", "steepest_position")
    assert {example: tuple(row[key] for key in keys) for example, row in found.items()} == {
        # two user tokens and a header token stand before the thinking: it begins at position 3
        4: (3.0, -1.0, 4.0, 3, 7),
        7: (6.0, -2.0, 8.0, 1, 5),
        2: (2.0, 8.5, -6.5, 8, 10),
    }


def test_plateau_is_not_that_of_padded_curves() -> None:
    """Trap 2: curves of unequal length, padded with zeros and averaged, deflate the plateau."""
    found = _cliffs(RAGGED)
    curves = [[score for _, _, segment, score in tokens if segment == "think"] for tokens in RAGGED.values()]
    longest = max(map(len, curves))
    padded = [float(np.mean([*curve, *[0.0] * (longest - len(curve))])) for curve in curves]
    plateaus = [found[example]["plateau"] for example in RAGGED]
    assert plateaus == [float(np.mean(curve)) for curve in curves]
    assert plateaus[:2] != pytest.approx(padded[:2])
    assert np.mean(plateaus) > np.mean(padded)


def test_example_without_thinking_has_no_cliff_and_stays() -> None:
    found = _cliffs({1: _tokens([1.0, 2.0], [], [], [5.0]), **RAGGED})
    assert set(found) == {1, 2, 4, 7}
    row = found[1]
    assert row["final"] == 0.125
    assert row["plateau"] is None
    assert row["cliff"] is None
    assert row["steepest_position"] is None
    assert row["n_think"] == 0


def test_scores_of_the_response_do_not_matter() -> None:
    with_response = _cliffs({0: _tokens([1.0], [3.0, 3.0], [1.0], [-50.0, 50.0, -50.0])})
    without = _cliffs({0: _tokens([1.0], [3.0, 3.0], [1.0], [])})
    assert with_response == without


def test_drop_into_the_thinking_is_not_the_steepest() -> None:
    """A fall from the prompt to the first thinking token is no part of the cliff."""
    found = _cliffs({0: _tokens([40.0], [-5.0, 3.0, 2.0], [1.5], [])})
    assert found[0]["steepest_position"] == 4


def test_first_of_equal_falls_is_the_steepest() -> None:
    found = _cliffs({0: _tokens([0.0], [8.0, 6.0, 4.0], [2.0, 0.0], [])})
    assert found[0]["steepest_position"] == 3


def test_only_scores_of_the_probe_count() -> None:
    assert _cliffs(RAGGED, probe="third") == {}


SCORES = st.integers(-64, 64).map(lambda eighth: eighth / 8)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(SCORES, min_size=1, max_size=3),
            st.lists(SCORES, min_size=1, max_size=8),
            st.lists(SCORES, min_size=1, max_size=4),
            st.lists(SCORES, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_cliff_is_plateau_minus_final_for_any_lengths(parts: list[tuple[list[float], ...]]) -> None:
    found = _cliffs({number: _tokens(*part) for number, part in enumerate(parts)})
    assert len(found) == len(parts)
    for number, (user, think, close, _) in enumerate(parts):
        row = found[number]
        assert row["plateau"] == pytest.approx(np.mean(think))
        assert row["final"] == close[-1]
        assert row["cliff"] == pytest.approx(np.mean(think) - close[-1])
        assert row["n_think"] == len(think)
        first = len(user) + 1
        curve = [*think, *close]
        falls = [before - after for before, after in pairwise(curve)]
        assert row["steepest_position"] == first + 1 + int(np.argmax(falls))


def test_equal_scores_give_equal_bits_in_whatever_order_they_are_read() -> None:
    """These sums depend on their order in the last bits: the training set would with them."""
    numbers = np.random.default_rng(3)
    scores = (numbers.normal(size=300) * 10.0 ** numbers.integers(-12, 12, size=300)).astype(np.float32)
    examples = {1: _tokens([0.0], scores.tolist(), [0.5], [])}
    assert float(np.sum(scores, dtype=np.float64)) != sum(float(score) for score in scores[::-1])
    assert _cliffs(examples) == _cliffs(examples, reverse=True)
