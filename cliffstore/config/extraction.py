"""Settings of `cliffstore extract`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cliffstore.config.values import StorageOptions, TemplateDate, check_name, one_is_enough, split_at_commas
from cliffstore.settings import Settings, read_config


class ExtractConfig(Settings):
    """Everything that `cliffstore extract` can be told. Only `model` and `store` are required."""

    corpus: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
        default=(), description="files, folders or URLs; without any, the store's plans"
    )
    append: bool = Field(default=False, description="add the corpus to a store that holds others")
    model: str = Field(description="local folder, hub name, or a .gguf file")
    store: str = Field(description="URL or path of the store")
    map: dict[str, str] = Field(default_factory=dict, description="known column -> column of the corpus")
    where: str | None = Field(default=None, description="SQL condition over corpus columns")
    limit: int | None = Field(default=None, ge=1)
    layers: str = Field(default="all", description="all, 0-29, or 8,16")
    sites: Annotated[tuple[str, ...], BeforeValidator(split_at_commas)] = ("resid_post",)
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
    probe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
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
    template_date: TemplateDate = "2024-07-26"
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


def load_config(path: str | None, overrides: Mapping[str, object]) -> ExtractConfig:
    """Return the configuration of an extraction. Errors as for `read_config`."""
    return read_config(ExtractConfig, path, overrides)
