"""Looking up whether shards are there: once for each, and not one by one where they are many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cliffstore.errors import DamagedStoreError
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.shards import Grid, Piece, ShardCheck

KEY = layout.array("main", "resid_post", 0)
N_UNITS, UNIT_ROWS = 40, 8
GRID = Grid(N_UNITS * UNIT_ROWS, 4, UNIT_ROWS, (2,), np.dtype(np.float32))


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    store = ObjectStore(str(tmp_path / "store"))
    for unit in range(N_UNITS):
        store.put(layout.shard(KEY, unit, 2), b"x")
    return store


@pytest.fixture
def asked(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a size and how often a listing was asked for."""
    counts: Counter[str] = Counter()
    for name in ("size", "sizes"):
        usual = getattr(objects, name)
        monkeypatch.setattr(objects, name, lambda key, usual=usual, name=name: (counts.update([name]), usual(key))[1])
    return counts


def rows(first: int, last: int) -> Piece:
    return first, np.zeros((last - first, 2), dtype=np.float32)


def test_few_shards_are_asked_for_and_many_are_listed(objects: ObjectStore, asked: Counter[str]) -> None:
    check = ShardCheck(objects)
    check.check(KEY, GRID, [rows(0, 3), rows(7, 9)])
    assert asked == {"size": 2}
    check.check(KEY, GRID, [rows(0, 16)])
    assert asked == {"size": 2}
    check.check(KEY, GRID, [rows(0, GRID.n_rows)])
    assert asked == {"size": 2, "sizes": 1}
    check.check(KEY, GRID, [rows(0, GRID.n_rows)])
    assert asked == {"size": 2, "sizes": 1}


@pytest.mark.parametrize("damage", ["missing", "empty"])
@pytest.mark.parametrize("last_unit", [26, N_UNITS])
def test_a_shard_that_is_not_there_is_named(damage: str, last_unit: int, objects: ObjectStore) -> None:
    shard = layout.shard(KEY, 25, 2)
    objects.delete(shard)
    if damage == "empty":
        objects.put(shard, b"")
    check = ShardCheck(objects)
    check.check(KEY, GRID, [rows(0, 25 * UNIT_ROWS), rows(26 * UNIT_ROWS, GRID.n_rows)])
    first = 25 if last_unit == 26 else 0
    for _ in range(2):
        with pytest.raises(DamagedStoreError, match=shard):
            check.check(KEY, GRID, [rows(first * UNIT_ROWS, last_unit * UNIT_ROWS)])


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (GRID.n_rows - 1, GRID.n_rows + 1), (-5, -2)])
def test_rows_outside_are_refused(first: int, last: int, objects: ObjectStore, asked: Counter[str]) -> None:
    with pytest.raises(IndexError, match="rows 0-319"):
        ShardCheck(objects).check(KEY, GRID, [rows(first, last)])
    assert not asked
