"""Whatever is damaged in a store, `verify` names it, and `--repair` makes the store what it was."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import contents_of, draw, draw_some, kind_of
from quick import quick_runs
from whole_store import Case, Silent, assert_undisturbed, findings_of, unnamed

from cliffstore.run.repair import repair_store
from cliffstore.run.verification import verify
from cliffstore.store.objects import ObjectStore

N_DAMAGES, N_BATCHES = 200, 10


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def test_whole_store_is_found_whole(whole: Case) -> None:
    report = verify(ObjectStore(str(whole.store)), Silent())
    assert not report.findings
    n_units = report.units // 2
    assert (report.units, report.arrays, report.scores) == (2 * n_units, 4 * n_units, 2 * n_units)
    assert (report.units_missing, report.units_unread) == (0, 0)


def test_every_damage_is_found(whole: Case, tmp_path: Path) -> None:
    objects = whole.copy(tmp_path)
    contents = contents_of(objects)
    seed = random.randrange(1 << 32)
    numbers = random.Random(seed)
    missed, kinds = [], set()
    for number in range(N_DAMAGES):
        damage = draw(contents, numbers)
        kinds |= {kind_of(key) for key in damage.keys}
        damage.apply(objects)
        if keys := unnamed(damage, findings := findings_of(objects)):
            missed.append(f"damage {number}: {damage.what}; not named: {sorted(keys)} in {findings}")
        damage.undo(objects, contents)
    assert not missed, f"seed {seed}: {missed}"
    assert len(kinds) >= 20
    assert not findings_of(objects)


def test_every_damage_is_repaired(whole: Case, tmp_path: Path) -> None:
    contents = contents_of(ObjectStore(str(whole.store)))
    seed = random.randrange(1 << 32)
    numbers = random.Random(seed)
    for batch in range(N_BATCHES):
        folder = tmp_path / str(batch)
        folder.mkdir()
        objects = whole.copy(folder)
        damages = draw_some(contents, numbers, N_DAMAGES // N_BATCHES)
        for damage in damages:
            damage.apply(objects)
        said = f"seed {seed}, batch {batch}: {[damage.what for damage in damages]}"
        report = repair_store(objects, whole.origins, Silent())
        assert not report.after.findings, (said, report.after.findings, report.failed)
        try:
            assert_undisturbed(objects, whole)
        except AssertionError as error:
            raise AssertionError(said) from error
        shutil.rmtree(folder)
