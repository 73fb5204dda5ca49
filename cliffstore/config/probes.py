"""Settings of `cliffstore probe fit` and `cliffstore score`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cliffstore.config.stores import StoreConfig
from cliffstore.config.values import BYTES_SCHEMA, CHOSEN_SCHEMA, Chosen, one_is_enough, parse_bytes


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
    c: Annotated[float | None, Chosen, CHOSEN_SCHEMA] = Field(
        default=None, ge=1e-9, description="auto: by cross-validation"
    )
    shrinkage: Annotated[float | None, Chosen, CHOSEN_SCHEMA] = Field(
        default=None, ge=0, le=1, description="of an LDA; auto: by cross-validation"
    )
    class_weight: Literal["balanced", "none"] = "balanced"
    seed: int = Field(default=0, ge=0)
    executor: Literal["auto", "local", "ray"] = "auto"
    workers: int | None = Field(default=None, ge=1, description="layers that are fitted at once")
    memory_budget: Annotated[int | None, BeforeValidator(parse_bytes), BYTES_SCHEMA] = Field(
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

    probe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
        min_length=1, description="names of probes; all means every probe of the store"
    )
    model: str | None = Field(
        default=None, description="model alias to score, where it is not the probe's own: as PROBE.ALIAS"
    )
    executor: Literal["auto", "local", "ray"] = "auto"
    actors: int | None = Field(default=None, ge=1)
