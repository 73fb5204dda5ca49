"""Tables that fit their digests and still contradict each other: what a forger, or a faulty writer, would leave."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import ok, write_jsonl
from whole_store import Case, findings_of

from cliffstore.schema import PlanDocument
from cliffstore.store import documents, layout
from cliffstore.store.checks.findings import Action
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

Change = Callable[[pa.Table], pa.Table]


def set_first(column: str, value: object) -> Change:
    """Return a change of a column's first value: to a value, or by a number."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[0] = values[0] + value if isinstance(value, int) else value
        index = table.schema.get_field_index(column)
        return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))

    return change


def drop_last(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows - 1)


def take_row_twice(tokens: pa.Table) -> pa.Table:
    """Let the last row of the unit stand for the row before it, too."""
    highest = pc.max(tokens["row"]).as_py()
    rows = [highest - 1 if row == highest else row for row in tokens["row"].to_pylist()]
    index = tokens.schema.get_field_index("row")
    return tokens.set_column(index, tokens.schema.field(index), pa.array(rows, pa.int64()))


def forge(objects: ObjectStore, path: str, change: Change) -> None:
    """Change the first row group of a table of the plan, and give its new digest to a plan with a new seal."""
    plan = StoreReader(objects.url).plans()[0]
    key = layout.in_plan(plan.plan, path)
    file = pq.ParquetFile(pa.BufferReader(objects.get(key)))
    groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    groups[0] = change(groups[0])
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, file.schema_arrow) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(group.num_rows, 1))
    objects.put(key, sink.getvalue())
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    documents.put(objects, plan.model_copy(update={"tables": {**plan.tables, path: digest}}))


EXAMPLES, TOKENS = "examples/part-000000.parquet", "tokens/part-000000.parquet"


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        (EXAMPLES, set_first("prompt", "another prompt"), "another digest of"),
        (EXAMPLES, set_first("topic", 1), "another digest of"),
        (EXAMPLES, set_first("digest", "0" * 64), "another digest of"),
        (EXAMPLES, set_first("decision", 1), "another decision position"),
        (EXAMPLES, set_first("unit", 1), "other examples than those of unit 0"),
        (EXAMPLES, drop_last, "other examples or tokens of unit 0"),
        (TOKENS, set_first("token_id", 1), "another digest of"),
        (TOKENS, set_first("segment", "think"), "another digest of"),
        (TOKENS, set_first("to_decision", 1), "another decision position"),
        (TOKENS, set_first("position", 1), "tokens of"),
        (TOKENS, take_row_twice, "leaves out rows of unit 0"),
        (TOKENS, drop_last, "other examples or tokens of unit 0"),
        ("units.parquet", set_first("row_start", 256), "over those of another"),
        ("units.parquet", set_first("n_rows", 1), "counts other than its table of units"),
        ("units.parquet", set_first("n_tokens", -1), "counts other than its table of units"),
        ("units.parquet", set_first("unit", 1), "over those of another"),
        ("units.parquet", drop_last, "reserves other units than"),
    ],
    ids=lambda one: one.replace(" ", "-") if isinstance(one, str) else "",
)
def test_forged_tables_contradict_each_other(whole: Case, tmp_path: Path, path: str, change: Change, said: str) -> None:
    objects = whole.copy(tmp_path)
    forge(objects, path, change)
    found = findings_of(objects)
    assert any(said in one.problem for one in found), found
    assert not {one.action for one in found} - {Action.NONE, Action.RESTORE}, "nothing is condemned for it"


def test_plan_without_a_digest_of_its_table(whole: Case, tmp_path: Path) -> None:
    objects = whole.copy(tmp_path)
    plan = StoreReader(objects.url).plans()[0]
    kept = {path: digest for path, digest in plan.tables.items() if path != TOKENS}
    documents.put(objects, plan.model_copy(update={"tables": kept}))
    found = {one.key: one.problem for one in findings_of(objects)}
    assert "is no table of" in found[layout.in_plan(plan.plan, TOKENS)]


def test_document_in_other_bytes(whole: Case, tmp_path: Path) -> None:
    """Equal content, and a seal that fits: readers take it, verify still says that somebody wrote it."""
    objects = whole.copy(tmp_path)
    key = layout.plan_document(StoreReader(objects.url).plans()[0].plan)
    objects.put(key, objects.get(key) + b"\n")
    assert documents.read(objects, PlanDocument, key)
    (finding,) = findings_of(objects)
    assert (finding.key, finding.target) == (key, layout.copy_of(key))
    assert "is not written as cliffstore writes it" in finding.problem


def test_columns_of_many_types_are_no_damage(whole: Case, tmp_path: Path) -> None:
    """Digests are made of a corpus's own values, tables hold them as Arrow does."""
    values: list[object] = [1, 2.5, None]
    rows = [
        {
            "id": f"m{number}", "prompt": f"prompt {number}", "mixed": values[number % 3], "flag": number % 2 == 0,
            "nested": {"a": [number, None], "b": "x"}, "odd": "text" if number % 2 else number, "when": "2026-01-01",
            "count": 10**15 + number, "ratio": float(np.float32(0.1)) if number else None,
        }
        for number in range(9)
    ]  # fmt: skip
    store = tmp_path / "store"
    ok("extract", write_jsonl(tmp_path / "many.jsonl", rows), "--model", whole.model, "--store", store, "--layers", "0")
    assert findings_of(ObjectStore(str(store))) == ()
