"""The arithmetic of cliffs, on planted scores of unequal length; where SQL says it too, to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from cliff_sql import CLIFF_SQL
from hypothesis import given, settings
from hypothesis import strategies as st

from cliffstore.analyze.falls import falls
from cliffstore.analyze.plateau import PlateauRule
from cliffstore.analyze.token_scores import TokenScores
from cliffstore.errors import ConfigError
from cliffstore.schema import CLIFFS, SCORES

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


def _cliffs(
    examples: dict[int, list[Token]], *, reverse: bool = False, plateau: str = "mean", window: str = "all"
) -> dict[int, dict]:
    """Return the cliffs by example. Those of the usual rule are compared with what SQL says."""
    rows = [(example, *token) for example, tokens in examples.items() for token in tokens]
    rows = rows[::-1] if reverse else rows
    table = falls(TokenScores.of(_table(rows)), PlateauRule.parse(plateau, window))
    assert table.schema == CLIFFS
    assert table["example"].to_pylist() == sorted(table["example"].to_pylist())
    if (plateau, window) == ("mean", "all"):
        assert table.drop_columns(["n_steep"]).to_pylist() == _by_sql(rows)
    return {row["example"]: row for row in table.to_pylist()}


def _table(rows: Sequence[tuple[int, int, int, str, float]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCORES, strict=True)], schema=SCORES
    )


def _by_sql(rows: Sequence[tuple[int, int, int, str, float]]) -> list[dict]:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE scores "
            "(probe VARCHAR, example BIGINT, position INT, to_decision INT, segment VARCHAR, score FLOAT)"
        )
        both = [(probe, *row) for row in rows for probe in ("refusal", "other")]
        connection.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)", both)
        found = connection.sql(CLIFF_SQL, params={"probe": "refusal"}).to_arrow_table()
    return found.cast(pa.schema([field for field in CLIFFS if field.name != "n_steep"])).to_pylist()


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


EIGHTHS = st.integers(-64, 64).map(lambda eighth: eighth / 8)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(EIGHTHS, min_size=1, max_size=3),
            st.lists(EIGHTHS, min_size=1, max_size=8),
            st.lists(EIGHTHS, min_size=1, max_size=4),
            st.lists(EIGHTHS, max_size=3),
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


LONG = {0: _tokens([9.0], [8.0, 1.0, 2.0, 4.0, 3.0], [0.0], []), 1: _tokens([9.0], [2.0], [0.0], [7.0])}


@pytest.mark.parametrize(
    ("plateau", "window", "expected"),
    [
        ("mean", "all", 3.6),
        ("median", "all", 3.0),
        ("max", "all", 8.0),
        ("q0", "all", 1.0),
        ("q0.25", "all", 2.0),
        ("q0.9", "all", 6.4),
        ("q1", "all", 8.0),
        ("mean", "last:2", 3.5),
        ("mean", "last:99", 3.6),
        ("median", "last:3", 3.0),
        ("max", "last:50%", 4.0),  # 2.5 tokens are 3
        ("mean", "first:2", 4.5),
        ("mean", "first:1%", 8.0),
        ("q0.5", "first:40%", 4.5),
        ("mean", "last:100%", 3.6),
    ],
)
def test_plateau_is_a_statistic_over_a_window_of_the_thinking(plateau: str, window: str, expected: float) -> None:
    found = _cliffs({**LONG, 5: _tokens([1.0], [], [], [])}, plateau=plateau, window=window)
    assert found[0]["plateau"] == pytest.approx(expected, rel=1e-15)
    assert found[0]["cliff"] == pytest.approx(expected)
    assert found[0]["n_think"] == 5
    assert found[1]["plateau"] == 2.0  # one token is first, last and all
    assert found[5]["plateau"] is None


@given(
    st.lists(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(0, 1000).map(lambda number: number / 1000),
)
def test_quantiles_are_those_of_numpy(parts: list[list[float]], share: float) -> None:
    examples = {number: _tokens([50.0], think, [0.0], [-50.0]) for number, think in enumerate(parts)}
    found = _cliffs(examples, plateau=f"q{share}")
    for number, think in enumerate(parts):
        assert found[number]["plateau"] == pytest.approx(np.quantile(np.array(think), share), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("plateau", "window"),
    [("mode", "all"), ("q", "all"), ("q1.1", "all"), ("q-1", "all"), ("0.9", "all"), ("mean", "last"), ("mean", "8"),
     ("mean", "last:0"), ("mean", "last:-1"), ("mean", "last:1.5"), ("mean", "first:101%"), ("mean", "middle:3"),
     ("mean", "first:0%"), ("mean", "first:5 %"), ("", "all"), ("mean", "")],
)  # fmt: skip
def test_what_is_no_rule_is_refused(plateau: str, window: str) -> None:
    with pytest.raises(ConfigError):
        PlateauRule.parse(plateau, window)


def test_a_rule_is_written_in_one_way() -> None:
    assert PlateauRule.parse(" Q0.90", "LAST:032") == PlateauRule("q0.9", "last:32")
    assert PlateauRule.parse("max", "first:50.0%") == PlateauRule("max", "first:50%")
    assert str(PlateauRule.parse("q0.9", "last:32")) == "q0.9 over last:32 thinking tokens"


@pytest.mark.parametrize(
    ("think", "close", "length"),
    [
        ([10.0, 10.0], [0.0], 1),  # a step
        ([10.0, 10.0], [7.5, 5.0, 2.5, 0.0], 4),  # even
        ([10.0, 10.0, 10.0], [9.0, 1.0, 0.0], 1),  # the tenths at both ends do not count
        ([10.0, 10.0], [8.5, 1.5, 0.0, 0.0], 3),
        ([10.0, 10.0, 0.0, 20.0], [0.0, 5.0, 0.0], 1),  # from the last that is high to the first that is low
        ([10.0], [10.0], None),  # no cliff
        ([1.0, 1.0], [3.0], None),  # upward
    ],
)
def test_how_many_tokens_the_fall_takes(think: list[float], close: list[float], length: int | None) -> None:
    found = _cliffs({3: _tokens([30.0, -30.0], think, close, [30.0, -30.0]), **RAGGED})
    assert found[3]["n_steep"] == length


def test_length_counts_positions_where_some_are_not_stored() -> None:
    tokens = _tokens([0.0], [10.0, 10.0], [8.0, 5.0, 2.0, 0.0], [])
    assert _cliffs({0: tokens})[0]["n_steep"] == 4
    assert _cliffs({0: [token for token in tokens if token[3] != 2.0]})[0]["n_steep"] == 4
    assert _cliffs({0: [token for token in tokens if token[3] != 8.0]})[0]["n_steep"] == 4


def test_examples_without_a_stored_decision_have_a_plateau_and_no_cliff() -> None:
    tokens = [token for token in _tokens([0.0], [10.0, 6.0], [8.0, 0.0], [1.0]) if token[1] != 0]
    row = _cliffs({0: tokens, **RAGGED})[0]
    assert (row["plateau"], row["final"], row["cliff"], row["n_steep"]) == (8.0, None, None, None)


def test_a_score_that_is_no_number_is_the_steepest_fall_as_in_sql() -> None:
    """Where `--allow-nonfinite` let it in."""
    rows = [(1, *token) for token in _tokens([0.0], [2.0, float("nan"), 1.0], [0.0], [])]
    assert [row["steepest_position"] for row in _by_sql(rows)] == [3]
    assert falls(TokenScores.of(_table(rows)), PlateauRule())["steepest_position"].to_pylist() == [3]


def test_no_scores_give_no_cliffs() -> None:
    assert falls(TokenScores.of(SCORES.empty_table()), PlateauRule()) == CLIFFS.empty_table()
    assert falls(TokenScores.of(SCORES.empty_table()), PlateauRule.parse("q0.5", "last:3")).num_rows == 0
