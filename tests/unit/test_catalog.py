"""The catalog: stores side by side, tables from Python, vectors that are added, results that stream, and what stops."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread, Timer

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from vector_store import VectorStore

from cliffstore import QueryLimits
from cliffstore.errors import ConfigError, QueryError, QueryStoppedError, StorageError, StoreError
from cliffstore.run.store import Store
from cliffstore.store import running, tables, vector_columns
from cliffstore.store.objects import ObjectStore
from cliffstore.store.results import Batches

MADE = VectorStore(n_units=4, unit_rows=1_024, width=8, tokens=2)
TUNED = VectorStore(n_units=4, unit_rows=1_024, width=8, tokens=2, alias="tuned", seed=1)
OTHER = VectorStore(n_units=1, unit_rows=256, width=5, n_layers=1, tokens=2, seed=2)
LONG = "SELECT count(*) FROM range(1000000000) a(i), range(1000) b(j) WHERE i * j % 7 = 3"
GATHERS = "SELECT count(*) FROM range(1000000) a(i), tokens WHERE list_sum(resid_post(i * row % 4096, 0)::FLOAT[]) = 3"


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store with two models, and another of another width."""
    folder = tmp_path_factory.mktemp("catalog")
    MADE.make(ObjectStore(str(folder / "one")))
    TUNED.add_capture(ObjectStore(str(folder / "one")))
    OTHER.make(ObjectStore(str(folder / "other")))
    return str(folder / "one"), str(folder / "other")


@pytest.fixture
def store(urls: tuple[str, str]) -> Iterator[Store]:
    with Store(urls[0]) as opened:
        yield opened


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=np.float32)


# --- vectors


def test_models_are_subtracted_row_for_row(store: Store) -> None:
    found = store.sql(
        "SELECT row, resid_post(row, 1, 'tuned') - resid_post(row, 1, 'main') AS moved, "
        "resid_post(row, 0) + resid_post(row, 0) AS twice FROM tokens ORDER BY row DESC"
    ).to_arrow_table()
    rows_N = np.array(found["row"])
    tuned_ND, main_ND = (store.vectors("resid_post", 1, rows_N, model) for model in ("tuned", "main"))
    np.testing.assert_array_equal(numbers(found["moved"]), tuned_ND - main_ND)
    np.testing.assert_array_equal(numbers(found["twice"]), 2 * store.vectors("resid_post", 0, rows_N))
    assert found.schema.field("moved").type == pa.list_(pa.float32(), 8)


def test_what_is_missing_has_no_difference(store: Store) -> None:
    found = store.sql(
        "SELECT (resid_post(r, 0) - resid_post(s, 0)) IS NULL, (resid_post(r, 0) + NULL) IS NULL "
        "FROM (VALUES (1, 2), (NULL, 2), (1, 100000000), (-1, NULL)) v(r, s)"
    ).fetchall()
    assert found == [(False, True), (True, True), (True, True), (True, True)]


_VECTORS = st.lists(
    st.none() | arrays.arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=9
)


@given(_VECTORS, st.integers(0, 3), st.booleans())
def test_arithmetic_of_vectors(vectors: list[np.ndarray | None], cut: int, chunked: bool) -> None:
    """Any mask, any offset into a longer array, in one piece or several."""
    left = pa.array([None if v is None else v.tolist() for v in vectors], pa.list_(pa.float32(), 3))
    right = pa.array(reversed(left.to_pylist()), left.type)
    left, right = left[min(cut, len(left) - 1) :], right[min(cut, len(right) - 1) :]
    given_left, given_right = left.to_pylist(), right.to_pylist()
    if chunked:
        left = pa.chunked_array([left[:1], left[1:]])
    for operation in (np.subtract, np.add):
        found = vector_columns.elementwise(operation, 3)(left, right).to_pylist()
        expected = [
            None if a is None or b is None else operation(np.float32(a), np.float32(b)).tolist()
            for a, b in zip(given_left, given_right, strict=True)
        ]
        assert found == expected


def test_numbers_and_dates_are_subtracted_as_ever(store: Store) -> None:
    found = store.sql(
        "SELECT 3 - 2, 3.5 + 1, -4, DATE '2026-01-02' - DATE '2026-01-01', [1] + [2], NULL - NULL, to_decision - 1 "
        "FROM tokens LIMIT 1"
    ).fetchall()
    assert [str(value) for value in found[0]] == ["1", "4.5", "-4", "1", "[1, 2]", "None", "-2"]
    with pytest.raises(QueryError, match="No function matches"):
        store.sql("SELECT [1, 2]::FLOAT[2] - [1, 2, 3]::FLOAT[3]")


