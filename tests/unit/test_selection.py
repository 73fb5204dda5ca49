"""How many examples `--top` means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import SelectionError
from cliffstore.publish.selection import check_top, count_top


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ("700", (700.0, False)),
        ("1", (1.0, False)),
        (" 20 ", (20.0, False)),
        ("20.0", (20.0, False)),
        ("1.7%", (1.7, True)),
        ("100%", (100.0, True)),
        ("0.01%", (0.01, True)),
    ],
)
def test_good_values(top: str, expected: tuple[float, bool]) -> None:
    assert check_top(top) == expected


@pytest.mark.parametrize(
    "top",
    [
        "",
        "0",
        "0%",
        "0.0%",
        "-1",
        "-5%",
        "1.5",
        ".5%",
        "100.1%",
        "200%",
        "1e3",
        "nan",
        "inf",
        "many",
        "1,7%",
        "5%%",
        "%",
        "5 %",
        "1 000",
        "+3",
        "0x10",
        "1\n2",
    ],
)
def test_bad_values_say_what_to_give(top: str) -> None:
    with pytest.raises(SelectionError, match=r"such as 700, or a share such as 1\.7%"):
        check_top(top)
    with pytest.raises(SelectionError):
        count_top(top, 100)


def test_number_without_bounds_is_a_users_mistake() -> None:
    with pytest.raises(SelectionError):
        check_top("9" * 400)


@pytest.mark.parametrize(
    ("top", "candidates", "expected"),
    [
        ("700", 40_000, 700),
        ("700", 30, 30),
        ("1.7%", 40_000, 680),
        ("1.7%", 1_000, 17),
        ("1.7%", 10, 1),
        ("100%", 7, 7),
        ("50%", 8, 4),
        ("1", 1, 1),
    ],
)
def test_count(top: str, candidates: int, expected: int) -> None:
    assert count_top(top, candidates) == expected


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_number_is_itself_up_to_all(number: int, candidates: int) -> None:
    assert count_top(str(number), candidates) == min(number, candidates)


@given(st.integers(1, 1_000), st.integers(1, 10**6))
def test_share_is_within_half_an_example(permille: int, candidates: int) -> None:
    count = count_top(f"{permille / 10}%", candidates)
    assert 1 <= count <= candidates
    assert abs(count - candidates * permille / 1_000) <= 0.5 + 1e-6 or count == 1
