"""What a user notices about reading a corpus: rows, ids, columns, skips, filters and errors."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cliffstore.corpus import sources
from cliffstore.corpus.drafts import LocatedRow
from cliffstore.errors import CorpusError, QueryError
from cliffstore.records import CorpusRow, Message, SkippedRow


@dataclass(frozen=True)
class Corpus:
    """What a corpus holds, in memory."""

    rows: list[LocatedRow]
    skipped: tuple[SkippedRow, ...]
    extra_schema: pa.Schema
    notices: tuple[str, ...]


def read_corpus(inputs: list[str], **options: object) -> Corpus:
    with tempfile.TemporaryDirectory() as folder:
        found = sources.read_corpus(inputs, folder, **options)
        corpus = Corpus(list(found.rows()), tuple(found.skipped()), found.extra_schema, found.notices)
        assert (found.n_rows, found.n_skipped) == (len(corpus.rows), len(corpus.skipped))
        found.close()
        return corpus


def rows_of(corpus: Corpus) -> list[CorpusRow]:
    return [located.row for located in corpus.rows]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: object, name: str = "c.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


Jsonl = Callable[..., str]
TABLE: list[dict[str, object]] = [
    {"id": "a", "prompt": "one", "label": 1, "score": 0.5},
    {"id": "b", "prompt": "two, and\nmore", "label": 0, "score": 2.5},
]


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], delimiter: str) -> None:
    import csv

    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "prompt", "label", "score"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    "name",
    ["c.jsonl", "c.ndjson", "c.json", "d.json", "c.csv", "c.tsv", "c.parquet", "c.jsonl.gz", "c.csv.gz"],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "c.json":
        path.write_text(json.dumps(TABLE))
    elif name == "d.json":
        path.write_text(json.dumps({"data": TABLE}))
    elif name == "c.parquet":
        pq.write_table(pa.Table.from_pylist(TABLE), path)
    elif ".csv" in name or name == "c.tsv":
        plain = path.with_suffix("") if name.endswith(".gz") else path
        write_csv(plain, TABLE, "\t" if name == "c.tsv" else ",")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    if name.endswith(".gz"):
        plain = path.with_suffix("") if "csv" in name else path
        path.write_bytes(gzip.compress(plain.read_bytes()))
    corpus = read_corpus([str(path)])
    stem = name.split(".")[0]
    assert [(r.id, r.prompt, r.label, r.source) for r in rows_of(corpus)] == [
        ("a", "one", "1", stem),
        ("b", "two, and\nmore", "0", stem),
    ]
    assert [dict(row.extra) for row in rows_of(corpus)] == [{"score": 0.5}, {"score": 2.5}]
    assert corpus.extra_schema == pa.schema([("score", pa.float64())])
    assert corpus.skipped == ()


def test_datasets_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]).select([2, 0])
    one.save_to_disk(str(tmp_path / "one"))
    assert [row.prompt for row in rows_of(read_corpus([str(tmp_path / "one")]))] == ["c", "a"]
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "two"))
    both = read_corpus([str(tmp_path / "two")])
    assert [row.prompt for row in rows_of(both)] == ["c", "a", "c", "a"]
    assert both.rows[2].location == "two/test:1"
    assert rows_of(both)[0].source == "two"
    assert any("train, test" in notice for notice in both.notices)


def test_folder_glob_and_several_inputs(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl({"prompt": "b"}, name="b.jsonl")
    first = jsonl({"prompt": "a"}, name="a.jsonl")
    (tmp_path / "c.jsonl.zst").write_text("of no known kind")
    (tmp_path / ".hidden").write_text("not a corpus")
    (tmp_path / "more").mkdir()
    (tmp_path / "parts.jsonl").mkdir()
    found = read_corpus([str(tmp_path)])
    assert [row.prompt for row in rows_of(found)] == ["a", "b"]
    assert found.notices == (f"not read of {tmp_path}: c.jsonl.zst, more", f"not read of {tmp_path}: parts.jsonl")
    found = read_corpus([f"{tmp_path}/*.jsonl"])
    assert [row.prompt for row in rows_of(found)] == ["a", "b"]
    assert found.notices == (f"not read of {tmp_path}/*.jsonl: parts.jsonl",)
    assert [r.source for r in rows_of(read_corpus([f"{tmp_path}/b.jsonl", first]))] == ["b", "a"]


def test_any_fsspec_url() -> None:
    with fsspec.open("memory://corpus/m.jsonl.gz", "wb", compression="gzip") as stream:
        stream.write(b'{"prompt": "far"}\n')
    (located,) = read_corpus(["memory://corpus/m.jsonl.gz"], storage_options={}).rows
    assert (located.row.prompt, located.location, located.row.source) == ("far", "m.jsonl.gz:1", "m")


def test_map_renames_and_keeps_the_displaced_column(jsonl: Jsonl) -> None:
    path = jsonl({"instruction": "do", "prompt": "old", "Label": 3, "unit": "kg"})
    corpus = read_corpus([path], mapping={"prompt": "instruction"})
    (row,) = rows_of(corpus)
    assert row.prompt == "do"
    assert row.extra == {"corpus_Label": 3, "corpus_prompt": "old", "corpus_unit": "kg"}
    assert len(corpus.notices) == 3


def test_a_mapped_prompt_wins_over_messages(jsonl: Jsonl) -> None:
    path = jsonl({"q": "mine", "messages": [{"role": "user", "content": "theirs"}]})
    (row,) = rows_of(read_corpus([path], mapping={"prompt": "q"}))
    assert row.turns == (Message("user", "mine"),)
    assert "messages" in row.extra


def test_system_prompt_and_empty_texts(jsonl: Jsonl) -> None:
    path = jsonl({"prompt": "p", "system": "s", "thinking": "", "response": None})
    (row,) = rows_of(read_corpus([path]))
    assert row.turns == (Message("system", "s"), Message("user", "p"))
    assert (row.thinking, row.response) == (None, None)


def test_messages(jsonl: Jsonl) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "2"}]},
        {"role": "assistant", "content": "a2", "reasoning_content": "hm"},
    ]
    corpus = read_corpus([jsonl({"messages": messages})])
    (row,) = rows_of(corpus)
    assert (row.prompt, row.system, row.thinking, row.response) == ("u2", "s", "hm", "a2")
    assert [turn.content for turn in row.turns] == ["s", "u1", "a1", "u2"]
    kept = row.extra["messages"]
    assert isinstance(kept, list)
    assert kept[3] == {"role": "user", "content": "u2"}
    struct = pa.struct([("role", pa.string()), ("content", pa.string())])
    assert corpus.extra_schema == pa.schema([("messages", pa.list_(struct))])


USER = {"role": "user", "content": "u"}


@pytest.mark.parametrize(
    ("row", "reason", "word"),
    [
        ({"prompt": ""}, "empty prompt", "empty"),
        ({"prompt": " \n"}, "empty prompt", "empty"),
        ({"prompt": None}, "empty prompt", "empty"),
        ({}, "empty prompt", "empty"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty prompt", "empty"),
        ({"prompt": "p", "system": 5}, "bad row", "system"),
        ({"prompt": "p", "thinking": ["a"]}, "bad row", "thinking"),
        ({"prompt": "p", "label": {"a": 1}}, "bad row", "label"),
        ({"prompt": "p\ud800"}, "bad row", "Unicode"),
        ({"messages": []}, "bad row", "at least one"),
        ({"messages": "hello"}, "bad row", "messages"),
        ({"messages": [{"role": "user"}]}, "bad row", "content"),
        ({"messages": [USER, {"role": "system", "content": "s"}]}, "bad row", "system"),
        ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{}]}]}, "bad row", "calls a tool"),
        (
            {"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}, USER]},
            "bad row",
            "tool",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "bad row", "nothing"),
        ({"messages": [USER, {"role": "assistant", "content": "a"}], "response": "b"}, "bad row", "disagree"),
    ],
)
def test_one_bad_row_is_skipped_with_its_reason(jsonl: Jsonl, row: object, reason: str, word: str) -> None:
    corpus = read_corpus([jsonl({"prompt": "good"}, row)])
    assert [r.prompt for r in rows_of(corpus)] == ["good"]
    (skipped,) = corpus.skipped
    assert (skipped.reason, skipped.location, skipped.source) == (reason, "c.jsonl:2", "c")
    assert word in skipped.detail
    assert skipped.id is not None


@pytest.mark.parametrize(
    ("label", "text"),
    [(1, "1"), (1.0, "1"), (0.5, "0.5"), (True, "true"), (" x ", "x"), ("", None), (None, None)],
)
def test_labels_become_text(jsonl: Jsonl, label: object, text: str | None) -> None:
    (row,) = rows_of(read_corpus([jsonl({"prompt": "p", "label": label})]))
    assert row.label == text


def test_ids_do_not_depend_on_file_or_order(jsonl: Jsonl, tmp_path: Path) -> None:
    first = jsonl({"prompt": "a"}, {"prompt": "b", "k": 1}, {"prompt": "a"}, {"id": 7, "prompt": "c"})
    ids = [row.id for row in rows_of(read_corpus([first]))]
    assert ids[2] == ids[0] + "-2"
    assert ids[3] == "7"
    assert all(i.startswith("auto-") and len(i.split("-")[1]) == 16 for i in ids[:3])
    pq.write_table(pa.Table.from_pylist([{"prompt": "b", "k": 1}, {"prompt": "a", "k": None}]), tmp_path / "o.parquet")
    assert [row.id for row in rows_of(read_corpus([str(tmp_path / "o.parquet")]))] == [ids[1], ids[0]]
    assert rows_of(read_corpus([first], where="k = 1"))[0].id == ids[1]


def test_duplicate_ids_name_both_places(jsonl: Jsonl) -> None:
    one = jsonl({"id": 1, "prompt": "a"}, name="one.jsonl")
    two = jsonl({"id": "x", "prompt": "a"}, {"id": "1", "prompt": ""}, name="two.jsonl")
    with pytest.raises(CorpusError, match=r"'1' is there twice, at one\.jsonl:1 and two\.jsonl:2"):
        read_corpus([one, two])


def test_extra_columns_keep_their_types(jsonl: Jsonl) -> None:
    corpus = read_corpus(
        [
            jsonl(
                {"prompt": "a", "n": 1, "mixed": 1, "none": None, "tags": ["x"], "e": {}, "big": 2**70},
                {"prompt": "b", "n": 2, "mixed": "1", "deep": {"k": True}, "l": []},
            )
        ]
    )
    types = {field.name: field.type for field in corpus.extra_schema}
    assert types == {
        "big": pa.string(),
        "deep": pa.struct([("k", pa.bool_())]),
        "e": pa.string(),
        "l": pa.list_(pa.string()),
        "mixed": pa.string(),
        "n": pa.int64(),
        "none": pa.string(),
        "tags": pa.list_(pa.string()),
    }
    assert [row.extra["mixed"] for row in rows_of(corpus)] == ["1", '"1"']
    assert sum("JSON text" in notice for notice in corpus.notices) == 3
    pa.Table.from_pylist([dict(row.extra) for row in rows_of(corpus)], schema=corpus.extra_schema)


def test_csv_texts_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("id,q,label,n\n007,123,1,4\n008,456,true,5\n")
    corpus = read_corpus([str(path)], mapping={"prompt": "q"})
    assert [(r.id, r.prompt, r.label) for r in rows_of(corpus)] == [
        ("007", "123", "1"),
        ("008", "456", "true"),
    ]
    assert corpus.extra_schema.field("n").type == pa.int64()
    assert [located.location for located in corpus.rows] == ["n.csv:2", "n.csv:3"]


def test_where_and_limit(jsonl: Jsonl) -> None:
    path = jsonl(*({"q": f"p{i}", "label": i % 2, "n": i} for i in range(10)), {"q": "", "n": 11})
    corpus = read_corpus([path], mapping={"prompt": "q"}, where="n >= 3 AND label = '1' -- odd", limit=2)
    assert [row.prompt for row in rows_of(corpus)] == ["p3", "p5"]
    assert corpus.skipped == ()
    assert corpus.notices == ("--where keeps 4 of 11 rows", "--limit keeps the first 2 of 4 rows")
    assert [r.prompt for r in rows_of(read_corpus([path], mapping={"prompt": "q"}, where="q = 'p4'"))] == ["p4"]
    with pytest.raises(CorpusError, match="keeps none of 11 rows"):
        read_corpus([path], mapping={"prompt": "q"}, where="n > 99")


@pytest.mark.parametrize("where", ["n >", "nothere = 1", "1=1; DROP TABLE corpus", "prompt"])
def test_malformed_where(jsonl: Jsonl, where: str) -> None:
    with pytest.raises(QueryError) as caught:
        read_corpus([jsonl({"prompt": "p", "n": 1})], where=where)
    assert "\n" not in str(caught.value)
    assert "prompt" in str(caught.value)


def test_where_reads_no_files(jsonl: Jsonl) -> None:
    path = jsonl({"prompt": "p"})
    with pytest.raises(QueryError, match="disabled"):
        read_corpus([path], where=f"(SELECT count(*) FROM read_text('{path}')) > 0")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "hello", r"c\.txt: unknown file type; known are \.jsonl"),
        ("c.parquet.gz", "hello", "unknown file type"),
        ("c.jsonl", "", "empty corpus"),
        ("c.csv", "", "empty corpus"),
        ("c.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', r"c\.jsonl:3: invalid JSON"),
        ("c.jsonl", '{"prompt": "a"}\n[1]\n', r"c\.jsonl:2: each row must be a JSON object, this is list"),
        ("c.jsonl", '{"prompt": "a"}\n{"prompt": 5}\n', r"c\.jsonl:2: the prompt must be text, this is int"),
        ("c.jsonl", '{"text": "a", "n": 1}\n', r"there are text, n; choose one with --map prompt=COLUMN"),
        ("c.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "rename the file"),
        ("c.json", "{\n]", r"c\.json:2: invalid JSON"),
        ("c.json", "5", "neither an array"),
        (
            "c.jsonl",
            '{"prompt": ""}\n{"prompt": "a", "system": 1}\n',
            "every row was skipped: 1 empty prompt, 1 bad",
        ),
        ("c.csv", "prompt,prompt\na,b\n", "more than once"),
        ("c.csv", "prompt,b\na\n", "cannot read"),
        ("c.parquet", "hello", "cannot read"),
        ("c.jsonl.gz", "hello", "cannot read"),
    ],
)
def test_errors_are_one_line_that_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus([str(path)])
    assert "\n" not in str(caught.value)


def test_missing_inputs_and_columns(jsonl: Jsonl, tmp_path: Path) -> None:
    path = jsonl({"prompt": "a", "b": 1})
    with pytest.raises(CorpusError, match=r"no such file: /no/where\.jsonl"):
        read_corpus(["/no/where.jsonl"])
    with pytest.raises(CorpusError, match="empty text"):
        read_corpus([""])
    with pytest.raises(CorpusError, match="nothing matches"):
        read_corpus([f"{tmp_path}/*.parquet"])
    with pytest.raises(CorpusError, match="cannot read nope://x"):
        read_corpus(["nope://x/a.jsonl"])
    with pytest.raises(CorpusError, match="--map label=c: no such column; there are b, prompt"):
        read_corpus([path], mapping={"label": "c"})
    with pytest.raises(CorpusError, match="known names are id, prompt"):
        read_corpus([path], mapping={"promt": "b"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no corpus file in the folder"):
        read_corpus([str(tmp_path / "empty")])
    with pytest.raises(CorpusError, match="limit"):
        read_corpus([path], limit=0)


def test_non_ascii_line_separators_do_not_split_a_line(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\r\n', encoding="utf-8-sig")
    assert rows_of(read_corpus([str(path)]))[0].prompt == "a\u2028b"
