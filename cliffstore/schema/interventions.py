"""What was changed while a model ran, with its vectors."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from cliffstore.schema.document import Document, Part


class HeadFactors(Part):
    layer: int
    head: int
    factors: list[float] = Field(description="one for the whole head, or one for each of its channels")


class HeadScaling(Part):
    """Multiplies what heads give to the output projection."""

    kind: Literal["scale_heads"] = "scale_heads"
    heads: list[HeadFactors]
    positions: str = Field(default="all", description="where in an example it acts")
    keep_norm: bool = Field(default=False, description="whether each token's heads of a layer keep their joint norm")


class DirectionAblation(Part):
    """Takes a direction out of vectors: h - (h·d)d, where d has length 1."""

    kind: Literal["ablate"] = "ablate"
    vector: str = Field(description="float32, little endian, base64; any length but zero")
    sites: list[str]
    layers: list[int]
    positions: str = "all"
    keep_norm: bool = Field(default=False, description="whether each vector keeps its norm")
    origin: str | None = Field(default=None, description="where the vector is from; says nothing of what is computed")


class Steering(Part):
    """Adds a vector: h + factor·v."""

    kind: Literal["steer"] = "steer"
    vector: str = Field(description="float32, little endian, base64")
    sites: list[str]
    layers: list[int]
    factor: float = 1.0
    positions: str = "all"
    keep_norm: bool = Field(default=False, description="whether each vector keeps its norm")
    origin: str | None = Field(default=None, description="where the vector is from; says nothing of what is computed")


Step = Annotated[HeadScaling | DirectionAblation | Steering, Field(discriminator="kind")]


class Interventions(Part):
    """What is changed while a model runs; steps that meet at one place act in their order."""

    digest: str = Field(description="sha256 over the steps without their origins")
    steps: list[Step]

    @classmethod
    def of(cls, steps: Sequence[HeadScaling | DirectionAblation | Steering]) -> Self:
        """Return steps with their digest."""
        content = [step.model_dump(mode="json", exclude={"origin"}) for step in steps]
        return cls(digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), steps=list(steps))

    @property
    def choices(self) -> tuple[str, ...]:
        """The positions that steps act at, each once, sorted; `all` needs no mask and is left out."""
        return tuple(sorted({step.positions for step in self.steps} - {"all"}))


def vector_text(vector_D: npt.NDArray[np.float32]) -> str:
    """Return a vector as it stands in a document."""
    return base64.b64encode(np.ascontiguousarray(vector_D, dtype="<f4").tobytes()).decode("ascii")


def vector_of(text: str) -> npt.NDArray[np.float32]:
    """Return float32 [D], the vector of a document."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)


class ChangedDocument(Document):
    """Base of documents about what a model computed, changed or not; without changes their bytes do not speak of it."""

    interventions: Interventions | None = Field(default=None, description="what was changed while the model ran")

    @model_serializer(mode="wrap")
    def _only_changes(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        body: dict[str, object] = serialize(self)
        if body.get("interventions") is None:
            body.pop("interventions", None)
        return body

    @property
    def changes(self) -> str | None:
        """The digest of the interventions, None without any."""
        return self.interventions.digest if self.interventions is not None else None
