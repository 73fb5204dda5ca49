"""Messages that docs/troubleshooting.md quotes are messages; figures of docs/costs.md are those of its formulas."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
COSTS = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
GAP = "\0"
"""Stands for what differs in a message."""
QUOTED = [" ".join(found.split()) for found in re.findall(r"\*\*`([^`]+)`\*\*", TROUBLES)]


@lru_cache
def messages() -> tuple[str, ...]:
    """Return every text in the code, with gaps where values are put in."""
    found = []
    for path in sorted((ROOT / "cliffstore").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.append(" ".join("".join(map(str, parts)).split()))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(" ".join(node.value.split()))
    return tuple(found)


def is_message(quoted: str) -> bool:
    """Return whether some text has the parts of a quotation in their order, with a gap wherever it has a `…`."""
    parts = [re.escape(part.strip()) for part in quoted.split("…")]
    pattern = re.compile(rf"[^{GAP}]*?{GAP}.*?".join(parts)) if len(parts) > 1 else re.compile(parts[0])
    return any(pattern.search(text) for text in messages())


@pytest.mark.parametrize("quoted", QUOTED)
def test_message_is_one(quoted: str) -> None:
    assert is_message(quoted)


def test_others_are_none() -> None:
    assert len(QUOTED) >= 30
    assert not is_message("this is no message of cliffstore")
    assert not is_message("holds another corpus … give credentials")


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column is headed so."""
    table = COSTS.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def number(text: str) -> float:
    return float(text.replace(",", ""))


PARAMETERS = {
    "SmolLM2-135M": 0.135e9,
    "Qwen3-0.6B": 0.6e9,
    "R1-Distill-Llama-8B": 8.0e9,
    "Qwen3-14B": 14.8e9,
    "Qwen3-32B": 32.8e9,
    "Llama-3.3-70B": 70.6e9,
}
WIDTH_OF_Z = {
    "SmolLM2-135M": 9 * 64,
    "Qwen3-0.6B": 16 * 128,
    "R1-Distill-Llama-8B": 32 * 128,
    "Qwen3-14B": 40 * 128,
    "Qwen3-32B": 64 * 128,
    "Llama-3.3-70B": 64 * 128,
}


@pytest.fixture(scope="module")
def formulas() -> dict:
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", COSTS, re.DOTALL)[0], names)
    return names


def test_sizes_and_times_are_those_of_the_formulas(formulas: dict) -> None:
    table = rows_of("model")
    assert {row[0] for row in table} == set(PARAMETERS)
    for model, shape, *figures in table:
        layers, width = (int(one) for one in shape.split("×"))
        rows = formulas["rows"](32e6)
        stored = formulas["stored_bytes"](rows, layers, width) / 1e9
        expected = [
            formulas["bytes_a_row"](1, width),
            formulas["bytes_a_row"](layers, width),
            formulas["bytes_a_row"](layers, width, 4),
            formulas["bytes_a_row"](layers, WIDTH_OF_Z[model]),
            stored,
            stored / layers,
            formulas["gpu_seconds"](rows, PARAMETERS[model]) / 3600,
        ]
        for figure, value in zip(figures, expected, strict=True):
            digits = len(figure.partition(".")[2])
            assert number(figure) == pytest.approx(value, abs=0.51 * 10**-digits), (model, figure)


def test_a_price_is_the_sum_of_its_parts(formulas: dict) -> None:
    nothing = {"gpu_hour": 0.0, "gb_month": 0.0, "thousand_puts": 0.0}
    one = {"layers": 32, "width": 4096, "parameters": 8e9}
    assert formulas["cost"](32e6, **one, **nothing) == 0
    kept = formulas["cost"](32e6, **one, **{**nothing, "gb_month": 1.0}, months=2)
    assert kept == pytest.approx(2 * formulas["stored_bytes"](formulas["rows"](32e6), 32, 4096) / 1e9)
    hours = formulas["cost"](32e6, **one, **{**nothing, "gpu_hour": 1.0})
    assert hours == pytest.approx(formulas["gpu_seconds"](formulas["rows"](32e6), 8e9) / 3600)


def test_units_of_the_formula_are_those_of_planning(formulas: dict) -> None:
    from cliffstore.plan.units import choose_unit_rows

    n_rows, layers, width = 40_000_000, 32, 4096
    unit_rows = choose_unit_rows(n_rows, 500, layers * width * 2, n_nodes=n_rows)
    assert formulas["objects"](n_rows, layers, width) == pytest.approx(-(-n_rows // unit_rows) * layers, rel=0.07)


def test_ratios_are_those_of_the_bytes(formulas: dict) -> None:
    for dtype, shape, before, stored, ratio in rows_of("dtype"):
        rows, layers = (int(number(one)) for one in shape.split("×"))
        assert number(before) == rows * formulas["bytes_a_row"](layers, 576, 4 if dtype == "float32" else 2)
        assert number(ratio) == pytest.approx(number(before) / number(stored), abs=5e-4)


def test_every_reason_why_a_row_is_left_out_is_told() -> None:
    from cliffstore.columns import COLUMNS
    from cliffstore.corpus.rows import BAD_ROW, EMPTY_PROMPT
    from cliffstore.corpus.template import ALTERED, REFUSED, TOO_LONG
    from cliffstore.plan.sorting import HELD, NO_POSITION

    told = re.findall(r"`([^`]+)`", COLUMNS["skipped"]["reason"])
    assert told == [EMPTY_PROMPT, BAD_ROW, REFUSED, ALTERED, TOO_LONG, NO_POSITION, HELD]
