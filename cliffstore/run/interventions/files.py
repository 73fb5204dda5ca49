"""Files of interventions: `--intervene FILE`, YAML or JSON.

    steps:
      - kind: scale_heads          # factor 0 ... 2
        heads: [[12, 3], [14, 0]]  # [layer, head] or [layer, head, factor], or the text "12:3,14:0"
        factor: 0
        positions: template
        keep_norm: true
      - kind: scale_heads          # or those that hold the score down most, by `cliffstore heads trace` or `ablate`
        table: traced              # of the store, or STORE/heads/NAME
        top: 32
      - kind: scale_channels       # one factor a channel
        file: scales.safetensors   # an array for each head, called L12H3
      - kind: ablate
        direction: refusal         # a probe of the store, STORE/probes/NAME, or a .safetensors, .npz or .npy file
        sites: [resid_pre, attn_out, mlp_out]
        layers: all
      - kind: steer
        direction: refusal.safetensors
        site: resid_pre
        layers: 12
        factor: 4
        unit: true                 # the vector is brought to length 1 first

Steps act in this order where they meet. `positions` (default: all) are those of `plan/choices.py`, `keep_norm`
(default: false) brings each token back to its former norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cliffstore.plan.choices import parse_choice
from cliffstore.records import ATTN_OUT, MLP_OUT, RESID_PRE
from cliffstore.run.heads.results import parse_heads
from cliffstore.settings import Settings, read_config

ScaleFactor = Annotated[float, Field(ge=0, le=2)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _StepConfig(Settings):
    positions: str = "all"
    keep_norm: bool = False

    @field_validator("positions")
    @classmethod
    def _positions_are_known(cls, value: str) -> str:
        return parse_choice(value)


def _pairs(value: object) -> object:
    return [list(head) for head in parse_heads(value)] if isinstance(value, str) else value


class ScaleHeadsConfig(_StepConfig):
    """Scales whole heads."""

    kind: Literal["scale_heads"]
    heads: Annotated[tuple[tuple[int, int] | tuple[int, int, ScaleFactor], ...], BeforeValidator(_pairs)] = Field(
        default=(), description="[layer, head] or [layer, head, factor], or text such as 12:3,14:0"
    )
    table: str | None = Field(
        default=None, description="figures of heads in the store, or STORE/heads/NAME, in the place of a list"
    )
    top: int | None = Field(
        default=None, ge=1, description="how many of the table, those that hold the score down most"
    )
    factor: ScaleFactor = Field(default=0.0, description="of heads that have none of their own")

    @model_validator(mode="after")
    def _heads_are_chosen_once(self) -> ScaleHeadsConfig:
        if bool(self.heads) == (self.table is not None):
            raise ValueError("list heads, or name a table of heads with top: one of the two")
        if (self.table is None) != (self.top is None):
            raise ValueError("table and top go together: which figures of heads, and how many of them")
        return self


class ScaleChannelsConfig(_StepConfig):
    """Scales the channels of heads."""

    kind: Literal["scale_channels"]
    file: str = Field(description="safetensors or npz: for each head an array of one factor a channel, such as L12H3")


class AblateConfig(_StepConfig):
    """Takes a direction out."""

    kind: Literal["ablate"]
    direction: str = Field(description="probe of the store, STORE/probes/NAME, or a file")
    sites: tuple[str, ...] = Field(default=(RESID_PRE, ATTN_OUT, MLP_OUT), min_length=1)
    layers: str = "all"


class SteerConfig(_StepConfig):
    """Adds a vector."""

    kind: Literal["steer"]
    direction: str = Field(description="probe of the store, STORE/probes/NAME, or a file")
    site: str = RESID_PRE
    layers: str
    factor: Finite = 1.0
    unit: bool = Field(default=False, description="bring the vector to length 1 before factor")


StepConfig = ScaleHeadsConfig | ScaleChannelsConfig | AblateConfig | SteerConfig


def _with_underscores(step: object) -> object:
    return {str(key).replace("-", "_"): value for key, value in step.items()} if isinstance(step, Mapping) else step


class InterventionConfig(Settings):
    """A file of interventions."""

    steps: tuple[
        Annotated[Annotated[StepConfig, Field(discriminator="kind")], BeforeValidator(_with_underscores)], ...
    ] = Field(min_length=1)

    @classmethod
    def way_out(cls, option: str) -> str:
        return f"a file of interventions needs `{option}`"


def read_interventions(path: str) -> InterventionConfig:
    """Read a file of interventions. Errors as for `read_config`."""
    return read_config(InterventionConfig, path, {})