# --- several stores, and tables from Python


def test_stores_side_by_side(urls: tuple[str, str]) -> None:
    with Store(urls[0]) as store, Store(urls[1]) as other:
        store.attach("by_url", urls[1])
        store.attach("by_object", other)
        for name in ("by_url", "by_object"):
            assert store.sql(f"SELECT count(*) FROM {name}.units WHERE extracted").fetchall() == [(1,)]
            found = store.sql(f"SELECT row, {name}.resid_post(row, 0) AS h FROM {name}.tokens").to_arrow_table()
            expected_ND = other.vectors("resid_post", 0, np.array(found["row"]))
            np.testing.assert_array_equal(numbers(found["h"]), expected_ND)
            zero = f"SELECT max(list_sum(({name}.resid_post(row, 0) - {name}.resid_post(row, 0))::FLOAT[])) FROM tokens"
            assert store.sql(zero).fetchall() == [(0,)]
        joined = "SELECT count(*) FROM examples e JOIN by_url.examples o USING (prompt)"
        assert store.sql(joined).fetchall() == [(OTHER.n_examples,)]
        with pytest.raises(StoreError, match="has no layer 1"):
            store.sql("SELECT by_url.resid_post(0, 1)")
        store.refresh()  # what was attached stays
        assert store.sql("SELECT count(*) FROM by_url.examples").fetchall() == [(OTHER.n_examples,)]
        assert "by_object.tokens" in store.catalog.names()


@pytest.mark.parametrize(
    "name", ["main", "Temp", "system", "pg_catalog", "memory", "select", "two words", "a.b", "_x", "", 'q"x', "1st"]
)
def test_names_that_no_store_can_have(name: str, store: Store, urls: tuple[str, str]) -> None:
    with pytest.raises(QueryError, match="name"):
        store.attach(name, urls[1])
    assert store.sql("SELECT count(*) FROM examples").fetchall() == [(MADE.n_examples,)]


def test_a_name_is_given_once(store: Store, urls: tuple[str, str]) -> None:
    store.attach("base", urls[1])
    with pytest.raises(QueryError, match="taken"):
        store.attach("BASE", urls[1])
    with pytest.raises(StoreError, match="there is no store"):
        store.attach("nowhere", urls[1] + "-not")


def test_tables_from_python(store: Store) -> None:
    store.register("mine", pa.table({"example": [0, 1, 5], "grade": [0.5, 1.0, 2.0]}))
    joined = "SELECT sum(grade) FROM mine JOIN examples USING (example) WHERE grade >= 1"
    assert store.sql(joined).fetchall() == [(3.0,)]
    store.register("mine", {"example": [0], "grade": [7.0]})  # in the place of the former
    store.refresh()
    assert store.sql("SELECT sum(grade) FROM mine JOIN examples USING (example)").fetchall() == [(7.0,)]
    with store.batches("SELECT grade FROM mine") as batches:
        assert [batch.to_pydict() for batch in batches] == [{"grade": [7.0]}]
    for name, table in (("tokens", {"a": [1]}), ("Examples", {"a": [1]}), ("x", 5)):
        with pytest.raises(QueryError):
            store.register(name, table)


def test_a_frame_of_pandas(store: Store) -> None:
    pandas = pytest.importorskip("pandas")
    store.register("frame", pandas.DataFrame({"example": [3], "grade": ["good"]}))
    found = store.sql("SELECT id, grade FROM frame JOIN examples USING (example)")
    assert found.df().to_dict("list") == {"id": ["e3"], "grade": ["good"]}


def test_a_frame_of_polars(store: Store) -> None:
    pytest.importorskip("polars")
    frame = store.sql("SELECT example, label FROM examples ORDER BY example LIMIT 3").pl()
    store.register("frame", frame)
    assert store.sql("SELECT count(*) FROM frame JOIN examples USING (example, label)").fetchall() == [(3,)]


def test_parameters_and_several_statements(store: Store) -> None:
    assert store.sql("SELECT $a + 1", {"a": 2}).fetchall() == [(3,)]
    made = "CREATE TEMP TABLE t AS SELECT example FROM examples LIMIT 4; SELECT count(*) + ? FROM t"
    assert store.sql(made, [10]).fetchall() == [(14,)]
    assert store.sql("SELECT count(*) FROM t").fetchall() == [(4,)]


# --- results that stream


