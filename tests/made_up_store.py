"""A store of as many units as one likes, all extracted, made by cliffstore's own writers from nothing; no vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from cliffstore.records import PlannedUnit
from cliffstore.schema import (
    EXAMPLES,
    SKIPPED,
    TOKENS,
    ArrayIdentity,
    CaptureDocument,
    Chunking,
    CorpusRecipe,
    Manifest,
    ModelIdentity,
    PassSettings,
    PlanCounts,
    PlanDocument,
    Receipt,
    TokenizerIdentity,
)
from cliffstore.store import documents, receipts, writer
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanWriter, put_tables

PLAN, CAPTURE = "plan-made-up", "capture-made-up"
UNIT_ROWS, EXAMPLES_PER_UNIT, BYTES_PER_UNIT = 1_024, 4, 1_000
WORDS = ("Tell", "me", "more")
N_ROWS = EXAMPLES_PER_UNIT * len(WORDS)


def make_store(objects: ObjectStore, units: Sequence[int], n_layers: int = 1) -> None:
    """Write a store with one plan of these units, which are all extracted."""
    writer.create_manifest(objects, made_up_manifest())
    with TemporaryDirectory() as folder:
        tables = PlanWriter(Path(folder), PLAN, EXAMPLES, {"plan": PLAN})
        for unit in units:
            part, row_group = tables.place()
            tables.add(_planned(unit, part, row_group), _examples(unit), _tokens(unit))
        digests = tables.finish([SKIPPED.empty_table()])
        put_tables(objects, PLAN, Path(folder), digests)
    n_tokens = len(units) * N_ROWS
    n_examples = len(units) * EXAMPLES_PER_UNIT
    writer.commit_plan(
        objects, made_up_plan(PLAN, n_examples=n_examples, n_tokens=n_tokens, n_units=len(units), tables=digests)
    )
    capture = made_up_capture(CAPTURE, n_layers)
    documents.create(objects, capture)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda unit: receipts.commit(objects, _receipt(capture, unit)), units))


def made_up_plan(name: str, *, n_examples: int, n_tokens: int, n_units: int, tables: dict[str, str]) -> PlanDocument:
    """Return the document of a plan in which every token has a row of its own."""
    return PlanDocument(
        plan=name,
        digest="0",
        counts=PlanCounts(examples=n_examples, tokens=n_tokens, rows=n_tokens, units=n_units, skipped=0),
        settings={},
        sources=["made up"],
        corpus=CorpusRecipe(inputs=[], map={}, where=None, limit=None),
        place=0,
        tables=tables,
        cliffstore_version="0",
    )


def _planned(unit: int, part: int, row_group: int) -> PlannedUnit:
    return PlannedUnit(
        unit=unit,
        plan=PLAN,
        row_start=unit * UNIT_ROWS,
        n_rows=N_ROWS,
        n_examples=EXAMPLES_PER_UNIT,
        n_tokens=N_ROWS,
        n_nodes=N_ROWS,
        n_padded=N_ROWS,
        longest=len(WORDS),
        part=part,
        row_group=row_group,
    )


def made_up_manifest(unit_rows: int = UNIT_ROWS) -> Manifest:
    """Return a manifest without a tokenizer to speak of."""
    tokenizer = TokenizerIdentity(
        name="made-up", digest="0", template_digest="0", think_open="", think_close="", template_date=""
    )
    chunking = Chunking(chunk_rows=256, unit_rows=unit_rows)
    return Manifest(cliffstore_version="0", created="2026-01-01T00:00:00Z", tokenizer=tokenizer, chunking=chunking)


def made_up_capture(
    name: str, n_layers: int, width: int = 8, dtype: str = "float32", alias: str = "main"
) -> CaptureDocument:
    """Return the document of a capture of `resid_post`."""
    model = ModelIdentity(
        name="made-up", revision=None, config_digest="0", weights_digest=None, model_type="llama", n_layers=n_layers,
        d_model=width, n_heads=1, d_head=width,
    )  # fmt: skip
    arrays = [ArrayIdentity(site="resid_post", layer=layer, shape=[width]) for layer in range(n_layers)]
    passes = PassSettings(kind="tree", tokens=256, products="native")
    return CaptureDocument(
        capture=name, alias=alias, model=model, arrays=arrays, dtype=dtype, passes=passes, cliffstore_version="0"
    )


def _receipt(capture: CaptureDocument, unit: int) -> Receipt:
    names = (f"{one.site}/{one.layer}" for one in capture.arrays)
    digests = {name: hashlib.sha256(f"{unit} {name}".encode()).hexdigest() for name in names}
    return Receipt(
        capture=CAPTURE,
        plan=PLAN,
        unit=unit,
        row_start=unit * UNIT_ROWS,
        n_rows=N_ROWS,
        n_examples=EXAMPLES_PER_UNIT,
        n_tokens=N_ROWS,
        digests=digests,
        bytes=BYTES_PER_UNIT,
        attempt=1,
        worker="host:1",
        seconds=1.5,
        cliffstore_version="0",
    )


def _examples(unit: int) -> pa.Table:
    rows = [
        {
            "example": example,
            "id": f"e{example}",
            "unit": unit,
            "n_tokens": len(WORDS),
            "decision": len(WORDS) - 1,
            "prompt": " ".join(WORDS),
            "label": str(example % 2),
            "source": "made up",
            "digest": "0",
        }
        for example in _ordinals(unit)
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def _tokens(unit: int) -> pa.Table:
    rows = [
        {
            "example": example,
            "position": position,
            "token_id": position,
            "token": word,
            "segment": "user",
            "to_decision": position - len(WORDS) + 1,
            "row": unit * UNIT_ROWS + number * len(WORDS) + position,
        }
        for number, example in enumerate(_ordinals(unit))
        for position, word in enumerate(WORDS)
    ]
    return pa.Table.from_pylist(rows, schema=TOKENS)


def _ordinals(unit: int) -> range:
    return range(unit * EXAMPLES_PER_UNIT, (unit + 1) * EXAMPLES_PER_UNIT)
