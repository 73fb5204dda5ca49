"""SQL reads the store and nothing else: attempts to reach files, network, extensions, settings and Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import ok, run_cli, snapshot
from vector_store import VectorStore

from cliffstore import QueryLimits
from cliffstore.errors import QueryError
from cliffstore.run.store import Store
from cliffstore.store.objects import ObjectStore

SECRET = "sesame"

READS = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_json_auto('{file}')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM read_parquet('{folder}/*.parquet')",
    "SELECT * FROM parquet_metadata('{folder}/a.parquet')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM query('SELECT * FROM read_text(''{file}'')')",
    "CREATE VIEW v AS SELECT * FROM read_text('{file}'); SELECT * FROM v",
    "CREATE MACRO m(x) AS TABLE SELECT * FROM read_text(x); SELECT * FROM m('{file}')",
    "CREATE TABLE t AS SELECT * FROM '{file}'",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{file}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{file}'')'))",
    "SELECT * FROM read_duckdb('{folder}/a.db')",
    "WITH q AS MATERIALIZED (SELECT * FROM read_text('{file}')) SELECT * FROM q",
    "CREATE TABLE t (a INT, b TEXT); COPY t FROM '{file}'",
    "IMPORT DATABASE '{folder}/dump'",
    "PRAGMA import_database('{folder}/dump')",
    "PRAGMA database_list; SELECT * FROM read_csv('{file}')",
]
WRITES = [
    "COPY examples TO '{folder}/stolen.csv'",
    "COPY (SELECT 1) TO '{folder}/stolen.parquet' (FORMAT parquet)",
    "COPY (SELECT 1) TO '/dev/stdout'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/stolen.csv'",
    "PREPARE p AS COPY (SELECT 1) TO '{folder}/stolen.csv'; EXECUTE p",
    "ATTACH '{folder}/other.db'",
    "ATTACH ':memory:' AS other",
    "EXPORT DATABASE '{folder}/dump'",
    "USE system",
    "CHECKPOINT",
    "FORCE CHECKPOINT",
    "CALL force_checkpoint()",
    "VACUUM",
]
EXTENSIONS_AND_NETWORK = [
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1:{port}'",
    "LOAD httpfs",
    "LOAD '{folder}/evil.duckdb_extension'",
    "UPDATE EXTENSIONS",
    "SELECT * FROM read_csv('http://127.0.0.1:{port}/a.csv')",
    "SELECT * FROM 'http://127.0.0.1:{port}/a.parquet'",
    "SELECT * FROM 's3://bucket/a.parquet'",
    "SELECT * FROM sqlite_scan('{folder}/a.db', 'a')",
    "SELECT * FROM postgres_scan('host=127.0.0.1 port={port}', 'public', 'a')",
    "ATTACH 'http://127.0.0.1:{port}/a.db' AS remote",
    "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE SECRET (TYPE http, BEARER_TOKEN 'a')",
    "/* a */ CREATE OR REPLACE -- b\n PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'a')",
    "EXPLAIN ANALYZE CREATE SECRET s (TYPE http, BEARER_TOKEN 'a')",
    "EXPLAIN (ANALYZE, FORMAT json) /* a /* b */ c */ CREATE SECRET s (TYPE http)",
]
SETTINGS = [
    "SET enable_external_access = true",
    "SET GLOBAL enable_external_access = true",
    "RESET enable_external_access",
    "PRAGMA enable_external_access = true",
    "PRAGMA enable_profiling",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "SET python_enable_replacements = true",
    "SET temp_directory = '{folder}/spill'",
    "SET memory_limit = '100GB'",
    "SET autoload_known_extensions = true",
    "SET allow_unsigned_extensions = true",
    "SET VARIABLE a = 1",
    "SET search_path = 'temp'",
    "CALL enable_logging(level = 'debug', storage = 'file', storage_config = {{'path': '{folder}'}})",
    "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{folder}/log')",
    "BEGIN; SET threads = 1; COMMIT",
]
PYTHON = [
    "SELECT * FROM statement",
    "SELECT * FROM catalog",
    "SELECT * FROM opened",
    "SELECT * FROM self",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM python_arrow_scan()",
    "SELECT * FROM python_arrow_scan(1, 2, 3)",
    "SELECT * FROM python_map_function((SELECT 1))",
    "SELECT * FROM python_map_function((SELECT 1), 1)",
    "SELECT getenv('CLIFFSTORE_SECRET')",
]
ALL = [*READS, *WRITES, *EXTENSIONS_AND_NETWORK, *SETTINGS, *PYTHON]


class _Server(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"a,b\n1,{SECRET}\n".encode())

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locked") / "store"
    VectorStore(n_units=1, unit_rows=256, tokens=2).make(ObjectStore(str(folder)))
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, list[str]]]:
    """A web server on loopback, and what it was asked for."""
    asked: list[str] = []
    kept = type("Kept", (_Server,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), kept) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield http.server_address[1], asked
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("attempt", ALL)
def test_sql_reaches_nothing_but_the_store(
    attempt: str, store: Path, server: tuple[int, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = server
    monkeypatch.setenv("CLIFFSTORE_SECRET", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.csv"
    secret.write_text(f"a,b\n1,{SECRET}\n", encoding="utf-8")
    before = snapshot(tmp_path), snapshot(store)
    result = run_cli("sql", store, attempt.format(file=secret, folder=tmp_path, port=port))
    assert result.code == 2, result.text
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.text == ""
    assert SECRET not in result.stderr
    assert (snapshot(tmp_path), snapshot(store)) == before
    assert asked == []


def test_the_prompt_is_no_other_way_out(store: Path, tmp_path: Path) -> None:
    """Each attempt by itself, one after the other in one session: none prepares the ground for the next."""
    secret = tmp_path / "secret.csv"
    secret.write_text(f"a,b\n1,{SECRET}\n", encoding="utf-8")
    before = snapshot(tmp_path)
    with Store(str(store)) as opened:
        for attempt in ALL:
            with pytest.raises(QueryError) as caught:
                opened.sql(attempt.format(file=secret, folder=tmp_path, port=9))
            assert SECRET not in str(caught.value)
        assert opened.sql("SELECT count(*) FROM examples").fetchall() == [(128,)]
        assert opened.sql("SELECT * FROM duckdb_secrets()").fetchall() == []
    assert snapshot(tmp_path) == before


def test_python_variables_are_no_tables(store: Path) -> None:
    import pyarrow as pa

    mine = pa.table({"a": [1]})
    for limits in (QueryLimits(), QueryLimits(external=True)):
        with Store(str(store), limits=limits) as opened, pytest.raises(QueryError, match="mine does not exist"):
            opened.sql("SELECT * FROM mine")
    assert mine.num_rows == 1


def test_what_is_allowed_works(store: Path, server: tuple[int, list[str]], tmp_path: Path) -> None:
    """The attempts above fail because they are refused: with --allow-external the harmless ones of them work."""
    file = tmp_path / "open.csv"
    file.write_text("a,b\n1,two\n", encoding="utf-8")
    for statement in (
        f"SELECT * FROM read_csv('{file}')",
        f"SELECT * FROM '{file}'",
        f"CREATE MACRO m(x) AS TABLE SELECT * FROM read_csv(x); SELECT * FROM m('{file}')",
        f"SET threads = 1; SELECT * FROM '{file}'",
        f"ATTACH '{tmp_path}/other.db'; SELECT a, b FROM '{file}'",
    ):
        assert ok("sql", store, statement, "--allow-external", "--json").json == [{"a": 1, "b": "two"}]
    ok("sql", store, f"COPY examples TO '{tmp_path}/examples.csv'", "--allow-external")
    assert (tmp_path / "examples.csv").read_text(encoding="utf-8").count("\n") == 129


def test_what_only_touches_memory_works(store: Path) -> None:
    before = snapshot(store)
    found = ok(
        "sql",
        store,
        "CREATE TEMP TABLE mine AS SELECT example, label FROM examples; DELETE FROM mine WHERE example >= 3; "
        "INSERT INTO mine VALUES (7, 'x'); CREATE TABLE secret AS SELECT count(*) AS n FROM mine; SELECT n FROM secret",
        "--json",
    )
    assert found.json == [{"n": 4}]
    assert snapshot(store) == before


def test_what_is_spilled_is_private_and_removed(store: Path, tmp_path: Path) -> None:
    """More than the memory limit goes to a folder that only the user can read, and is gone at the end."""
    script = (
        "import os, sys, pathlib\n"
        "from cliffstore import QueryLimits, Store\n"
        "store = Store(sys.argv[1], limits=QueryLimits(memory='100MB'))\n"
        "(folder,) = store.sql(\"SELECT current_setting('temp_directory')\").fetchall()[0]\n"
        "assert pathlib.Path(folder).stat().st_mode & 0o777 == 0o700\n"
        "big = 'SELECT i, hash(i) AS h, repeat(i::VARCHAR, 10) AS s FROM range(4000000) t(i) ORDER BY h'\n"
        "with store.batches(big) as batches:\n"
        "    next(batches)\n"
        "    print(sum(path.stat().st_size for path in pathlib.Path(folder).iterdir()) > 1_000_000, folder)\n"
        "# The store is left open.\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", script, store], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"True {tmp_path}")
    assert list(tmp_path.iterdir()) == []
