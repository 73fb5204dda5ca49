"""What scans read: the columns and row groups that a statement needs, in bytes that are counted."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from vector_store import VectorStore

from cliffstore.run.store import Store
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore

MADE = VectorStore(n_units=3, unit_rows=65_536, width=1, n_layers=1, tokens=2)
FOOTER = 64 << 10
"""What Arrow reads of the end of a file at once, and what a footer may take."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "store"
    MADE.make(ObjectStore(str(folder)))
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that is read of tables."""
    sizes: list[int] = []
    range_of = tables._PatientFile._range

    def counted(file: tables._PatientFile, first: int, last: int) -> bytes:
        content = range_of(file, first, last)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(tables._PatientFile, "_range", counted)
    return sizes


def bytes_of(folder: Path, kind: str, columns: set[str], groups: set[int] | None = None) -> int:
    """Return the bytes that some columns of a plan's tables take."""
    total = 0
    for key in ObjectStore(str(folder)).list(layout.PLANS):
        if f"/{kind}/" in key:
            metadata = pq.read_metadata(folder / key)
            for group in range(metadata.num_row_groups):
                for index in range(metadata.num_columns):
                    chunk = metadata.row_group(group).column(index)
                    if chunk.path_in_schema in columns and (groups is None or group in groups):
                        total += chunk.total_compressed_size
    return total


@pytest.mark.parametrize(
    ("statement", "kind", "columns", "groups", "rows"),
    [
        ("SELECT sum(row) FROM tokens WHERE to_decision = 0", "tokens", {"row", "to_decision"}, None, 1),
        ("SELECT row FROM tokens WHERE to_decision = 0", "tokens", {"row", "to_decision"}, None, MADE.n_examples),
        # DuckDB counts rows of the first column.
        ("SELECT count(*) FROM tokens WHERE token_id = 1", "tokens", {"token_id", "example"}, None, 1),
        # An example is in one unit, whose row group alone is read.
        ("SELECT row FROM tokens WHERE example = 40000", "tokens", {"row", "example"}, {1}, 2),
        ("SELECT label FROM examples WHERE example BETWEEN 0 AND 99", "examples", {"label", "example"}, {0}, 100),
    ],
)
def test_only_what_is_needed_is_read(
    statement: str, kind: str, columns: set[str], groups: set[int] | None, rows: int, folder: Path, read: list[int]
) -> None:
    with Store(str(folder)) as store:
        assert store.catalog.names()
        opening, read[:] = sum(read), []
        assert len(store.sql(statement).fetchall()) == rows
    minimum = bytes_of(folder, kind, columns, groups)
    # Columns that lie close together are read in one request: what is between them is less than a request's worth.
    between = tables._HOLE_BYTES * (len(columns) - 1)
    assert minimum <= sum(read) <= minimum * 1.1 + FOOTER + between
    whole = sum((folder / key).stat().st_size for key in ObjectStore(str(folder)).list(layout.PLANS))
    assert opening <= FOOTER
    assert sum(read) < whole


def test_the_plan_shows_what_is_pushed_down(folder: Path) -> None:
    with Store(str(folder)) as store:
        (plan,) = store.sql("EXPLAIN SELECT row FROM tokens WHERE to_decision = 0").fetchall()
    assert "Filters" in plan[1]
    assert "Projections: row" in plan[1]


def test_views_show_what_is_committed_and_no_more(folder: Path, tmp_path: Path) -> None:
    """Tables that no plan names, and receipts of no capture, are not there, though they lie in the store."""
    import shutil

    store = Path(shutil.copytree(folder, tmp_path / "store"))
    stray = next(store.glob("plans/*/tokens/*.parquet"))
    (store / "plans" / "plan-not-committed" / "tokens").mkdir(parents=True)
    shutil.copy(stray, store / "plans" / "plan-not-committed" / "tokens" / stray.name)
    (store / "receipts" / "capture-unknown").mkdir()
    shutil.copy(next(store.glob("receipts/*/unit-*.json")), store / "receipts" / "capture-unknown" / "unit-000009.json")
    next(store.glob("receipts/capture-of-main/*.json")).unlink()
    with Store(str(store)) as opened:
        assert opened.sql("SELECT count(*) FROM tokens").fetchall() == [(MADE.n_examples * 2,)]
        assert opened.sql("SELECT extracted, count(*) FROM units GROUP BY 1 ORDER BY 1").fetchall() == [
            (False, 1),
            (True, 2),
        ]
        missing = "SELECT count(*) FROM tokens WHERE to_decision = 0 AND resid_post(row, 0) IS NULL"
        assert opened.sql(missing).fetchall() == [(MADE.examples_per_unit,)]
