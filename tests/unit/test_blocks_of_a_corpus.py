"""A corpus is the same whatever blocks it is read, drafted and sorted in."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliffstore.corpus import files, sources
from cliffstore.corpus.files import read_files
from cliffstore.errors import CorpusError
from cliffstore.plan.positions import ALL
from cliffstore.plan.sorting import HELD, SortedExamples, lay_out
from cliffstore.records import CorpusRow, Message, RenderedExample, SkippedRow
from cliffstore.run.parallel import BlockPool

ROWS = [
    {"id": f"r{n}", "prompt": f"prompt {n}", "label": n % 2, "n": n if n % 3 else n + 0.5, "mixed": n if n % 7 else "x",
     "tags": ["a"] * (n % 3)}
    for n in range(50)
]  # fmt: skip


@pytest.fixture(params=[1, 7, 4_096])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (files, sources):
        monkeypatch.setattr(module, "BLOCK_ROWS", request.param)
    monkeypatch.setattr(files, "_READ_BYTES", request.param * 10)
    return int(request.param)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_corpus_does_not_depend_on_its_blocks(block_rows: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"c.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == "json":
        path.write_text(json.dumps(ROWS))
    else:
        rows = [{**row, "mixed": str(row["mixed"]), "tags": str(row["tags"])} for row in ROWS]
        table = pa.Table.from_pylist(rows)
        if suffix == "csv":
            pa.csv.write_csv(table, path)
        else:
            pq.write_table(table, path)
    sizes = [len(block.rows) for block in read_files([str(path)], frozenset())]
    assert sum(sizes) == len(ROWS)
    assert max(sizes) == min(block_rows, len(ROWS))
    corpus = sources.read_corpus([str(path)], tmp_path, where="n < 40", limit=30)
    found = [(one.row.id, one.row.label, one.row.extra["n"], one.location) for one in corpus.rows()]
    first = 2 if suffix == "csv" else 1
    kept = [(place, row) for place, row in enumerate(ROWS, first) if float(str(row["n"])) < 40][:30]
    assert found == [(row["id"], str(row["label"]), row["n"], f"c.{suffix}:{place}") for place, row in kept]
    assert corpus.extra_schema.field("n").type == pa.float64()
    assert corpus.extra_schema.field("mixed").type == pa.string()
    corpus.close()


def test_long_lines_are_put_together(block_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    prompts = ["x" * 100_000, "", "y" * 3]
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    rows = [row for block in read_files([str(path)], frozenset()) for row in block.rows]
    assert [row.values["prompt"] for row in rows] == prompts
    assert [row.location for row in rows] == ["long.jsonl:1", "long.jsonl:2", "long.jsonl:3"]


def test_large_rows_make_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1_000)
    jsonl, parquet = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    rows = [{"prompt": "".join(random.Random(n).choices("abcdefgh", k=300))} for n in range(40)]
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), parquet, compression="none", use_dictionary=False)
    for path in (jsonl, parquet):
        sizes = [len(block.rows) for block in read_files([str(path)], frozenset())]
        assert sum(sizes) == 40
        assert max(sizes) <= 4


def _example(number: int, tokens: list[int]) -> RenderedExample:
    row = CorpusRow(f"id-{number:03d}", f"prompt {number}", (Message("user", f"prompt {number}"),), extra={"n": number})
    ids = np.array(tokens, dtype=np.int32)
    return RenderedExample(row, ids, np.zeros(len(ids), dtype=np.uint8), len(ids) - 1, f"c:{number}")


SEQUENCES = st.lists(st.lists(st.sampled_from([0, 1, 255, 256, 70_000]), min_size=1, max_size=6), max_size=20)


@settings(max_examples=25)
@given(SEQUENCES, st.integers(1, 7), st.randoms(use_true_random=False))
def test_examples_come_back_in_the_order_of_their_tokens(sequences: list, block: int, order: random.Random) -> None:
    import tempfile

    examples = [_example(number, tokens) for number, tokens in enumerate(sequences)]
    order.shuffle(examples)
    with tempfile.TemporaryDirectory() as folder:
        kept = SortedExamples(folder)
        for first in range(0, len(examples), block):
            kept.add(lay_out(examples[first : first + block], ALL))
        kept.sort()
        found = [(member.token_ids.tolist(), member.id) for member in kept.members()]
        tables = [row["id"] for table in kept.tables() for row in table.to_pylist()]
        digests = list(kept.digests())
        kept.close()
    assert found == sorted((tokens, f"id-{number:03d}") for number, tokens in enumerate(sequences))
    assert tables == [id_ for _, id_ in found]
    assert len(digests) == len(set(digests)) == len(sequences)


def test_what_the_store_holds_is_left_out(tmp_path: Path) -> None:
    examples = [_example(number, [1, number]) for number in range(5)]
    kept = SortedExamples(tmp_path)
    kept.add(lay_out([*examples, SkippedRow("s", "c", "c:9", "bad row", "")], ALL))
    kept.sort()
    held = pa.table({"id": ["id-001", "id-003", "elsewhere"], "digest": [*list(kept.digests())[1:4:2], "0"]})
    assert kept.leave_out([held]) == 2
    assert [member.id for member in kept.members()] == ["id-000", "id-002", "id-004"]
    assert kept.reasons() == {HELD: 2, "bad row": 1}
    changed = pa.table({"id": ["id-004"], "digest": ["1"]})
    with pytest.raises(CorpusError, match=r"'id-004' is in the store already, with other content"):
        SortedExamples.leave_out(_again(tmp_path / "again", examples), [changed])
    kept.close()


def _again(folder: Path, examples: list[RenderedExample]) -> SortedExamples:
    folder.mkdir()
    kept = SortedExamples(folder)
    kept.add(lay_out(examples, ALL))
    kept.sort()
    return kept


def _square(block: list[int]) -> list[int]:
    if 13 in block:
        raise CorpusError("thirteen")
    return [number * number for number in block]


def _holds_interrupts(_block: list[int]) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("processes", [1, 2])
def test_pool_keeps_the_order_and_raises_what_is_raised(processes: int) -> None:
    with BlockPool(processes, blocks_here=2) as pool:
        blocks = [[n, n + 100] for n in range(12)]
        assert list(pool.map(_square, blocks)) == [_square(block) for block in blocks]
        with pytest.raises(CorpusError, match="thirteen"):
            list(pool.map(_square, [*blocks, [13]]))
        # Ctrl-C on a terminal reaches processes that are still importing, too: they must not print where they were.
        *_, last = pool.map(_holds_interrupts, blocks)
        assert last is (processes > 1)


def test_pool_takes_no_more_than_it_can_hold() -> None:
    taken = 0

    def blocks():
        nonlocal taken
        for number in range(100):
            taken += 1
            yield [number]

    with BlockPool(2, blocks_here=1) as pool:
        results = pool.map(_square, (block for block in blocks() if block != [13]))
        for number in range(8):
            next(results)
            assert taken <= number + 8
