"""Settings and how they are read: a YAML file, options over it, and one line for the user where they are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cliffstore.errors import ConfigError

if TYPE_CHECKING:
    import yaml

_FREE = ("map", "storage_options", "output_options")
"""Settings whose keys are the user's own."""


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys kept out. `layers: 8` in YAML is the text that an option would be."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    @classmethod
    def way_out(cls, option: str) -> str:
        """Return what a user does who has left out an option."""
        return "say STORE" if option == "store" else f"say --{option}"


Kind = TypeVar("Kind", bound=Settings)


def read_config(kind: type[Kind], path: str | None, overrides: Mapping[str, object]) -> Kind:
    """Join a YAML file (optional) with overrides (None means "not given") into a configuration.

    Raises
    ------
    ConfigError
        The file is missing or malformed, or a value is of the wrong kind; the message names the option.
    """
    values = _merged(read_yaml(path) if path is not None else {}, overrides)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind)) from None


def parse_overrides(pairs: list[str]) -> dict[str, object]:
    """Return `--set SECTION.OPTION=VALUE` values as nested settings; a value is read as YAML reads it.

    Raises
    ------
    ConfigError
        One has no `=`, or its value is not YAML.
    """
    import yaml

    found: dict[str, object] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        keys = [key.strip().replace("-", "_") for key in path.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"--set {path!r}: write SECTION.OPTION=VALUE, such as extract.layers=8-20")
        try:
            value: object = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {path}: its value is not YAML") from None
        for key in reversed(keys):
            value = {key: value}
        found = _merged(found, value) if isinstance(value, dict) else found
    return found


def _merged(values: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """Return settings with others over them, section by section."""
    merged = dict(values)
    for name, value in overrides.items():
        held = merged.get(name)
        if isinstance(value, Mapping) and isinstance(held, Mapping) and name != "map":
            merged[name] = _merged(held, value)
        elif value is not None:
            merged[name] = value
    return merged


def _explain(error: ValidationError, kind: type[Settings]) -> str:
    """Return one line for the user. Values of storage options and of unknown keys may be secrets and are not shown."""
    unknown_first = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = unknown_first[0]  # a misspelt option is missing under its right name too
    *sections, last = [str(part).replace("_", "-") for part in first["loc"]] or [""]
    option = ".".join([*sections, last])
    if first["type"] == "missing":
        way_out = f"add it to the section `{sections[-1]}`" if sections else kind.way_out(last)
        return f"{option} is not given: {way_out}"
    if first["type"] == "extra_forbidden":
        return f"option {option} is not known"
    message = str(first["msg"]).removeprefix("Value error, ")
    if not option:
        return message
    given = first.get("input")
    may_show = isinstance(given, str | int | float) and not set(first["loc"]) & {"storage_options", "output_options"}
    return f"option {option}: {message}{f' (got {given!r})' if may_show else ''}"


def read_yaml(path: str) -> dict[str, object]:
    """Return what a YAML file says, by names in Python. Errors as for `read_config`."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {_what_is_wrong(error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration file {path} must hold option: value pairs, found {type(loaded).__name__}")
    return _with_underscores(loaded)


def _what_is_wrong(error: yaml.YAMLError) -> str:
    """Return place and problem; the error's own text quotes the file, which may hold secrets."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{place}{problem or type(error).__name__}"


def _with_underscores(loaded: Mapping[object, object]) -> dict[str, object]:
    """Return settings by their names in Python, in sections too. The option `yes` is what YAML calls true."""
    named = {"yes" if key is True else str(key).replace("-", "_"): value for key, value in loaded.items()}
    return {
        name: _with_underscores(value) if isinstance(value, Mapping) and name not in _FREE else value
        for name, value in named.items()
    }
