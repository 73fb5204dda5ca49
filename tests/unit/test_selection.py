"""What a selection is asked for: numbers, strategies, quotas, near-duplicates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import SelectionError
from cliffstore.publish.criteria import (
    Dedupe,
    Quota,
    SelectionSettings,
    Strategy,
    check_settings,
    check_top,
    count_top,
    parse_dedupe,
    parse_quota,
    parse_strategy,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cliff", Strategy("cliff")),
        ("rules", Strategy("rules")),
        ("column:judge", Strategy("column", "judge")),
        ("sql:plateau - 2 * final", Strategy("sql", "plateau - 2 * final")),
        ("sql:CASE WHEN label = 'a:b' THEN 1 END", Strategy("sql", "CASE WHEN label = 'a:b' THEN 1 END")),
    ],
)
def test_strategy(text: str, expected: Strategy) -> None:
    assert parse_strategy(text) == expected


@pytest.mark.parametrize("text", ["", "dice", "column", "column:", "sql: ", "cliff:", "cliff:x", "Cliff"])
def test_no_strategy(text: str) -> None:
    with pytest.raises(SelectionError, match=r"choose from cliff, final, random, rules, column:NAME, sql:EXPRESSION"):
        parse_strategy(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source=50%", Quota("source", None, 50, True)),
        ("source=100", Quota("source", None, 100, False)),
        ("label:1=500", Quota("label", "1", 500, False)),
        ("label:=5", Quota("label", "", 5, False)),
        ("url:http://a=b=3%", Quota("url", "http://a=b", 3, True)),
        ("label:0=0", Quota("label", "0", 0, False)),
    ],
)
def test_quota(text: str, expected: Quota) -> None:
    assert parse_quota(text) == expected


@pytest.mark.parametrize("text", ["", "source", "=5", ":1=5", "source=", "source=many", "source=1.5", "source=101%"])
def test_no_quota(text: str) -> None:
    with pytest.raises(SelectionError, match=r"write COLUMN=50% or COLUMN=100"):
        parse_quota(text)


@pytest.mark.parametrize(
    ("text", "wanted", "most"),
    [("s=50%", 7, 3), ("s=50%", 1, 1), ("s=0%", 7, 0), ("s=29%", 100, 29), ("s=5", 3, 5), ("s=100%", 7, 7)],
)
def test_quota_in_examples(text: str, wanted: int, most: int) -> None:
    assert parse_quota(text).most(wanted) == most


def test_dedupe() -> None:
    assert parse_dedupe("prompt") == Dedupe("prompt", 0.8)
    assert parse_dedupe("activation") == Dedupe("activation", 0.98)
    assert parse_dedupe("prompt:1") == Dedupe("prompt", 1.0)
    for text in ("", "words", "prompt:", "prompt:0", "prompt:1.1", "prompt:nan", "activation:high"):
        with pytest.raises(SelectionError, match=r"such as prompt:0\.8"):
            parse_dedupe(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strategy": "random", "ascending": True}, "--ascending"),
        ({"strategy": "final", "ascending": True}, "--ascending"),
        ({"phrases": ("no",)}, "--rules"),
        ({"min_plateau": float("nan")}, "--min-plateau"),
        ({"quotas": ("x",)}, "--quota"),
        ({"dedupe": ("prompt", "prompt:0.5")}, "twice"),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        check_settings(SelectionSettings(name="s", top="3", **options))
