"""`cliffstore sql`: where statements come from, what results look like, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import Result, ok, run_cli, snapshot
from vector_store import VectorStore

from cliffstore.store.objects import ObjectStore

LONG = "SELECT count(*) FROM range(1000000000) a(i), range(1000) b(j) WHERE i * j % 7 = 3"
VALUES = (
    "SELECT example, 'a\"b,\n;é' AS text, resid_post(example, 0) AS h, NULL AS none, 1.5::DECIMAL(4, 2) AS exact, "
    "[1, 2] AS list, {'x': 1} AS record, DATE '2026-01-02' AS day, to_decision = 0 AS flag "
    "FROM tokens JOIN examples USING (example) WHERE to_decision = 0 ORDER BY example"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "store"
    VectorStore(n_units=3, unit_rows=1_024, width=8, tokens=2).make(ObjectStore(str(folder)))
    return folder


def from_stdin(text: str, *arguments: str | Path, wait: float = 120) -> Result:
    command = [sys.executable, "-m", "cliffstore.cli.main", "sql", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, input=text.encode(), capture_output=True, env=environment, timeout=wait)
    return Result(ended.returncode, ended.stdout, ended.stderr.decode())


# --- where statements come from


def test_a_file_of_statements(store: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.sql"
    script.write_text("-- first;\nSELECT ';' AS a;\n\nCREATE TEMP TABLE t AS SELECT 7 AS b;\nSELECT b FROM t", "utf-8")
    lines = [line.strip() for line in ok("sql", store, "-f", script).text.splitlines()]
    assert lines == ["a", ";", "", "b", "7"]
    assert run_cli("sql", store, "SELECT 1", "-f", script).code == 2
    script.write_text("SELECT 1; SELEC 2", "utf-8")
    result = run_cli("sql", store, "-f", script)
    assert (result.code, result.text) == (2, "")  # nothing runs where one cannot be read
    missing = run_cli("sql", store, "-f", tmp_path / "missing.sql")
    assert missing.code == 2
    assert "cannot read" in missing.stderr
    for nothing in ("", ";", "/* only this */"):
        assert "there is no statement" in run_cli("sql", store, nothing).stderr


@pytest.mark.parametrize("options", [(), ("-f", "-")])
def test_standard_input(options: tuple[str, ...], store: Path) -> None:
    result = from_stdin("SELECT 1 AS a;\nSELECT\n 2 AS b", store, *options)
    assert (result.code, result.stderr) == (0, "")
    assert [line.strip() for line in result.text.splitlines()] == ["a", "1", "", "b", "2"]
    result = from_stdin("SELECT 1;\nSELECT nothing FROM tokens;\nSELECT 2;", store, *options)
    assert result.code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "2" not in result.text.split()


def test_more_stores(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    VectorStore(n_units=1, unit_rows=256, width=4, n_layers=1, tokens=2).make(ObjectStore(str(other)))
    statement = "SELECT count(*) AS n, max(list_sum(base.resid_post(row, 0)::FLOAT[])) IS NULL AS none FROM base.tokens"
    found = ok("sql", store, statement, "--attach", f"base={other}", "--attach", f"more={store}", "--json")
    assert found.json == [{"n": 256, "none": False}]
    for wrong in ("base", f"select={other}", f"base={tmp_path}/none"):
        result = run_cli("sql", store, "SELECT 1", "--attach", wrong)
        assert (result.code, len(result.stderr.splitlines())) == (2, 1)


# --- what results look like


def test_every_format_has_the_same_rows(store: Path, tmp_path: Path) -> None:
    expected = ok("sql", store, VALUES, "--json").json
    assert len(expected) == 1_536
    assert expected[0]["text"] == 'a"b,\n;é'
    lines = ok("sql", store, VALUES, "--format", "jsonl").text.splitlines()
    assert [json.loads(line) for line in lines] == expected
    rows = list(csv.DictReader(io.StringIO(ok("sql", store, VALUES, "--format", "csv").text, newline="")))
    assert [row["text"] for row in rows] == [row["text"] for row in expected]
    assert [json.loads(row["h"]) for row in rows] == [row["h"] for row in expected]
    assert {(row["none"], row["exact"], row["day"], row["flag"]) for row in rows} == {
        ("", "1.50", "2026-01-02", "true")
    }
    table = pq.read_table(io.BytesIO(ok("sql", store, VALUES, "--format", "parquet").stdout))
    assert table["h"].to_pylist() == [row["h"] for row in expected]
    for suffix in ("csv", "json", "jsonl", "parquet"):
        path = tmp_path / f"out.{suffix}"
        assert ok("sql", store, VALUES, "-o", path).text == f"{path}: 1536 rows\n"
        assert path.read_bytes() == ok("sql", store, VALUES, "--format", suffix).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.json", "out.jsonl", "out.parquet"]


def test_a_pipe_is_written_to_and_stays_one(store: Path, tmp_path: Path) -> None:
    """As `-o >(gzip > out.csv.gz)` and `-o /dev/null` have it, which root would replace by a file for everyone."""
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    ok("sql", store, "SELECT 1 AS a", "-o", pipe)
    assert os.read(reader, 100) == b'"a"\n1\n'
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet", "table"])
def test_no_rows(format: str, store: Path) -> None:
    result = ok("sql", store, "SELECT example, segment FROM tokens WHERE false", "--format", format)
    if format == "json":
        assert result.json == []
    elif format == "parquet":
        assert pq.read_table(io.BytesIO(result.stdout)).schema.names == ["example", "segment"]
    else:
        assert (
            result.text.split()
            == {"csv": ['"example","segment"'], "jsonl": [], "table": ["example", "segment"]}[format]
        )


def test_a_table_is_cut_and_says_so(store: Path) -> None:
    statement = "SELECT row FROM tokens ORDER BY row"
    result = ok("sql", store, statement)
    assert len(result.text.splitlines()) == 1_001
    assert result.stderr.startswith("2,072 more rows are not shown")
    few = ok("sql", store, statement, "--max-rows", "3")
    assert [line.strip() for line in few.text.splitlines()] == ["row", "0", "1", "2"]
    every = ok("sql", store, statement, "--max-rows", "0")
    assert (len(every.text.splitlines()), every.stderr) == (3_073, "")


def test_one_result_fits_a_file(store: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for options in (("--json",), ("--format", "csv"), ("-o", tmp_path / "out.csv")):
        result = run_cli("sql", store, "SELECT 1; SELECT 2", *options)
        assert (result.code, result.text) == (2, "")
        assert "2 statements give rows" in result.stderr
    assert run_cli("sql", store, "CREATE TABLE a (b INT)", "-o", tmp_path / "out.csv").code == 2
    assert snapshot(tmp_path) == before
    made = "CREATE TABLE t AS SELECT 5 AS five; INSERT INTO t VALUES (6); SELECT * FROM t"
    assert ok("sql", store, made, "--json").json == [{"five": 5}, {"five": 6}]
    assert ok("sql", store, "CREATE TABLE t (a INT); INSERT INTO t VALUES (6) RETURNING a", "--json").json == [{"a": 6}]
    assert ok("sql", store, "PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b)", "--json").json == [{"1": 2}]


def test_plans(store: Path) -> None:
    result = ok("sql", store, f"{LONG}; SELECT row FROM tokens WHERE to_decision = 0", "--explain")
    assert "to_decision" in result.text
    assert "RANGE" in result.text.upper()


def test_nothing_is_half_written(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("as it was", encoding="utf-8")
    before = snapshot(tmp_path)
    fails = "SELECT row, resid_post(row, CASE WHEN row < 2048 THEN 0 ELSE 9 END) FROM tokens"
    for statement, options, code in (
        (fails, (), 2),
        ("SELECT 1 / (i - 900000)::INT AS x, error(i::VARCHAR) FROM range(1000000) t(i) WHERE i > 900000", (), 2),
        (LONG, ("--timeout", "0.3"), 1),
        ("SELECT array_agg(j) FROM range(30000000) t(j)", ("--memory-limit", "50MB"), 1),
    ):
        result = run_cli("sql", store, statement, "-o", target, *options)
        assert (result.code, result.text, len(result.stderr.splitlines())) == (code, "", 1)
        assert snapshot(tmp_path) == before
    nowhere = run_cli("sql", store, "SELECT 1", "-o", tmp_path / "no" / "folder.csv")
    assert nowhere.code == 2
    assert "cannot write" in nowhere.stderr
    assert snapshot(tmp_path) == before


def test_to_a_url(store: Path) -> None:
    import fsspec

    ok("sql", store, "SELECT 5 AS five", "-o", "memory://results/out.jsonl")
    assert fsspec.filesystem("memory").cat_file("/results/out.jsonl") == b'{"five": 5}\n'


# --- how it ends


def test_limits_of_a_statement(store: Path) -> None:
    late = run_cli("sql", store, LONG, "--timeout", "0.5")
    assert (late.code, late.text) == (1, "")
    assert late.stderr == "error: the statement was stopped after 0.5 s (--timeout)\n"
    for options in (("--timeout", "0"), ("--timeout", "-1"), ("--memory-limit", "lots")):
        wrong = run_cli("sql", store, "SELECT 1", *options)
        assert (wrong.code, len(wrong.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "statement",
    [LONG, "SELECT resid_post(i * row % 3072, 0) AS h FROM range(1000000) a(i), tokens WHERE i < 0 OR h[1] > 1e9"],
)
def test_a_signal_stops_a_statement(number: int, statement: str, store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cliffstore.cli.main", "sql", str(store), statement, "-o", str(tmp_path / "a.csv")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:  # the file is begun, the statement is not
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert (process.returncode, out) == (130, b"")
    assert len(err.splitlines()) <= 1
    assert list(tmp_path.iterdir()) == []


def test_who_reads_may_have_enough(store: Path) -> None:
    command = [sys.executable, "-m", "cliffstore.cli.main", "sql", str(store), "--format", "csv"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [*command, "SELECT i FROM range(1000000000) t(i)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b'"i"\n'
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
