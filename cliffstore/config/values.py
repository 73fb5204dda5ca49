"""Values as users write them: names, ranges, sizes, shares, lists."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from cliffstore.errors import ConfigError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str, what: str) -> str:
    """Return `name` if it can stand in a key of the store, else raise `ConfigError`."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} is not a name: use up to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def check_level(level: float) -> None:
    """Raise `ConfigError` where a level of intervals is none."""
    if not 0 < level < 1:
        raise ConfigError(f"level {level}: say a share between 0 and 1, such as 0.95")


def parse_ranges(text: str) -> list[range]:
    """Return the ranges that `0-29` or `8,16` means. Raises `ConfigError` where it means none."""
    ranges: list[range] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"layers {text!r}: write `all`, a range such as 0-29, or a list such as 8,16")
        ranges.append(range(int(first), int(last if dash else first) + 1))
    if not any(ranges):
        raise ConfigError(f"layers {text!r} names no layer")
    return ranges


StorageOptions = dict[str, str | int | bool | None]


def one_is_enough(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def split_at_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _text_of_date(value: object) -> object:
    """YAML reads an unquoted date as a date."""
    return value.isoformat() if isinstance(value, date) else value


TemplateDate = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), BeforeValidator(_text_of_date)]


def parse_bytes(value: object) -> object:
    """Return bytes of `2GB`, `512 MB` or a number; what is none of these is left to be refused."""
    matched = (
        re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", value.lower()) if isinstance(value, str) else None
    )
    return int(float(matched[1]) * 1000 ** " kmgt".index(matched[2] or " ")) if matched else value


BYTES_SCHEMA = WithJsonSchema({"anyOf": [{"type": ["integer", "string"]}, {"type": "null"}]})


def none_for_auto(value: object) -> object:
    return None if value == "auto" else value


Chosen = BeforeValidator(none_for_auto)


CHOSEN_SCHEMA = WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "auto"}, {"type": "null"}]})


def parse_share(value: object) -> object:
    """Return the fraction that `30%` or `0.3` means; what is none of these is left to be refused."""
    matched = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", value) if isinstance(value, str) else None
    return float(matched[1]) / (100 if matched[2] else 1) if matched else value


Share = Annotated[
    float | None,
    BeforeValidator(parse_share),
    Field(gt=0, lt=1),
    WithJsonSchema({"anyOf": [{"type": ["number", "string"]}, {"type": "null"}]}),
]
