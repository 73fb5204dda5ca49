"""Captures, and the receipts that say that a unit exists."""

from __future__ import annotations

from pydantic import (
    Field,
)

from cliffstore.schema.document import Document, Dtype
from cliffstore.schema.interventions import ChangedDocument
from cliffstore.schema.models import ArrayIdentity, ModelIdentity, PassSettings


class CaptureDocument(ChangedDocument):
    """`captures/<model>/<capture>.json`: which vectors are computed, by which model."""

    capture: str
    alias: str
    model: ModelIdentity
    arrays: list[ArrayIdentity]
    dtype: Dtype
    passes: PassSettings
    cliffstore_version: str


class Receipt(Document):
    """`receipts/<capture>/unit-<n>.json`: its existence commits the unit."""

    capture: str
    plan: str
    unit: int
    row_start: int
    n_rows: int
    n_examples: int
    n_tokens: int
    digests: dict[str, str] = Field(description="sha256 of the rows of each array, by '<site>/<layer>'")
    bytes: int = Field(description="bytes of vectors before compression")
    attempt: int
    worker: str
    seconds: float
    cliffstore_version: str


class UnitError(Document):
    """`receipts/<capture>/unit-<n>.error.json`: why a unit is not extracted, or has no scores."""

    capture: str = Field(description="`scores` where a model ran for scores alone, `scores/<probe>` behind extraction")
    unit: int
    attempt: int
    worker: str
    error: str


class ScoreReceipt(Document):
    """`scores/<probe>/unit-<n>.json`: commits the scores of one unit."""

    probe: str
    probe_digest: str
    unit: int
    n_tokens: int
    digest: str = Field(description="sha256 of the table's bytes")
    attempt: int
    worker: str
    seconds: float
    cliffstore_version: str
