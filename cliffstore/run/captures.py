"""Captures as a run asks for them: named by what they hold, and held against those that are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from cliffstore import __version__
from cliffstore.config import ExtractConfig
from cliffstore.errors import ModelError, StoreError
from cliffstore.model.identity import ModelSource
from cliffstore.schema import (
    ArrayIdentity,
    CaptureDocument,
    Dtype,
    Interventions,
    ModelIdentity,
    PassSettings,
    model_key,
)
from cliffstore.store.arrays import STORED_DTYPE, ArraySpec
from cliffstore.store.reader import compact_ranges


@dataclass(frozen=True, slots=True)
class CaptureDraft:
    """A capture before its passes are chosen; its name depends on everything else."""

    name: str
    alias: str
    model: ModelIdentity
    arrays: tuple[ArrayIdentity, ...]
    dtype: Dtype
    interventions: Interventions | None = None

    @property
    def specs(self) -> list[ArraySpec]:
        """The arrays that it fills."""
        return [ArraySpec(self.alias, array.site, array.layer, tuple(array.shape), self.dtype) for array in self.arrays]

    @property
    def changes(self) -> str | None:
        """The digest of the interventions, None without any."""
        return self.interventions.digest if self.interventions is not None else None

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row over all arrays."""
        return sum(spec.bytes_per_row for spec in self.specs)

    def document(self, passes: PassSettings) -> CaptureDocument:
        """Return what the store keeps of it."""
        return CaptureDocument(
            capture=self.name,
            alias=self.alias,
            model=self.model,
            arrays=list(self.arrays),
            dtype=self.dtype,
            passes=passes,
            interventions=self.interventions,
            cliffstore_version=__version__,
        )


def draft_capture(
    config: ExtractConfig,
    source: ModelSource,
    arrays: Sequence[ArrayIdentity],
    interventions: Interventions | None = None,
) -> CaptureDraft:
    """Name a capture. Raises `ModelError` where the model's dtype is none that is stored."""
    dtype = choose_dtype(config, source)
    named: dict[str, object] = {
        "alias": config.model_alias,
        "model": model_key(source.identity, dtype),
        "arrays": [array.model_dump() for array in arrays],
    }
    if interventions is not None:
        named["interventions"] = interventions.digest
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    name = f"capture-{digest[:12]}"
    return CaptureDraft(name, config.model_alias, source.identity, tuple(arrays), dtype, interventions)


class Computing(Protocol):
    """The settings that say in which dtype which model computes."""

    @property
    def model(self) -> str: ...

    @property
    def dtype(self) -> str: ...


def choose_dtype(config: Computing, source: ModelSource) -> Dtype:
    """Return the dtype to compute and store in; `auto` is the checkpoint's."""
    dtype = source.dtype if config.dtype == "auto" else config.dtype
    if dtype not in STORED_DTYPE:
        raise ModelError(f"model {config.model} is in {dtype}, which is not stored: choose one with --dtype")
    return cast(Dtype, dtype)


def check_alias(url: str, draft: CaptureDraft, held: Sequence[CaptureDocument]) -> None:
    """Raise `StoreError` where an alias belongs to another model, or to the same one with other changes."""
    for other in (one for one in held if one.alias == draft.alias and one.capture != draft.name):
        if model_key(other.model, other.dtype) != model_key(draft.model, draft.dtype):
            raise StoreError(
                f"store {url}: model alias {draft.alias!r} belongs to another model or dtype ({other.model.name}, "
                f"{other.dtype}): give another --model-alias"
            )
        if other.changes != draft.changes:
            of = "other interventions" if other.interventions else "the model without interventions"
            raise StoreError(f"store {url}: model alias {draft.alias!r} belongs to {of}: give another --model-alias")


def find_held(url: str, draft: CaptureDraft, held: Sequence[CaptureDocument]) -> CaptureDocument | None:
    """Return the capture that is there already, None where it is a new one.

    Raises
    ------
    StoreError
        The alias belongs to another model or other interventions, or another capture has one of the arrays.
    """
    check_alias(url, draft, held)
    for other in (one for one in held if one.alias == draft.alias and one.capture != draft.name):
        taken = {(one.site, one.layer) for one in other.arrays} & {(one.site, one.layer) for one in draft.arrays}
        if taken:
            layers = compact_ranges(sorted({layer for _, layer in taken}))
            raise StoreError(
                f"store {url} has layers {layers} of these sites already (capture {other.capture}): "
                "ask for the other layers with --layers, or for exactly the same ones to go on"
            )
    return next((one for one in held if one.capture == draft.name), None)
