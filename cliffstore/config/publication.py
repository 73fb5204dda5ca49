"""Settings of `cliffstore select` and `cliffstore export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cliffstore.config.stores import StoreConfig
from cliffstore.config.values import Share, StorageOptions, one_is_enough


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
    quota: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
        default=(), description="COLUMN=50%, COLUMN=100 or COLUMN:VALUE=500: at most so many"
    )
    dedupe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
        default=(), description="prompt:0.8, activation:0.98: no near-duplicates"
    )
    replace: bool = False

    @model_validator(mode="after")
    def _seed_decides_something(self) -> SelectConfig:
        if self.seed and self.strategy not in ("random", "rules"):
            raise ValueError(f"seed is of random and rules: strategy {self.strategy} draws nothing, leave it out")
        return self


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
