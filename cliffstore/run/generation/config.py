"""The settings of `cliffstore generate`, validated where they enter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cliffstore.config import StorageOptions, TemplateDate
from cliffstore.corpus.markers import ThinkMarkers
from cliffstore.run.row_files import check_output
from cliffstore.settings import Settings

_OF_A_MODEL_HERE = (
    "dtype", "revision", "executor", "actors", "device", "adapter", "gpus_per_actor", "batch_size", "max_tokens",
    "template_date", "intervene",
)  # fmt: skip
_OF_AN_ENDPOINT = ("concurrency", "timeout")


def _one_is_enough(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class GenerateConfig(Settings):
    """Everything that `cliffstore generate` can be told. `corpus`, `model` and `output` are required."""

    corpus: Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)] = Field(
        min_length=1, description="files, folders or URLs"
    )
    output: str = Field(description="file that ends in .jsonl or .parquet; path or URL")
    model: str = Field(description="local folder, hub name, or a .gguf file; the name that an endpoint knows it by")
    map: dict[str, str] = Field(default_factory=dict, description="known column -> column of the corpus")
    where: str | None = Field(default=None, description="SQL condition over corpus columns")
    limit: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1, description="of thinking and response together")
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="0: the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0: all tokens")
    seed: int = Field(default=0, ge=0, description="of sampling; each example has its own from it")
    samples: int = Field(default=1, ge=1, description="texts for each example")
    stop_at_thinking: bool = Field(default=False, description="end where the thinking ends")
    regenerate_thinking: bool = Field(default=False, description="also where a row has thinking")
    intervene: str | None = Field(default=None, description="file of interventions in the model")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    revision: str | None = None
    adapter: str | None = Field(default=None, description="PEFT adapter over the model: local folder or hub name")
    executor: Literal["auto", "local", "ray"] = "auto"
    actors: int | None = Field(default=None, ge=1)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    gpus_per_actor: int = Field(default=1, ge=1, description="GPUs that one copy of the model is spread over")
    batch_size: int = Field(default=16, ge=1, description="examples that are generated at once")
    max_tokens: int | None = Field(default=None, ge=1, description="longer prompts are skipped; default: the context")
    think_open: str | None = None
    think_close: str | None = None
    template_date: TemplateDate = "2024-07-26"
    endpoint: str | None = Field(default=None, description="URL up to /v1 that answers OpenAI's chat completions")
    concurrency: int = Field(default=8, ge=1, description="requests that an endpoint has at once")
    timeout: float = Field(
        default=600.0, gt=0, allow_inf_nan=False, description="seconds for one answer of an endpoint"
    )
    storage_options: StorageOptions = Field(default_factory=dict)

    @classmethod
    def way_out(cls, option: str) -> str:
        return {"corpus": "say CORPUS...", "output": "say -o FILE"}.get(option, f"say --{option}")

    @field_validator("output")
    @classmethod
    def _output_is_a_file(cls, value: str) -> str:
        return check_output(value)

    @property
    def markers(self) -> ThinkMarkers | None:
        """Return the marks around thinking that are said; None where they are to be found."""
        if self.think_open is None or self.think_close is None:
            return None
        return ThinkMarkers(self.think_open, self.think_close)

    @model_validator(mode="after")
    def _options_that_go_together(self) -> GenerateConfig:
        if self.temperature == 0:
            of_sampling = (("top-p", self.top_p, 1.0), ("top-k", self.top_k, 0), ("seed", self.seed, 0))
            for option, value, default in of_sampling:
                if value != default:
                    raise ValueError(f"{option} is of sampling: say --temperature too, or leave it out")
            if self.samples > 1:
                raise ValueError("samples of the likeliest text are all the same: say --temperature, such as 0.7")
        others = _OF_A_MODEL_HERE if self.endpoint is not None else _OF_AN_ENDPOINT
        for name in others:
            if getattr(self, name) != type(self).model_fields[name].default:
                whose = "a model that runs here" if self.endpoint is not None else "an endpoint"
                raise ValueError(f"{name.replace('_', '-')} is of {whose}: leave it out")
        if self.endpoint is not None and self.stop_at_thinking:
            raise ValueError("stop-at-thinking needs the model's own tokens, which an endpoint does not give")
        if (self.think_open is None) != (self.think_close is None):
            raise ValueError("give think-open and think-close together")
        if self.think_close is not None and not self.think_close.strip():
            raise ValueError("think-close is white space alone: give the text that ends thinking, such as </think>")
        return self
