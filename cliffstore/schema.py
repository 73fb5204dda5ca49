"""The published contracts: JSON documents (pydantic) and tables (Arrow) of store format 1.

`python -m cliffstore.schema FOLDER` writes them in a readable form to `schemas/`; a test holds the folder to this
module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1

Dtype = Literal["bfloat16", "float16", "float32"]


class Document(BaseModel):
    """Base of every JSON document in a store: frozen, unknown keys kept out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal documents are equal bytes."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


class Chunking(Document):
    chunk_rows: int = Field(description="rows of one inner chunk")
    unit_rows: int = Field(description="rows of one unit, hence of one shard object")


class TokenizerIdentity(Document):
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


class PlanCounts(Document):
    examples: int
    tokens: int
    rows: int
    units: int
    skipped: int


class PlanDocument(Document):
    """`plans/<plan>/plan.json`: written last; the plan exists once this does."""

    plan: str
    digest: str = Field(description="sha256 over all examples, their tokens and segments, and the settings")
    counts: PlanCounts
    settings: dict[str, str | int | None]
    sources: list[str] = Field(description="values of the column source")
    tables: dict[str, str] = Field(description="sha256 of units.parquet and skipped.parquet")
    cliffstore_version: str


class AdapterIdentity(Document):
    name: str
    kind: str = Field(description="PEFT's name of the method, such as LORA")
    digest: str = Field(description="sha256 over the adapter's configuration and weights")


class ModelIdentity(Document):
    name: str
    revision: str | None
    config_digest: str
    weights_digest: str | None = Field(description="sha256 over a sample of each weight file; null for hub revisions")
    model_type: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    adapter: AdapterIdentity | None = None


class PassSettings(Document):
    """How forward passes are made; part of what makes a resumed run equal an undisturbed one."""

    kind: Literal["tree", "padded"] = Field(
        description="tree: every node of the prefix tree once; padded: one line an example, padded on the right"
    )
    tokens: int = Field(description="nodes or padded tokens of one forward pass")
    products: Literal["native", "float32"] = Field(
        description="how matrix products of bfloat16 are computed: by the device, or in float32 and rounded"
    )


class ArrayIdentity(Document):
    site: str
    layer: int
    shape: list[int] = Field(description="shape of one row")


class CaptureDocument(Document):
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
    """`receipts/<capture>/unit-<n>.error.json`: why a unit is not extracted."""

    capture: str
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
    digest: str


class LayerMetrics(Document):
    layer: int
    auroc: float
    accuracy: float
    log_loss: float
    test_auroc: float | None
    test_accuracy: float | None


class ProbeDocument(Document):
    """`probes/<name>/probe.json`, beside `probe.safetensors` with `w` float32 [d_model] and `b` float32 [1]."""

    name: str
    kind: Literal["logistic"]
    alias: str
    capture: str
    model: ModelIdentity
    dtype: Dtype
    site: str
    layer: int
    positions: str
    label: str
    positive: str
    where: str | None
    test_where: str | None
    seed: int
    c: float
    n_train: int
    n_validation: int
    n_test: int
    shuffled_auroc: float = Field(description="mean validation AUROC over fits on shuffled labels; .5 is expected")
    layers: list[LayerMetrics]
    digest: str = Field(description="sha256 of w and b")
    inputs: str = Field(description="sha256 over settings, captures, and rows and labels of all examples used")
    cliffstore_version: str


DOCUMENTS: dict[str, type[Document]] = {
    "manifest": Manifest,
    "plan": PlanDocument,
    "capture": CaptureDocument,
    "receipt": Receipt,
    "unit_error": UnitError,
    "score_receipt": ScoreReceipt,
    "probe": ProbeDocument,
}

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns])


TOKENS = _schema(
    ("example", pa.int64()),
    ("position", pa.int32()),
    ("token_id", pa.int32()),
    ("token", _DICTIONARY),
    ("segment", _DICTIONARY),
    ("to_decision", pa.int32()),
    ("row", pa.int64()),
)

EXAMPLES = _schema(
    ("example", pa.int64()),
    ("id", pa.string()),
    ("unit", pa.int32()),
    ("n_tokens", pa.int32()),
    ("decision", pa.int32()),
    ("prompt", pa.string()),
    ("system", pa.string()),
    ("thinking", pa.string()),
    ("response", pa.string()),
    ("label", pa.string()),
    ("source", pa.string()),
    ("digest", pa.string()),
)
"""Every further column of the corpus follows, under its own name."""

UNITS = _schema(
    ("unit", pa.int32()),
    ("plan", pa.string()),
    ("row_start", pa.int64()),
    ("n_rows", pa.int32()),
    ("n_examples", pa.int32()),
    ("n_tokens", pa.int32()),
    ("examples_digest", pa.string()),
    ("tokens_digest", pa.string()),
)

SKIPPED = _schema(
    ("id", pa.string()),
    ("source", pa.string()),
    ("location", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
)

SCORES = _schema(
    ("example", pa.int64()),
    ("position", pa.int32()),
    ("to_decision", pa.int32()),
    ("segment", _DICTIONARY),
    ("score", pa.float32()),
)

CLIFFS = _schema(
    ("example", pa.int64()),
    ("plateau", pa.float64()),
    ("final", pa.float64()),
    ("cliff", pa.float64()),
    ("n_think", pa.int32()),
    ("steepest_position", pa.int32()),
)

HEADS = _schema(
    ("probe", pa.string()),
    ("layer", pa.int32()),
    ("head", pa.int32()),
    ("contribution", pa.float64()),
)

SELECTIONS = _schema(
    ("rank", pa.int32()),
    ("example", pa.int64()),
    ("id", pa.string()),
    ("strategy", pa.string()),
    ("probe", pa.string()),
    ("value", pa.float64()),
)

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))

TRAINING_SET = _schema(
    ("messages", MESSAGES),
    ("id", pa.string()),
    ("label", pa.string()),
    ("source", pa.string()),
    ("example", pa.int64()),
    ("rank", pa.int32()),
    ("strategy", pa.string()),
    ("value", pa.float64()),
    ("plateau", pa.float64()),
    ("final", pa.float64()),
    ("cliff", pa.float64()),
    ("selection", pa.string()),
    ("probe", pa.string()),
    ("probe_digest", pa.string()),
    ("example_digest", pa.string()),
    ("plan", pa.string()),
    ("capture", pa.string()),
    ("store", pa.string()),
)

TABLES: dict[str, pa.Schema] = {
    "examples": EXAMPLES,
    "tokens": TOKENS,
    "units": UNITS,
    "skipped": SKIPPED,
    "scores": SCORES,
    "cliffs": CLIFFS,
    "heads": HEADS,
    "selections": SELECTIONS,
    "training_set": TRAINING_SET,
}


def published() -> dict[str, str]:
    """Return file name -> text of every published contract."""
    files = {
        f"{name}.schema.json": json.dumps(document.model_json_schema(), indent=2, sort_keys=True) + "\n"
        for name, document in DOCUMENTS.items()
    }
    for name, schema in TABLES.items():
        columns = [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema]
        files[f"{name}.table.json"] = json.dumps({"table": name, "columns": columns}, indent=2) + "\n"
    return files


def main(folder: str) -> None:
    """Write the published contracts to `folder`."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in published().items():
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "schemas")
