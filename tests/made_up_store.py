"""A store of as many units as one likes, all extracted, made by cliffstore's own writers from nothing; no vectors."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cliffstore.schema import (
    EXAMPLES,
    SKIPPED,
    TOKENS,
    UNITS,
    ArrayIdentity,
    CaptureDocument,
    Chunking,
    Manifest,
    ModelIdentity,
    PassSettings,
    PlanCounts,
    PlanDocument,
    Receipt,
    TokenizerIdentity,
)
from cliffstore.store import layout, receipts, tables, writer
from cliffstore.store.objects import ObjectStore

UNIT_ROWS, EXAMPLES_PER_UNIT, PLAN, CAPTURE = 1_024, 4, "plan-made-up", "capture-made-up"


def make_store(objects: ObjectStore, n_units: int, n_layers: int, files: int = 4) -> None:
    """Write a store; `files` is how many objects hold its examples, and as many its tokens."""
    writer.create_manifest(objects, _manifest())
    per_file = -(-n_units // files)
    for part in range(files):
        units = range(part * per_file, min((part + 1) * per_file, n_units))
        for name, table in (("examples", _examples(units)), ("tokens", _tokens(units))):
            tables.write(objects, f"{layout.PLANS}/{PLAN}/{name}/part-{part:06d}.parquet", table, {"plan": PLAN})
    digests = {
        name: tables.write(objects, key, table, {"plan": PLAN})
        for name, key, table in (
            ("units", layout.units_table(PLAN), _units(n_units)),
            ("skipped", layout.skipped_table(PLAN), SKIPPED.empty_table()),
        )
    }
    n_examples, n_rows = n_units * EXAMPLES_PER_UNIT, n_units * UNIT_ROWS
    counts = PlanCounts(examples=n_examples, tokens=n_rows, rows=n_rows, units=n_units, skipped=0)
    plan = PlanDocument(
        plan=PLAN, digest="0", counts=counts, settings={}, sources=["made up"], tables=digests, cliffstore_version="0"
    )
    writer.commit_plan(objects, plan)
    capture = _capture(n_layers)
    objects.create(layout.capture_document(capture.alias, capture.capture), capture.to_bytes())
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda unit: receipts.commit(objects, made_up_receipt(capture, unit)), range(n_units)))


def _manifest() -> Manifest:
    tokenizer = TokenizerIdentity(
        name="made-up", digest="0", template_digest="0", think_open="", think_close="", template_date=""
    )
    chunking = Chunking(chunk_rows=256, unit_rows=UNIT_ROWS)
    return Manifest(cliffstore_version="0", created="2026-01-01T00:00:00Z", tokenizer=tokenizer, chunking=chunking)


def _capture(n_layers: int) -> CaptureDocument:
    model = ModelIdentity(
        name="made-up", revision=None, config_digest="0", weights_digest=None, model_type="llama", n_layers=n_layers,
        d_model=8, n_heads=1, d_head=8,
    )  # fmt: skip
    arrays = [ArrayIdentity(site="resid_post", layer=layer, shape=[8]) for layer in range(n_layers)]
    passes = PassSettings(kind="tree", tokens=256, products="native")
    return CaptureDocument(
        capture=CAPTURE, alias="main", model=model, arrays=arrays, dtype="float32", passes=passes,
        cliffstore_version="0",
    )  # fmt: skip


def made_up_receipt(capture: CaptureDocument, unit: int) -> Receipt:
    names = (f"{one.site}/{one.layer}" for one in capture.arrays)
    digests = {name: hashlib.sha256(f"{unit} {name}".encode()).hexdigest() for name in names}
    return Receipt(
        capture=CAPTURE, plan=PLAN, unit=unit, row_start=unit * UNIT_ROWS, n_rows=UNIT_ROWS,
        n_examples=EXAMPLES_PER_UNIT, n_tokens=UNIT_ROWS, digests=digests, bytes=UNIT_ROWS * 32 * len(capture.arrays),
        attempt=1, worker="host:1", seconds=1.5, cliffstore_version="0",
    )  # fmt: skip


def _units(n_units: int) -> pa.Table:
    rows = [
        {
            **{field.name: 0 if pa.types.is_integer(field.type) else "" for field in UNITS},
            "unit": unit, "plan": PLAN, "row_start": unit * UNIT_ROWS, "n_rows": UNIT_ROWS,
            "n_examples": EXAMPLES_PER_UNIT, "n_tokens": UNIT_ROWS,
        }
        for unit in range(n_units)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=UNITS)


def _examples(units: range) -> pa.Table:
    numbers = range(units.start * EXAMPLES_PER_UNIT, units.stop * EXAMPLES_PER_UNIT)
    rows = [
        {
            "example": number, "id": f"e{number}", "unit": number // EXAMPLES_PER_UNIT, "n_tokens": 2, "decision": 1,
            "prompt": f"Prompt {number}", "label": str(number % 2), "source": "made up", "digest": "0",
        }
        for number in numbers
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def _tokens(units: range) -> pa.Table:
    rows = [
        {
            "example": unit * EXAMPLES_PER_UNIT + number, "position": position, "token_id": position,
            "token": str(position), "segment": "user", "to_decision": position - 1,
            "row": unit * UNIT_ROWS + 2 * number + position,
        }
        for unit in units
        for number in range(EXAMPLES_PER_UNIT)
        for position in range(2)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=TOKENS)
