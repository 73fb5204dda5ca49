"""The manifest of a store, and its plans: which tokens exist."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from cliffstore.schema.document import FORMAT_VERSION, Document, Part


class Chunking(Part):
    chunk_rows: int = Field(description="rows of one inner chunk")
    unit_rows: int = Field(description="rows of one unit, hence of one shard object")


class TokenizerIdentity(Part):
    name: str
    digest: str
    template_digest: str = Field(description="sha256 over chat template, thinking markers and template date")
    think_open: str
    think_close: str
    template_date: str


class Manifest(Document):
    """`manifest.json`: what every plan and capture of a store shares. Create-only, never changed."""

    kind: Literal["cliffstore"] = "cliffstore"
    format_version: int = FORMAT_VERSION
    cliffstore_version: str
    created: str = Field(description="ISO 8601, UTC")
    tokenizer: TokenizerIdentity
    chunking: Chunking


class PlanCounts(Part):
    examples: int
    tokens: int
    rows: int
    units: int
    skipped: int


class CorpusRecipe(Part):
    """What a plan's corpus was read from, so that it can be read again and compared by digest."""

    inputs: list[str] = Field(description="files, folders or URLs, as they were given")
    map: dict[str, str] = Field(description="known column -> column of the corpus")
    where: str | None
    limit: int | None


class PlanPlace(Document):
    """`plans/order/<n>.json`: reserves unit numbers and ordinals for a plan, before its tables are written."""

    number: int
    plan: str
    first_unit: int
    n_units: int
    first_example: int
    n_examples: int
    base: list[str] = Field(description="plans whose examples this one leaves out")


class PlanDocument(Document):
    """`plans/<plan>/plan.json`: written last; the plan exists once this does."""

    plan: str
    digest: str = Field(description="sha256 over all examples, their tokens and segments, and the settings")
    counts: PlanCounts
    settings: dict[str, str | int | None]
    sources: list[str] = Field(description="values of the column source")
    corpus: CorpusRecipe
    place: int = Field(description="number of its place among the plans")
    tables: dict[str, str] = Field(description="sha256 of every table of the plan, by its path below the plan's folder")
    cliffstore_version: str
