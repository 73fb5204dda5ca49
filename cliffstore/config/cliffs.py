"""Settings of `cliffstore cliff`, `curve`, `plot` and `report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cliffstore.config.publication import SelectConfig
from cliffstore.config.sections import inherit
from cliffstore.config.stores import StoreConfig
from cliffstore.config.values import one_is_enough


class CliffConfig(StoreConfig):
    """Everything that `cliffstore cliff` can be told; with `select`, a selection is made of what was ranked."""

    probe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
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
        probes = one_is_enough(given.get("probe"))
        probe = probes[0] if isinstance(probes, list | tuple) and len(probes) == 1 else None
        return {**given, "select": inherit(given, "select", given, probe=probe)}


class CurveConfig(StoreConfig):
    """Everything that `cliffstore curve` can be told."""

    probe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
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
    """Everything that `cliffstore plot` can be told; `cliffstore plot KIND --help` has those of a kind."""

    kind: Literal["curve", "cliffs", "layers", "tokens"]
    output: str | None = Field(default=None, description="path or URL that ends in .png, .svg or .json")
    probe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
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


class ReportConfig(StoreConfig):
    """Everything that `cliffstore report` can be told."""

    output: str = Field(default="report.html", description="file; path or URL")
    probe: Annotated[tuple[str, ...], BeforeValidator(one_is_enough)] = Field(
        default=(), description="names of probes, the first is shown first; default: those with scores"
    )
    group_by: str = Field(default="label", description="column of examples, or SQL expression: a curve for each value")
    positions: str = Field(default="-64..0", description="distances from the decision position, of curves")
    examples: int = Field(default=500, ge=1, description="examples that are shown one by one, at most")
    seed: int = Field(default=0, ge=0, description="of the examples that are shown by chance, and of the bootstrap")
