"""The words of `probe fit --positions`."""

from __future__ import annotations

import pytest

from cliffstore.analyze.places import Place, parse_places
from cliffstore.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("decision", ["decision"]),
        ("-1", ["-1"]),
        ("-2..0", ["-2", "-1", "decision"]),
        ("-1..+1", ["-1", "decision", "1"]),
        ("think, response", ["think", "response"]),
        ("decision,0,-0", ["decision"]),
        ("think,-1..0,decision", ["think", "-1", "decision"]),
    ],
)
def test_words_name_places_each_once(text: str, names: list[str]) -> None:
    assert [place.name for place in parse_places(text)] == names


def test_a_place_is_a_distance_or_a_segment() -> None:
    assert parse_places("-3,user") == (Place(-3), Place(None, "user"))


@pytest.mark.parametrize("text", ["", "all", "decision,", "0..-1", "1.5", "thinking", "last:3", "-3..", "-9999..0"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="positions"):
        parse_places(text)
