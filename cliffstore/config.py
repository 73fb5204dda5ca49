"""The settings of an extraction, validated where they enter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

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


class ExtractConfig(BaseModel):
    """Everything that `cliffstore extract` can be told. Only `model` and `store` are required."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: tuple[str, ...] = Field(default=(), description="files, folders or URLs; without any, the store's plans")
    append: bool = Field(default=False, description="add the corpus to a store that holds others")
    model: str = Field(description="local folder, hub name, or a .gguf file")
    store: str = Field(description="URL or path of the store")
    map: dict[str, str] = Field(default_factory=dict, description="known column -> column of the corpus")
    where: str | None = Field(default=None, description="SQL condition over corpus columns")
    limit: int | None = Field(default=None, ge=1)
    layers: str = Field(default="all", description="all, 0-29, or 8,16")
    sites: tuple[str, ...] = Field(default=("resid_post",))
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    model_alias: str = "main"
    revision: str | None = None
    executor: Literal["auto", "local", "ray"] = "auto"
    actors: int | None = Field(default=None, ge=1)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    adapter: str | None = Field(default=None, description="PEFT adapter over the model: local folder or hub name")
    gpus_per_actor: int = Field(default=1, ge=1, description="GPUs that one copy of the model is spread over")
    positions: str = Field(default="all", description="all, decision, think, last:N, stride:K, joined by commas")
    probe: tuple[str, ...] = Field(default=(), description="score with these probes and store no activation")
    passes: Literal["auto", "tree", "padded"] = "auto"
    pass_tokens: int | None = Field(default=None, ge=1, description="tokens of one forward pass")
    unit_rows: int | None = Field(default=None, ge=256, description="rows of a unit; default: about 1 GiB of vectors")
    yes: bool = Field(default=False, description="begin, however large the estimate is")
    confirm_gb: float = Field(default=100.0, ge=0, description="ask above this many GB of vectors")
    confirm_hours: float = Field(default=12.0, ge=0, description="ask above this many hours")
    max_tokens: int | None = Field(default=None, ge=1, description="longer examples are skipped; default: the context")
    think_open: str | None = None
    think_close: str | None = None
    template_date: str = Field(default="2024-07-26", pattern=r"^\d{4}-\d{2}-\d{2}$")
    allow_nonfinite: bool = False
    storage_options: dict[str, str | int | bool | None] = Field(default_factory=dict)

    @field_validator("model_alias")
    @classmethod
    def _alias_is_a_name(cls, value: str) -> str:
        return check_name(value, "model alias")


def load_config(path: str | None, overrides: dict[str, object]) -> ExtractConfig:
    """Join a YAML file (optional) with overrides (None means "not given") into a configuration.

    Raises
    ------
    ConfigError
        The file is missing or malformed, or a value is of the wrong kind; the message names the option.
    """
    values: dict[str, object] = {}
    if path is not None:
        values.update(_read_yaml(path))
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return ExtractConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"]).replace("_", "-") or "configuration"
        if first["type"] == "missing":
            raise ConfigError(
                f"{option} is not given: say {'CORPUS...' if option == 'corpus' else f'--{option}'}"
            ) from None
        given = first.get("input")
        shown = f" (got {given!r})" if isinstance(given, str | int | float) else ""
        raise ConfigError(f"option {option}: {first['msg']}{shown}") from None


def _read_yaml(path: str) -> dict[str, object]:
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration file {path} must hold option: value pairs, found {type(loaded).__name__}")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}
