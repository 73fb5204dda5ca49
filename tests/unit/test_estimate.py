"""What a run will take, in figures and words, and when it asks before it begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import Plan, make_plan

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError
from cliffstore.extract.calibration import CorpusShape
from cliffstore.extract.passes import first_owners
from cliffstore.extract.tree import UnitExample
from cliffstore.plan.positions import parse_positions
from cliffstore.plan.tables import tokens_table
from cliffstore.plan.units import Unit
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, Segment
from cliffstore.run.estimate import Estimate, confirm, corpus_shape, estimate, format_bytes, format_seconds
from cliffstore.store.arrays import ArraySpec

SPECS = [
    ArraySpec("main", "resid_post", 0, (576,), "bfloat16"),
    ArraySpec("main", "resid_post", 1, (576,), "bfloat16"),
    ArraySpec("main", "z", 0, (9, 64), "bfloat16"),
    ArraySpec("main", "final_norm", 1, (576,), "float32"),
]


def _example(number: int, tokens: list[int], think: int = 0, answer: int = 0) -> RenderedExample:
    """`think` tokens of thinking before the decision position, `answer` tokens behind it."""
    answer = min(answer, len(tokens) - 1)
    decision = len(tokens) - 1 - answer
    names = [Segment.USER] * len(tokens)
    names[max(decision - think, 0) : decision] = [Segment.THINK] * (decision - max(decision - think, 0))
    segments = np.array([SEGMENTS.index(name) for name in names], dtype=np.uint8)
    row = CorpusRow(f"id-{number:03d}", f"prompt {number}", (Message("user", f"prompt {number}"),))
    return RenderedExample(row, np.array(tokens, dtype=np.int32), segments, decision, f"corpus.jsonl:{number}")


def _plan(examples: list[RenderedExample], positions: str = "all", unit_rows: int | None = None) -> Plan:
    return make_plan(
        examples,
        (),
        positions=parse_positions(positions),
        bytes_per_row=1_000,
        identity={"tokenizer": "t", "template": "u"},
        settings={},
        unit_rows=unit_rows,
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 kB"),
        (1_499, "1 kB"),
        (999_499, "999 kB"),
        (1_000_000, "1.0 MB"),
        (1_550_000, "1.6 MB"),
        (100 * 10**9, "100.0 GB"),
        (2_500 * 10**12, "2,500.0 TB"),
    ],
)
def test_bytes_in_words(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1 s"),
        (0.4, "1 s"),
        (1.6, "2 s"),
        (89.4, "89 s"),
        (90.0, "2 min"),
        (5_399.0, "90 min"),
        (5_400.0, "1.5 h"),
        (3_600 * 1_234.5, "1,234.5 h"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_estimate_counts_units_that_are_to_be_done() -> None:
    plan = _plan([_example(n, [n, n + 50, n + 60, 3]) for n in range(40)], unit_rows=20)
    units = plan.units[1:3]
    found = estimate(SPECS, [unit.facts(plan.name, 0, 0) for unit in units], 12.0)
    rows = sum(unit.n_rows for unit in units)
    assert (found.tokens, found.rows) == (sum(unit.n_tokens for unit in units), rows)
    assert found.bytes_by_site == {"resid_post": rows * 2 * 1_152, "z": rows * 1_152, "final_norm": rows * 2_304}
    assert found.bytes == rows * (3 * 1_152 + 2_304)


def test_estimate_in_one_line() -> None:
    found = Estimate(12_345, 6_789, {"resid_post": 3_000_000, "z": 1_500_000_000}, 200.0)
    assert found.describe() == (
        "estimate: 12,345 tokens in 6,789 rows, 1.5 GB of vectors before compression "
        "(resid_post 3.0 MB, z 1.5 GB), about 3 min of computing"
    )
    assert Estimate(2, 1, {}, 1.0).describe() == "estimate: 2 tokens in 1 rows, scores only, about 1 s of computing"


class Asked:
    """A reporter that answers, and keeps what it was asked."""

    def __init__(self, answer: bool | None) -> None:
        self.answer, self.questions = answer, list[str]()

    def ask(self, question: str) -> bool | None:
        self.questions.append(question)
        return self.answer

    def stage(self, text: str) -> None: ...
    def notice(self, text: str, event: str = "notice") -> None: ...
    def begin(self, what: str, total: int, done: int = 0) -> None: ...
    def advance(self, piece: object = None) -> None: ...
    def end(self) -> None: ...


def _config(**options: object) -> ExtractConfig:
    return ExtractConfig.model_validate({"corpus": ("c",), "model": "m", "store": "s", **options})


LITTLE = Estimate(1, 1, {"resid_post": 100 * 10**9}, 12 * 3_600)
BYTES = Estimate(1, 1, {"resid_post": 100 * 10**9, "z": 1}, 0.0)
HOURS = Estimate(1, 1, {}, 12 * 3_600 + 1)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)


@pytest.mark.usefixtures("terminal")
def test_what_is_not_above_a_limit_is_not_asked() -> None:
    reporter = Asked(False)
    confirm(LITTLE, _config(), reporter)
    assert reporter.questions == []


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("much", [BYTES, HOURS])
def test_answer_decides(much: Estimate) -> None:
    yes, no = Asked(True), Asked(False)
    confirm(much, _config(), yes)
    with pytest.raises(ConfigError, match="not begun, nothing was written"):
        confirm(much, _config(), no)
    for reporter in (yes, no):
        (question,) = reporter.questions
        assert "--confirm-gb 100" in question
        assert "--confirm-hours 12" in question


@pytest.mark.usefixtures("terminal")
def test_yes_asks_nobody() -> None:
    reporter = Asked(False)
    confirm(BYTES, _config(yes=True), reporter)
    assert reporter.questions == []


@pytest.mark.parametrize("stdin", ["none", "no terminal", "nobody answers"])
def test_without_an_answer_it_does_not_begin(stdin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Asked(None)
    if stdin == "none":
        monkeypatch.setattr(sys, "stdin", None)
    else:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: stdin == "nobody answers", raising=False)
    with pytest.raises(ConfigError) as caught:
        confirm(HOURS, _config(confirm_hours=1.5), reporter)
    for part in ("12.0 h", "--confirm-hours 1.5", "--confirm-gb 100", "--yes", "nothing was written"):
        assert part in str(caught.value)
    assert len(reporter.questions) == (stdin == "nobody answers")


def _shape(units: Sequence[Unit]) -> CorpusShape:
    """Return the shape of units as it is found from their facts and one table of tokens."""
    by_number = {unit.number: unit for unit in units}
    return corpus_shape(
        [unit.facts("plan", 0, 0) for unit in units],
        lambda one: tokens_table(by_number[one.unit], lambda ids: [str(token) for token in ids]),
    )


PARTS = st.lists(
    st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.integers(0, 6), st.integers(0, 5)),
    min_size=1,
    max_size=25,
)
POSITIONS = st.sampled_from(["all", "decision", "last:3", "stride:4", "decision,think", "last:2,stride:3"])


@given(PARTS, POSITIONS, st.data())
def test_shape_of_a_corpus_is_counted_exactly(parts: list, positions: str, data: st.DataObject) -> None:
    plan = _plan([_example(number, *part) for number, part in enumerate(parts)], positions, unit_rows=12)
    units = [plan.units[number] for number in data.draw(st.sets(st.sampled_from(range(len(plan.units))), min_size=1))]
    n_nodes = n_padded = 0
    for unit in units:
        computed = {one.ordinal: int(np.flatnonzero(one.rows >= 0)[-1]) + 1 for one in unit.examples}
        tokens = {one.ordinal: one.example.token_ids[: computed[one.ordinal]].tolist() for one in unit.examples}
        n_nodes += len({tuple(line[: end + 1]) for line in tokens.values() for end in range(len(line))})
        members = [UnitExample(one.ordinal, one.example.token_ids, one.rows) for one in unit.examples]
        n_padded += sum(computed[owner.example] for owner in first_owners(members))
    found = _shape(units)
    assert (found.n_nodes, found.n_padded) == (n_nodes, n_padded)


@given(PARTS, POSITIONS)
def test_sample_is_the_beginning_of_a_unit(parts: list, positions: str) -> None:
    """Lengths are up to the last stored position, and what an example shares with the one before it."""
    plan = _plan([_example(number, *part) for number, part in enumerate(parts)], positions, unit_rows=12)
    found = _shape(plan.units)
    sample = plan.units[len(plan.units) // 2]
    lines = [one.example.token_ids[: int(np.flatnonzero(one.rows >= 0)[-1]) + 1].tolist() for one in sample.examples]
    assert found.lengths == tuple(len(line) for line in lines)
    for number, (line, shared) in enumerate(zip(lines, found.shared, strict=True)):
        before = lines[number - 1] if number else []
        assert line[:shared] == before[:shared]
        assert shared == min(len(line), len(before)) or line[shared] != before[shared]


def test_sample_of_a_large_unit_is_bounded() -> None:
    examples = [_example(number, [number + 1] * 50_000) for number in range(8)]
    plan = _plan(examples, "decision")
    (unit,) = plan.units
    found = _shape([unit])
    assert 1 <= len(found.lengths) < 8
    assert sum(found.lengths) <= 1 << 17
    assert found.n_nodes == found.n_padded == 8 * 50_000