def test_batches_have_every_row_once(store: Store) -> None:
    with store.batches("SELECT row, resid_post(row, 0) AS h FROM tokens ORDER BY row", rows=500) as batches:
        assert batches.schema.names == ["row", "h"]
        found = list(batches)
    assert max(map(len, found)) <= 500
    table = pa.Table.from_batches(found)
    assert table["row"].to_pylist() == sorted({*table["row"].to_pylist()})
    np.testing.assert_array_equal(numbers(table["h"]), store.vectors("resid_post", 0, np.array(table["row"])))


def test_statements_run_while_batches_are_read(store: Store) -> None:
    with store.batches("SELECT row FROM tokens", rows=512) as one, store.batches("FROM examples", rows=512) as two:
        seen = 0
        for batch in one:
            seen += len(batch)
            assert store.sql("SELECT count(*) FROM tokens WHERE row < 10").fetchall() == [(10,)]
            next(two, None)
        assert seen == MADE.n_examples * 2


def test_no_batch_is_spoilt_by_an_error(store: Store) -> None:
    """Rows of the last unit ask for a layer that is not there: what comes before is right, then the error comes."""
    statement = "SELECT row, resid_post(row, CASE WHEN row < 3072 THEN 0 ELSE 9 END) AS h FROM tokens"
    for disturbed in (False, True):
        found: list[pa.RecordBatch] = []
        with store.batches(statement, rows=256) as batches:
            with pytest.raises(StoreError, match="no layer 9"):
                _read(batches, found, store if disturbed else None)
            assert list(batches) == []
        assert all(batch["h"].null_count == 0 for batch in found)
    assert store.sql("SELECT resid_post(1, 0) IS NULL").fetchall() == [(False,)]


def _read(batches: Batches, found: list[pa.RecordBatch], disturbed: Store | None) -> None:
    """Read to the end, with statements in between that must not take an error away."""
    for batch in batches:
        found.append(batch)
        if disturbed is not None:
            with suppress(StoreError):
                disturbed.sql("SELECT resid_post(1, 0)")


def test_storage_that_fails_in_the_middle(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = tables.read_piece, []

    def fail(*arguments: object) -> pa.Table:
        calls.append(arguments)
        if len(calls) > 1:
            raise StorageError("the cable is out")
        return read(*arguments)

    monkeypatch.setattr(tables, "read_piece", fail)
    monkeypatch.setattr("cliffstore.store.views._PIECE_BYTES", 1)
    for run in (lambda: store.sql("SELECT * FROM tokens"), lambda: list(store.batches("FROM tokens", rows=10))):
        calls.clear()
        with pytest.raises(StorageError, match="the cable is out"):
            run()


def test_batches_take_one_statement(store: Store) -> None:
    for text in ("", "SELECT 1; SELECT 2"):
        with pytest.raises(QueryError, match="one statement"):
            store.batches(text)


def test_a_stream_is_bounded_in_memory(store: Store) -> None:
    """Of a result of gigabytes the first batches come at once, and Arrow holds no more than some of them."""
    before = pa.total_allocated_bytes()
    with store.batches("SELECT i, repeat('x', 100) AS s FROM range(1000000000) t(i)") as batches:
        for _ in range(20):
            next(batches)
            assert pa.total_allocated_bytes() - before < 200 << 20


# --- what stops


@pytest.mark.parametrize("statement", [LONG, GATHERS, f"CREATE TABLE t AS {LONG}"])
def test_a_time_limit(statement: str, urls: tuple[str, str]) -> None:
    with Store(urls[0], limits=QueryLimits(seconds=0.5)) as store:
        with pytest.raises(QueryStoppedError, match=r"stopped after 0\.5 s \(--timeout\)"):
            store.sql(statement)
        with pytest.raises(QueryStoppedError, match="stopped after"), store.batches(LONG) as batches:
            list(batches)
        assert store.sql("SELECT 42").fetchall() == [(42,)]


def test_the_time_of_who_reads_does_not_count(urls: tuple[str, str]) -> None:
    with Store(urls[0], limits=QueryLimits(seconds=2)) as store, store.batches("FROM tokens", rows=1024) as batches:
        next(batches)
        time.sleep(2.2)
        assert sum(map(len, batches)) == MADE.n_examples * 2 - 1024


@pytest.mark.parametrize("statement", [LONG, GATHERS])
def test_ctrl_c_stops_a_statement(statement: str, store: Store) -> None:
    for run in (lambda: store.sql(statement), lambda: list(store.batches(statement))):
        timer = Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            run()
        timer.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert store.sql("SELECT 42").fetchall() == [(42,)]


def test_a_second_ctrl_c_does_not_wait() -> None:
    """The first asks DuckDB to stop; Python code that it called may wait for storage meanwhile."""
    stops: list[int] = []

    def interrupted_twice() -> None:
        with running._signals(lambda: stops.append(1)):
            os.kill(os.getpid(), signal.SIGINT)
            assert stops == [1]
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal was put off")

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_is_called_and_kept(store: Store) -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        mine = signal.getsignal(signal.SIGINT)
        timer = Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(QueryStoppedError, match="interrupted"):
            store.sql(LONG)
        timer.join()
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == [signal.SIGINT]


def test_a_thread_may_ask(store: Store) -> None:
    found: list[object] = []
    thread = Thread(target=lambda: found.append(store.sql("SELECT count(*) FROM tokens").fetchall()))
    thread.start()
    thread.join()
    assert found == [[(MADE.n_examples * 2,)]]


def test_a_memory_limit(urls: tuple[str, str]) -> None:
    with Store(urls[0], limits=QueryLimits(memory="50MB")) as store:
        with pytest.raises(QueryStoppedError, match=r"more memory than its limit of 50MB \(--memory-limit\)"):
            store.sql("SELECT array_agg(j) FROM range(30000000) t(j)")
        assert store.sql("SELECT 42").fetchall() == [(42,)]
    with pytest.raises(ConfigError, match="memory limit 'much': say a size"):
        Store(urls[0], limits=QueryLimits(memory="much")).sql("SELECT 1")
    with pytest.raises(ConfigError, match="seconds above 0"):
        QueryLimits(seconds=0)


def test_a_process_that_leaves_all_open_ends_cleanly(urls: tuple[str, str]) -> None:
    """And SQL has loaded nothing that only probes, models and clusters need."""
    script = (
        "import sys\n"
        "from cliffstore import Store\n"
        "store = Store(sys.argv[1])\n"
        "store.attach('base', sys.argv[2])\n"
        "relation = store.sql('SELECT row, resid_post(row, 0) - resid_post(row, 1) AS d FROM tokens')\n"
        "batches = store.batches('SELECT resid_post(row, 0) FROM tokens', rows=10)\n"
        "print(len(next(batches)), len(relation.fetchall()), *{'scipy', 'sklearn', 'torch', 'ray'} & {*sys.modules})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", script, *urls], capture_output=True, text=True, env=environment, timeout=120
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "10 4096\n", "")


