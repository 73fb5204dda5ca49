"""The settings of `cliffstore judge`, validated where they enter."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from cliffstore.config import StorageOptions
from cliffstore.run.row_files import check_output
from cliffstore.settings import Settings

JUDGES = ("rules", "endpoint", "column:NAME")


def _one_is_enough(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)]


class JudgeConfig(Settings):
    """Everything that `cliffstore judge` can be told. Only `corpus` is required."""

    corpus: Several = Field(min_length=1, description="files, folders or URLs with responses, or one store")
    output: str | None = Field(default=None, description="file that ends in .jsonl or .parquet; path or URL")
    judge: Several = Field(
        default=(), description=f"{', '.join(JUDGES)}; default: the endpoint if one is said, or rules"
    )
    map: dict[str, str] = Field(default_factory=dict, description="known column -> column of the corpus")
    where: str | None = Field(default=None, description="SQL condition over columns of the corpus, or of examples")
    limit: int | None = Field(default=None, ge=1)
    label: str = Field(default="label", description="column that tells harmful requests from benign ones")
    harmful_value: str = "1"
    benign_value: str | None = Field(default=None, description="default: every other label")
    group_by: str | None = Field(default=None, description="column whose values have rates of their own")
    suffix: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$", description="of the names of the columns written")
    rules: str | None = Field(default=None, description="file of phrases that refusals begin with")
    endpoint: str | None = Field(default=None, description="URL up to /v1 that answers OpenAI's chat completions")
    model: str | None = Field(default=None, description="model that the endpoint is asked for")
    template: str | None = Field(default=None, description="file of a Jinja template over columns: what it is asked")
    pattern: str | None = Field(default=None, description="regular expression that finds the verdict in its answer")
    verdict: Several = Field(default=(), description="WORD=refused or WORD=answered")
    max_tokens: int = Field(default=256, ge=1, description="of one answer; longer ones are no verdict")
    concurrency: int = Field(default=8, ge=1, description="requests that the endpoint has at once")
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False, description="seconds for one of its answers")
    answers: str | None = Field(default=None, description="file of its answers; default: beside the output")
    storage_options: StorageOptions = Field(default_factory=dict)

    @classmethod
    def way_out(cls, option: str) -> str:
        return "say CORPUS" if option == "corpus" else f"say --{option}"

    @property
    def judges(self) -> tuple[str, ...]:
        """Return the judges that are asked for, each once."""
        chosen = self.judge or (("endpoint",) if self.endpoint is not None else ("rules",))
        return tuple(dict.fromkeys(chosen))

    @model_validator(mode="after")
    def _options_that_go_together(self) -> JudgeConfig:
        for one in self.judges:
            kind, colon, of = one.partition(":")
            if not (one in JUDGES[:2] or (kind == "column" and colon and of)):
                raise ValueError(f"judge {one!r} is not known: choose from {', '.join(JUDGES)}")
        if self.output is not None:
            check_output(self.output)
        if "endpoint" in self.judges:
            if self.endpoint is None:
                raise ValueError("judge endpoint asks a model: say where it is with --endpoint")
            if self.output is None and self.answers is None:
                raise ValueError("an endpoint's answers are kept: say -o, or where with --answers")
        elif self.endpoint is not None:
            raise ValueError("an endpoint is given, and no judge that asks it: say --judge endpoint too")
        else:
            self._refuse("endpoint", "model", "template", "pattern", "verdict", "max_tokens", "concurrency",
                         "timeout", "answers")  # fmt: skip
        if "rules" not in self.judges:
            self._refuse("rules", "rules")
        if (self.pattern is None) != (not self.verdict):
            raise ValueError("pattern and verdict go together: what to find in an answer, and what each word means")
        for pair in self.verdict:
            if not pair.partition("=")[0] or not pair.partition("=")[2]:
                raise ValueError(f"verdict {pair!r}: write WORD=refused or WORD=answered")
        return self

    def _refuse(self, judge: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name.replace('_', '-')} is of judge {judge}: leave it out, or say --judge {judge}")
