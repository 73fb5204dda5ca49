"""The settings of an extraction, of the stages behind it and of a whole pipeline, validated where they enter.

Each comes from a YAML file, from options of the command line, which win, or from both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from cliffstore.errors import ConfigError
from cliffstore.settings import Settings, read_config, read_yaml

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


StorageOptions = dict[str, str | int | bool | None]


def _one_is_enough(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _split_at_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class ExtractConfig(Settings):
    """Everything that `cliffstore extract` can be told. Only `model` and `store` are required."""

    corpus: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        default=(), description="files, folders or URLs; without any, the store's plans"
    )
    append: bool = Field(default=False, description="add the corpus to a store that holds others")
    model: str = Field(description="local folder, hub name, or a .gguf file")
    store: str = Field(description="URL or path of the store")
    map: dict[str, str] = Field(default_factory=dict, description="known column -> column of the corpus")
    where: str | None = Field(default=None, description="SQL condition over corpus columns")
    limit: int | None = Field(default=None, ge=1)
    layers: str = Field(default="all", description="all, 0-29, or 8,16")
    sites: Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)] = ("resid_post",)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    model_alias: str = "main"
    revision: str | None = None
    executor: Literal["auto", "local", "ray"] = "auto"
    actors: int | None = Field(default=None, ge=1)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    adapter: str | None = Field(default=None, description="PEFT adapter over the model: local folder or hub name")
    intervene: str | None = Field(
        default=None, description="YAML or JSON file of interventions: what is changed while the model runs"
    )
    gpus_per_actor: int = Field(default=1, ge=1, description="GPUs that one copy of the model is spread over")
    positions: str = Field(default="all", description="all, decision, think, last:N, stride:K, joined by commas")
    probe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        default=(), description="score with these probes and store no activation"
    )
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
    storage_options: StorageOptions = Field(default_factory=dict)

    @classmethod
    def way_out(cls, option: str) -> str:
        return f"say --{option}"

    @field_validator("model_alias")
    @classmethod
    def _alias_is_a_name(cls, value: str) -> str:
        return check_name(value, "model alias")

    @model_validator(mode="after")
    def _changed_models_have_a_name(self) -> ExtractConfig:
        if self.intervene is not None and self.model_alias == "main":
            raise ValueError("intervene makes another model of this one: say --model-alias, such as ablated, too")
        return self


class StoreConfig(Settings):
    """What every stage behind extraction is told."""

    store: str = Field(description="URL or path of the store")
    storage_options: StorageOptions = Field(default_factory=dict)


def parse_bytes(value: object) -> object:
    """Return bytes of `2GB`, `512 MB` or a number; what is none of these is left to be refused."""
    matched = (
        re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", value.lower()) if isinstance(value, str) else None
    )
    return int(float(matched[1]) * 1000 ** " kmgt".index(matched[2] or " ")) if matched else value


_BYTES = WithJsonSchema({"anyOf": [{"type": ["integer", "string"]}, {"type": "null"}]})


def _none_for_auto(value: object) -> object:
    return None if value == "auto" else value


Chosen = BeforeValidator(_none_for_auto)
_CHOSEN = WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "auto"}, {"type": "null"}]})


class ProbeConfig(StoreConfig):
    """Everything that `cliffstore probe fit` can be told."""

    name: str
    kind: Literal["logistic", "mean_difference", "lda"] = "logistic"
    label: str = Field(default="label", description="column of examples, or SQL expression")
    positive: str | None = None
    site: str = "resid_post"
    layers: str = "all"
    positions: str = Field(default="decision", description="decision, -1, -8..0, a segment, joined by commas")
    model: str | None = Field(default=None, description="model alias, where the store has several")
    where: str | None = None
    test_where: str | None = None
    test_store: str | None = Field(default=None, description="another store of the same model, to test on")
    c: Annotated[float | None, Chosen, _CHOSEN] = Field(default=None, ge=1e-9, description="auto: by cross-validation")
    shrinkage: Annotated[float | None, Chosen, _CHOSEN] = Field(
        default=None, ge=0, le=1, description="of an LDA; auto: by cross-validation"
    )
    class_weight: Literal["balanced", "none"] = "balanced"
    seed: int = Field(default=0, ge=0)
    executor: Literal["auto", "local", "ray"] = "auto"
    workers: int | None = Field(default=None, ge=1, description="layers that are fitted at once")
    memory_budget: Annotated[int | None, BeforeValidator(parse_bytes), _BYTES] = Field(
        default=None, ge=1_000_000, description="of vectors in memory, such as 2GB; default: half of what is free"
    )
    out_of_core: bool = Field(default=False, description="fit over units, whatever the memory budget")
    replace: bool = False

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> ProbeConfig:
        for option, value, kind in (("c", self.c, "logistic"), ("shrinkage", self.shrinkage, "lda")):
            if value is not None and self.kind != kind:
                raise ValueError(f"option {option} is of kind {kind}, and a {self.kind} has none: leave it out")
        return self


class ScoreConfig(StoreConfig):
    """Everything that `cliffstore score` can be told."""

    probe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        min_length=1, description="names of probes; all means every probe of the store"
    )
    model: str | None = Field(
        default=None, description="model alias to score, where it is not the probe's own: as PROBE.ALIAS"
    )
    executor: Literal["auto", "local", "ray"] = "auto"
    actors: int | None = Field(default=None, ge=1)


class SelectConfig(StoreConfig):
    """Everything that `cliffstore select` can be told."""

    name: str
    top: str = Field(description="a number such as 700, or a share such as 1.7%")
    strategy: str = Field(default="cliff", description="cliff, final, random, rules, column:NAME or sql:EXPRESSION")
    ascending: bool = Field(default=False, description="smallest value first")
    seed: int = Field(default=0, ge=0, description="of random and rules")
    rules: str | None = Field(default=None, description="file of phrases that refusals begin with")
    probe: str | None = None
    where: str | None = None
    min_plateau: float | None = Field(default=None, allow_inf_nan=False, description="a logit")
    quota: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        default=(), description="COLUMN=50%, COLUMN=100 or COLUMN:VALUE=500: at most so many"
    )
    dedupe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        default=(), description="prompt:0.8, activation:0.98: no near-duplicates"
    )
    replace: bool = False

    @model_validator(mode="after")
    def _seed_decides_something(self) -> SelectConfig:
        if self.seed and self.strategy not in ("random", "rules"):
            raise ValueError(f"seed is of random and rules: strategy {self.strategy} draws nothing, leave it out")
        return self


class CliffConfig(StoreConfig):
    """Everything that `cliffstore cliff` can be told; with `select`, a selection is made of what was ranked."""

    probe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        min_length=1, description="names of probes; examples are shown by the cliffs of the first"
    )
    plateau: str = Field(default="mean", description="of the scores over the thinking: mean, median, max, q0.9")
    window: str = Field(default="all", description="thinking tokens that it is over: all, last:32, first:50%")
    top: int = Field(default=20, ge=1, description="examples to show")
    select: SelectConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, given: object) -> object:
        if not isinstance(given, Mapping) or given.get("select") is None:
            return given
        probes = _one_is_enough(given.get("probe"))
        probe = probes[0] if isinstance(probes, list | tuple) and len(probes) == 1 else None
        return {**given, "select": _inherit(given, "select", given, probe=probe)}


class CurveConfig(StoreConfig):
    """Everything that `cliffstore curve` can be told."""

    probe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        min_length=1, description="names of probes"
    )
    positions: str = Field(default="-64..0", description="distances from the decision position")
    group_by: str | None = Field(default=None, description="column of examples, or SQL expression")
    where: str | None = None
    resamples: int = Field(default=1_000, ge=0, description="of the bootstrap; 0: no bands")
    level: float = Field(default=0.95, gt=0, lt=1, description="share of the resampled means that the band holds")
    seed: int = Field(default=0, ge=0)
    all_tokens: bool = Field(default=False, description="prompts, and examples without thinking, too")


_KINDS_OF_OPTION = {
    "group_by": ("curve", "cliffs"),
    "where": ("curve", "cliffs"),
    "positions": ("curve", "layers", "tokens"),
    "resamples": ("curve",),
    "level": ("curve",),
    "seed": ("curve",),
    "all_tokens": ("curve",),
    "selection": ("cliffs",),
    "example": ("tokens",),
}


class PlotConfig(StoreConfig):
    """Everything that `cliffstore plot` can be told; which options a kind of plot has is in `_KINDS_OF_OPTION`."""

    kind: Literal["curve", "cliffs", "layers", "tokens"]
    output: str | None = Field(default=None, description="path or URL that ends in .png, .svg or .json")
    probe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        min_length=1, description="names of probes; one for layers and tokens"
    )
    group_by: str | None = None
    where: str | None = None
    positions: str | None = Field(
        default=None, description="curve, tokens: distances from the decision; layers: a position that was tried"
    )
    resamples: int = Field(default=1_000, ge=0)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    all_tokens: bool = False
    selection: str | None = Field(default=None, description="whose examples are marked")
    example: str | None = Field(default=None, description="id, or # and the number of the example")
    theme: Literal["light", "dark"] = "light"
    transparent: bool = Field(default=False, description="no ground")
    title: str | None = None
    width: int | None = Field(default=None, ge=100, le=4_000, description="of the plotting area, in pixels")
    height: int | None = Field(default=None, ge=50, le=4_000)
    scale: float = Field(default=2.0, gt=0, le=8, description="pixels of a PNG for one of these")

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> PlotConfig:
        for option, kinds in _KINDS_OF_OPTION.items():
            if option in self.model_fields_set and getattr(self, option) is not None and self.kind not in kinds:
                name = option.replace("_", "-")
                raise ValueError(f"option {name} is of plot {' and '.join(kinds)}: {self.kind} has none, leave it out")
        if self.kind in ("layers", "tokens") and len(self.probe) > 1:
            raise ValueError(f"plot {self.kind} is of one probe, and {len(self.probe)} are given")
        if self.kind == "tokens" and self.example is None:
            raise ValueError("plot tokens is of one example: say --example and its id")
        return self


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


class ExportConfig(StoreConfig):
    """Everything that `cliffstore export` can be told."""

    selection: str
    output: str = Field(description="folder, or file that ends in .parquet; path or URL")
    output_options: StorageOptions | None = Field(
        default=None, description="storage options of the output; default: the store's where both have one scheme"
    )
    format: Literal["messages", "prompt-completion", "alpaca", "raw"] = "messages"
    thinking: str = Field(default="keep", description="keep, keep:40%, drop or replace:TEXT")
    target_column: str | None = Field(default=None, description="default: response")
    target_text: str | None = None
    target_template: str | None = Field(default=None, description="file of a Jinja template over columns of examples")
    target_endpoint: str | None = Field(
        default=None, description="URL up to /v1 that answers OpenAI's chat completions"
    )
    target_model: str | None = Field(default=None, description="model that the endpoint is asked for")
    target_max_tokens: int = Field(default=1024, ge=1, description="longer answers of the endpoint are not taken")
    target_answers: str | None = Field(default=None, description="file of its answers; default: beside the output")
    mix: Share = Field(default=None, description="share of the training set, such as 30%, that is mixed in")
    mix_where: str | None = Field(default=None, description="SQL condition over examples that may be mixed in")
    mix_target_column: str = Field(default="response", description="what the examples that are mixed in teach")
    validation: Share = Field(default=None, description="share of rows, such as 10%, that validate")
    group_by: str | None = Field(default=None, description="column whose equal values stay in one part, as prompts do")
    seed: int = Field(default=0, ge=0, description="of what is mixed in, its order, and what validates")

    @model_validator(mode="after")
    def _options_that_go_together(self) -> ExportConfig:
        made = self.target_endpoint or self.target_template
        targets = {"target-column": self.target_column, "target-text": self.target_text}
        of_template = "target-template" if self.target_endpoint is None else "target-endpoint"
        given = [option for option, value in {**targets, of_template: made}.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say what to learn: leave one out")
        if self.target_endpoint is None and (self.target_model or self.target_answers):
            raise ValueError("target-model and target-answers are of an endpoint: say --target-endpoint too")
        for name, is_idle, of in (
            ("target_max_tokens", self.target_endpoint is None, "an endpoint's answers: say --target-endpoint"),
            ("mix_target_column", self.mix is None, "what is mixed in: say --mix"),
        ):
            if is_idle and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name.replace('_', '-')} is of {of} too, or leave it out")
        if (self.mix is None) != (self.mix_where is None):
            raise ValueError("mix and mix-where go together: how much, and of which examples, such as \"label = '0'\"")
        if self.group_by is not None and self.validation is None:
            raise ValueError("group-by says what a validation part is split by: say --validation, such as 10%, too")
        if self.validation is not None and self.output.endswith(".parquet"):
            raise ValueError("a validation part is a file of its own: output must be a folder, not a .parquet file")
        return self


class ReportConfig(StoreConfig):
    """Everything that `cliffstore report` can be told."""

    output: str = Field(default="report.html", description="file; path or URL")
    probe: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        default=(), description="names of probes, the first is shown first; default: those with scores"
    )
    group_by: str = Field(default="label", description="column of examples, or SQL expression: a curve for each value")
    positions: str = Field(default="-64..0", description="distances from the decision position, of curves")
    examples: int = Field(default=500, ge=1, description="examples that are shown one by one, at most")
    seed: int = Field(default=0, ge=0, description="of the examples that are shown by chance, and of the bootstrap")


class PipelineConfig(StoreConfig):
    """A run from corpus to training set. Sections take `store` and `storage_options`, and names, from one another."""

    extract: ExtractConfig
    probe: ProbeConfig
    score: ScoreConfig
    cliff: CliffConfig
    select: SelectConfig
    export: ExportConfig

    @classmethod
    def way_out(cls, option: str) -> str:
        return "add it to the configuration" if option == "store" else f"add a section `{option}`"

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        probe, selection = _named(given, "probe"), _named(given, "select")
        given = {"score": None, "cliff": None, **given}  # they have nothing to say but the probe's name
        return {
            **given,
            **{
                section: _inherit(given, section, given, **names)
                for section, names in (
                    ("extract", {}),
                    ("probe", {}),
                    ("score", {"probe": probe}),
                    ("cliff", {"probe": probe}),
                    ("select", {"probe": probe}),
                    ("export", {"selection": selection}),
                )
                if section in given
            },
        }


def _named(given: Mapping[str, object], section: str) -> object:
    found = given.get(section)
    return found.get("name") if isinstance(found, Mapping) else None


def _inherit(given: Mapping[str, object], section: str, shared: Mapping[str, object], **names: object) -> object:
    """Return a section with what it has from outside; an empty one is a mapping too."""
    found = {} if given[section] is None else given[section]
    if not isinstance(found, Mapping):
        return found
    for name in ("store", "storage_options"):
        if name in found:
            raise ValueError(f"{section}.{name}: say it once, outside the section")
    handed = {name: shared[name] for name in ("store", "storage_options") if name in shared}
    return {**{name: value for name, value in names.items() if value is not None}, **found, **handed}


def read_storage_options(path: str | None) -> StorageOptions:
    """Return the storage options that a YAML file of any stage or pipeline has. Errors as for `read_config`."""
    given = read_yaml(path).get("storage_options", {}) if path is not None else {}
    return read_config(StoreConfig, None, {"store": "", "storage_options": given}).storage_options


def load_config(path: str | None, overrides: Mapping[str, object]) -> ExtractConfig:
    """Return the configuration of an extraction. Errors as for `read_config`."""
    return read_config(ExtractConfig, path, overrides)