def test_comments_cost_no_time(store: Store) -> None:
    begun = time.monotonic()
    (statement,) = store.catalog.statements("CREATE " + "/* a */ " * 200 + "TABLE of_comments (a INT)")
    assert not statement.gives_rows
    assert time.monotonic() - begun < 1


def test_a_result_that_is_left_behind_is_of_no_statement_that_runs(store: Store) -> None:
    batches = store.catalog.batches("SELECT row FROM tokens", rows=10)
    next(batches)
    assert store.catalog._failed.wanted
    del batches
    gc.collect()
    assert not store.catalog._failed.wanted


# --- what SQL cannot do to the rest


def test_a_relation_outlives_its_store(urls: tuple[str, str]) -> None:
    assert Store(urls[0]).sql("SELECT 6 * 7").fetchall() == [(42,)]
    with Store(urls[0]) as store:
        relation = store.sql("SELECT example FROM examples ORDER BY example LIMIT 3")
    assert relation.aggregate("sum(example)").fetchall() == [(3,)]


def test_views_that_sql_has_replaced_are_its_own(urls: tuple[str, str]) -> None:
    """What is built on a store reads the store."""
    with Store(urls[0]) as store:
        expected = store.activations("resid_post", 0, where="to_decision = 0 AND label = '1'").rows
        store.sql("CREATE OR REPLACE VIEW examples AS SELECT 0::BIGINT AS example, '1' AS label, 'x' AS id")
        assert store.sql("SELECT count(*) FROM examples").fetchall() == [(1,)]
        found = store.activations("resid_post", 0, where="to_decision = 0 AND label = '1'")
        assert np.array_equal(found.rows, expected)


def test_tables_and_stores_beside_reach_conditions_too(urls: tuple[str, str]) -> None:
    with Store(urls[0]) as store:
        store.activations("resid_post", 0)
        store.register("chosen", {"example": [3, 4]})
        store.attach("other", urls[1])
        beside = "SELECT example FROM chosen INTERSECT SELECT example FROM other.examples"
        assert len(store.activations("resid_post", 0, where=f"to_decision = 0 AND example IN ({beside})")) == 2
