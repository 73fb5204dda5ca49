"""Whatever is damaged in a store, `verify` names it, and `--repair` makes the store what it was."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ok, run_cli, write_jsonl
from damage import Damage, contents_of, draw, draw_some, kind_of
from made_up import make_probe
from quick import quick_runs
from servers import Storage
from stores import VOLATILE, assert_equal_stores

from cliffstore.run.origins import Origins
from cliffstore.run.repair import RepairReport, repair_store
from cliffstore.run.verification import verify
from cliffstore.schema import Receipt
from cliffstore.store import documents, layout
from cliffstore.store.checks.findings import Action, Finding
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import write_probe
from cliffstore.store.reader import StoreReader

N_DAMAGES, N_BATCHES = 200, 10
PROBE, SELECTION = "rude", "steep"
WORDS = "anchor apple basket blanket bridge button candle castle cloud copper desert engine feather forest".split()


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, text: str) -> None:
        self.told.append(text)

    def notice(self, text: str) -> None:
        self.told.append(text)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, detail: str = "") -> None:
        pass

    def end(self) -> None:
        pass

    def ask(self, question: str) -> bool | None:
        return None


@dataclass(frozen=True)
class Case:
    """A store that nobody disturbed, and where its model is."""

    store: Path
    model: str
    corpus: Path

    def copy(self, folder: Path) -> ObjectStore:
        return ObjectStore(str(shutil.copytree(self.store, folder / "store")))

    @property
    def origins(self) -> Origins:
        return Origins(models=(self.model,))


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def case(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two captures over several units, a probe with scores and cliffs, a selection."""
    folder = tmp_path_factory.mktemp("damage")
    numbers = random.Random(0)
    rows: list[dict[str, object]] = []
    for number in range(40):
        row = {"id": f"w{number:02d}", "prompt": " ".join(numbers.choices(WORDS, k=12)), "topic": number % 5}
        if number % 4:
            row |= {name: " ".join(numbers.choices(WORDS, k=8)) for name in ("thinking", "response")}
        rows.append(row)
    corpus, store = write_jsonl(folder / "words.jsonl", rows), folder / "store"
    command = ["extract", corpus, "--model", tiny_model, "--store", store, "--unit-rows", "256", "--pass-tokens", "64"]
    ok(*command, "--layers", "0-1")
    ok(*command, "--layers", "2", "--sites", "resid_post,final_norm")
    capture = next(one for one in StoreReader(str(store)).captures() if one.arrays[0].layer == 0)
    for number, probe in enumerate((PROBE, "other")):
        write_probe(ObjectStore(str(store)), *make_probe(capture, probe, seed=number), replace=False)
        ok("score", store, "--probe", probe)
        ok("cliff", store, "--probe", probe)
        ok("select", store, "--name", f"{SELECTION}-{probe}", "--probe", probe, "--top", "5", "--where", "topic > 0")
    assert len({layout.unit_of(key) for key in ObjectStore(str(store)).list(layout.RECEIPTS)}) >= 5
    return Case(store, tiny_model, corpus)


def findings_of(objects: ObjectStore) -> tuple[Finding, ...]:
    return verify(objects, Silent()).findings


def unnamed(damage: Damage, findings: tuple[Finding, ...]) -> set[str]:
    """Return the damaged objects that no finding names."""
    return {key for key in damage.keys if not any(key == one.key or key in one.problem for one in findings)}


def assert_undisturbed(objects: ObjectStore, case: Case) -> None:
    """The same objects, the same bytes; of receipts, all that lasts."""
    found, expected = contents_of(objects), contents_of(ObjectStore(str(case.store)))
    assert sorted(found) == sorted(expected)
    for key, content in expected.items():
        if kind_of(key) == "receipt":
            mine, theirs = (documents.parse(Receipt, key, one) for one in (found[key], content))
            assert mine.model_dump(exclude=set(VOLATILE)) == theirs.model_dump(exclude=set(VOLATILE)), key
        else:
            assert found[key] == content, key
    assert_equal_stores(objects.url, str(case.store), objects.storage_options)


def repaired(objects: ObjectStore, case: Case) -> RepairReport:
    report = repair_store(objects, case.origins, Silent())
    assert not report.after.findings, (report.after.findings, report.failed)
    return report


def test_whole_store_is_found_whole(case: Case) -> None:
    report = verify(ObjectStore(str(case.store)), Silent())
    assert not report.findings
    n_units = report.units // 2
    assert (report.units, report.arrays, report.scores) == (2 * n_units, 4 * n_units, 2 * n_units)
    assert (report.units_missing, report.units_unread) == (0, 0)


def test_every_damage_is_found(case: Case, tmp_path: Path) -> None:
    objects = case.copy(tmp_path)
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


def test_every_damage_is_repaired(case: Case, tmp_path: Path) -> None:
    contents = contents_of(ObjectStore(str(case.store)))
    seed = random.randrange(1 << 32)
    numbers = random.Random(seed)
    for batch in range(N_BATCHES):
        folder = tmp_path / str(batch)
        folder.mkdir()
        objects = case.copy(folder)
        damages = draw_some(contents, numbers, N_DAMAGES // N_BATCHES)
        for damage in damages:
            damage.apply(objects)
        said = f"seed {seed}, batch {batch}: {[damage.what for damage in damages]}"
        report = repair_store(objects, case.origins, Silent())
        assert not report.after.findings, (said, report.after.findings, report.failed)
        try:
            assert_undisturbed(objects, case)
        except AssertionError as error:
            raise AssertionError(said) from error
        shutil.rmtree(folder)
