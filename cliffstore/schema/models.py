"""A model by its digests, how passes ran over it, and the arrays that are captured of it."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from cliffstore.schema.document import Part


class AdapterIdentity(Part):
    name: str
    kind: str = Field(description="PEFT's name of the method, such as LORA")
    digest: str = Field(description="sha256 over the adapter's configuration and weights")


class ModelIdentity(Part):
    name: str
    revision: str | None
    config_digest: str
    weights_digest: str | None = Field(description="sha256 over a sample of each tensor; null for hub revisions")
    model_type: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    adapter: AdapterIdentity | None = None


def model_key(model: ModelIdentity, dtype: str) -> tuple[str | None, ...]:
    """Return what makes two models the same one."""
    adapter = model.adapter.digest if model.adapter else None
    return (model.config_digest, model.weights_digest, model.revision, adapter, dtype)


class PassSettings(Part):
    """How forward passes are made; part of what makes a resumed run equal an undisturbed one."""

    kind: Literal["tree", "padded"] = Field(
        description="tree: every node of the prefix tree once; padded: one line an example, padded on the right"
    )
    tokens: int = Field(description="nodes or padded tokens of one forward pass")
    products: Literal["native", "float32"] = Field(
        description="how matrix products of bfloat16 are computed: by the device, or in float32 and rounded"
    )


class ArrayIdentity(Part):
    site: str
    layer: int
    shape: list[int] = Field(description="shape of one row")
