"""A store of some hundred units: what opening and asking it costs in requests, and how a process ends that asked.

Requests are counted by a proxy before an S3 server. A second store has four times the units of the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import enumerate as enumerate_threads
from threading import get_ident

import numpy as np
import pytest
import servers
from commands import run_cli
from fault_proxy import Weather, proxy
from made_up_store import BYTES_PER_UNIT, CAPTURE, EXAMPLES_PER_UNIT, N_ROWS, PLAN, UNIT_ROWS, make_store
from servers import Storage

from cliffstore.run.store import Store
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

SMALL, LARGE = 100, 400
VIEWS = {
    "examples", "tokens", "units", "skipped", "captures", "scores", "cliffs", "heads", "probes", "probe_metrics",
    "selections",
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """Stores on an S3 server, by the number of their units."""

    storage: Storage

    def url(self, n_units: int) -> str:
        return f"{self.storage.bucket}/units-{n_units}"

    @contextmanager
    def opened(self, n_units: int) -> Iterator[tuple[Store, Counter[str]]]:
        """Yield a store, and what is asked of the server: 'GET <key>', 'LIST <prefix>'."""
        weather, asked = Weather(), Counter[str]()
        with (
            proxy(self.storage.port, weather) as port,
            Store(self.url(n_units), self.storage.through(port).options) as store,
        ):
            yield store, asked
            for request, times in weather.paths.items():
                asked[request.partition("?")[0].replace(f"/{servers.BUCKET}/units-{n_units}/", "")] += times


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    for n_units in (SMALL, LARGE):
        make_store(ObjectStore(str(root / servers.BUCKET / f"units-{n_units}")), range(n_units))
    with servers.rclone(root) as storage:
        yield Served(storage)


def _receipts(asked: Counter[str]) -> Counter[str]:
    return Counter(
        {request: times for request, times in asked.items() if request.startswith(f"GET {layout.RECEIPTS}/")}
    )


def test_opening_does_not_depend_on_the_number_of_units(served: Served) -> None:
    requests = []
    for n_units in (SMALL, LARGE):
        with served.opened(n_units) as (store, asked):
            assert store.sql("SELECT 1").fetchall() == [(1,)]
            assert {name for (name,) in store.sql("SHOW TABLES").fetchall()} >= VIEWS
            described = store.sql("DESCRIBE units").fetchall()
            assert [column for column, *_ in described if column in ("unit", "extracted", "error")]
            columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'tokens'"
            assert store.sql(columns).fetchall() == [(7,)]
        assert not _receipts(asked)
        requests.append(asked.total())
    assert requests[0] == requests[1] < 20


def test_examples_need_no_receipt(served: Served) -> None:
    with served.opened(LARGE) as (store, asked):
        assert store.sql("SELECT count(*) FROM examples").fetchall() == [(LARGE * EXAMPLES_PER_UNIT,)]
    assert not _receipts(asked)


def test_which_units_are_extracted_needs_a_listing_only(served: Served) -> None:
    with served.opened(LARGE) as (store, asked):
        assert store.sql("SELECT count(*) FROM units WHERE extracted").fetchall() == [(LARGE,)]
        assert store.sql("SELECT count(DISTINCT capture), max(model) FROM units").fetchall() == [(1, "main")]
    assert not _receipts(asked)


def test_each_receipt_is_read_once(served: Served) -> None:
    with served.opened(LARGE) as (store, asked):
        for _ in range(2):
            found = store.sql("SELECT sum(bytes), count(*), count(DISTINCT worker) FROM units").fetchall()
            assert found == [(LARGE * BYTES_PER_UNIT, LARGE, 1)]
    assert _receipts(asked) == {f"GET {layout.receipt(CAPTURE, unit)}": 1 for unit in range(LARGE)}


def test_receipts_are_read_through_passing_faults(served: Served) -> None:
    weather = Weather(share=0.1, faults=("500", "503", "reset", "cut"), methods=("GET",), most=25)
    with (
        proxy(served.storage.port, weather) as port,
        Store(served.url(LARGE), served.storage.through(port).options) as store,
    ):
        assert store.sql("SELECT sum(bytes) FROM units").fetchall() == [(LARGE * BYTES_PER_UNIT,)]
    assert weather.met.total() == 25


def test_info_reads_no_receipt(served: Served) -> None:
    with served.opened(LARGE) as (store, asked):
        (capture,) = store.info()["captures"]  # type: ignore[misc]
        assert capture["units_extracted"] == LARGE
    assert not _receipts(asked)


@pytest.mark.parametrize(
    ("times", "arguments"),
    [
        (3, ("sql", "SELECT * FROM tokens LIMIT 1")),
        (1, ("sql", "SELECT sum(bytes) FROM units")),
        (1, ("info",)),
    ],
)
def test_process_ends_cleanly(times: int, arguments: tuple[str, ...], served: Served) -> None:
    """Reads that a LIMIT leaves behind, and connections, are no trouble when the interpreter exits."""
    command, *statement = arguments
    for _ in range(times):
        ended = _in_a_process(_environment(served.storage), command, served.url(LARGE), *statement)
        assert ended.stdout
        assert (ended.returncode, ended.stderr) == (0, "")


def test_process_does_not_wait_for_reads_that_nobody_needs(tmp_path: Path) -> None:
    """Arrow's threads, still reading through Python when the interpreter exits, would hang or abort it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from fsspec.implementations.memory import MemoryFileSystem\n"
        "from made_up_store import make_store\n"
        "from cliffstore.run.store import Store\n"
        "from cliffstore.store import plans\n"
        "from cliffstore.store.objects import ObjectStore\n"
        "plans.PART_UNITS = 1\n"
        "make_store(ObjectStore('memory://many/store'), range(100))\n"
        "read = MemoryFileSystem.cat_file\n"
        "MemoryFileSystem.cat_file = lambda *a, **k: (time.sleep(0.02), read(*a, **k))[1]\n"
        "with Store('memory://many/store') as store:\n"
        "    print(len(store.catalog.arrow('SELECT * FROM tokens LIMIT 1')))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    for _ in range(4):
        ended = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            timeout=120,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM tokens LIMIT 1",
        "SELECT count(*) FROM tokens WHERE to_decision = 0",
        "SELECT sum(bytes) FROM units",
    ],
)
def test_only_threads_of_python_read(statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that lets go of a file of ours while the interpreter exits would abort the process."""
    make_store(ObjectStore(str(tmp_path)), range(3))
    readers: set[bool] = set()

    def noting(method: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object, **options: object) -> object:
            # A thread that Python did not start is known to it only while it asks for its own name.
            readers.add(get_ident() in {thread.ident for thread in enumerate_threads()})
            return method(*arguments, **options)

        return noted

    for name in ("read", "seek", "close"):
        monkeypatch.setattr(tables._PatientFile, name, noting(getattr(tables._PatientFile, name)))
    with Store(str(tmp_path)) as store:
        store.sql(statement).fetchall()
    assert readers == {True}


def test_process_that_reads_through_zarr_ends_cleanly(azure: Storage, tmp_path: Path) -> None:
    """The file system of a scheme that only fsspec speaks is closed when the interpreter exits, in its own loop."""
    objects = ObjectStore(azure.new_url(), azure.options)
    make_store(objects, range(2))
    script = (
        "import sys, numpy\n"
        "from cliffstore.store.arrays import ArraySpec, create_arrays, open_arrays\n"
        "from cliffstore.store.objects import ObjectStore\n"
        "objects, spec = ObjectStore(sys.argv[1]), ArraySpec('main', 'resid_post', 0, (8,), 'float32')\n"
        "create_arrays(objects, [spec], n_rows=512, chunk_rows=256, unit_rows=256)\n"
        "open_arrays(objects).write(0, {spec.key: numpy.ones((256, 8), numpy.float32)})\n"
        "print(open_arrays(objects).read_range(spec.key, 0, 2).sum())\n"
    )
    environment = {**os.environ, "AZURE_STORAGE_CONNECTION_STRING": str(azure.options["connection_string"])}
    ended = subprocess.run(
        [sys.executable, "-c", script, objects.url], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "16.0\n", "")
    ended = _in_a_process(environment, "sql", objects.url, "SELECT * FROM tokens LIMIT 1")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_unit_numbers_may_have_holes(tmp_path: Path) -> None:
    units = [0, 3, 700]
    objects = ObjectStore(str(tmp_path))
    make_store(objects, units)
    first_rows = np.array([0, 1, 2, 3, 4, 699, 700, 701, 10**6]) * UNIT_ROWS
    for offset, is_row in ((0, True), (N_ROWS - 1, True), (N_ROWS, False)):
        found = StoreReader(str(tmp_path)).extracted(CAPTURE, first_rows + offset)
        assert found.tolist() == [is_row and row // UNIT_ROWS in units for row in first_rows]
    objects.delete(layout.receipt(CAPTURE, 3))
    assert StoreReader(str(tmp_path)).extracted(CAPTURE, first_rows).nonzero()[0].tolist() == [0, 6]


def test_damage_is_named_by_the_statement_that_meets_it(tmp_path: Path) -> None:
    make_store(ObjectStore(str(tmp_path)), range(3))
    receipt = tmp_path / layout.receipt(CAPTURE, 1)
    receipt.write_bytes(receipt.read_bytes()[:-20])
    (tmp_path / layout.tokens_part(PLAN, 0)).write_bytes(b"PAR1")
    assert run_cli("sql", tmp_path, "SELECT count(*) FROM examples").code == 0
    for statement, key in (
        ("SELECT sum(bytes) FROM units", layout.receipt(CAPTURE, 1)),
        ("SELECT * FROM tokens LIMIT 1", "table tokens"),
    ):
        result = run_cli("sql", tmp_path, statement)
        assert (result.code, result.text) == (1, "")
        assert result.stderr.startswith("error: ")
        assert key in result.stderr
        assert len(result.stderr.splitlines()) == 1


def _environment(storage: Storage) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    names = {"endpoint_url": "ENDPOINT_URL", "key": "ACCESS_KEY_ID", "secret": "SECRET_ACCESS_KEY", "region": "REGION"}
    return {**found, **{f"AWS_{names[option]}": str(value) for option, value in storage.options.items()}}


def _in_a_process(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cliffstore.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
