"""A small store with everything in it that is made of a corpus, and what it takes to say that another equals it."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from commands import ok, write_jsonl
from damage import Damage, contents_of, kind_of
from made_up import make_probe
from quick import quick_runs
from stores import VOLATILE, assert_equal_stores

from cliffstore.run.origins import Origins
from cliffstore.run.progress import PIECE, Piece
from cliffstore.run.repair import RepairReport, repair_store
from cliffstore.run.verification import verify
from cliffstore.schema import DOCUMENTS
from cliffstore.store import documents, layout
from cliffstore.store.checks.findings import Finding
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import write_probe
from cliffstore.store.reader import StoreReader

PROBE, SELECTION = "rude", "steep"
WORDS = ("anchor", "apple", "basket", "blanket", "bridge", "button", "candle", "castle", "cloud", "copper")


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, text: str) -> None:
        self.told.append(text)

    def notice(self, text: str, event: str = "notice") -> None:
        self.told.append(text)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, piece: Piece = PIECE) -> None:
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


def build_case(tiny_model: str, folder: Path) -> Case:
    """Make two captures over several units, two probes with scores and cliffs, and their selections."""
    with quick_runs():
        return _build(tiny_model, folder)


def _build(tiny_model: str, folder: Path) -> Case:
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
        if (kind := kind_of(key)) in ("receipt", "score_receipt"):
            mine, theirs = (documents.parse(DOCUMENTS[kind], key, one) for one in (found[key], content))
            assert mine.model_dump(exclude=set(VOLATILE)) == theirs.model_dump(exclude=set(VOLATILE)), key
        else:
            assert found[key] == content, key
    assert_equal_stores(objects.url, str(case.store), objects.storage_options)


def repaired(objects: ObjectStore, case: Case) -> RepairReport:
    report = repair_store(objects, case.origins, Silent())
    assert not report.after.findings, (report.after.findings, report.failed)
    return report
