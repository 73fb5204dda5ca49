"""From corpus to plan: which positions, which size of units, and what is refused before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import write_jsonl

from cliffstore.config import load_config
from cliffstore.errors import ConfigError, CorpusError, StoreError
from cliffstore.model.identity import ModelSource, find_model
from cliffstore.plan.sorting import NO_POSITION
from cliffstore.records import PlannedUnit
from cliffstore.run import planning
from cliffstore.run.progress import LineReporter
from cliffstore.run.work import find_work
from cliffstore.schema import PlanDocument
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader, read_manifest

LONG = "Why is the sky blue and the grass green? " * 40
ROWS = [
    {"id": "plain", "prompt": "Say hello.", "response": "Hello."},
    {"id": "thinks", "prompt": "Say no.", "thinking": "I will refuse.", "response": "No."},
    {"id": "long", "prompt": LONG},
]


@dataclass(frozen=True)
class Made:
    """A plan and its tables."""

    document: PlanDocument
    unit_rows: int
    units: tuple[PlannedUnit, ...]
    tokens: list[dict[str, object]]
    skipped: list[dict[str, object]]


@dataclass(frozen=True)
class Desk:
    """A corpus, a model and a place for a store."""

    source: ModelSource
    folder: Path

    def plan(self, *rows: dict[str, str], corpus: str | None = None, **options: object) -> Made:
        """Plan these rows, and begin the store with the plan if there is none."""
        path = corpus or str(write_jsonl(self.folder / "corpus.jsonl", rows or ROWS))
        store = str(self.folder / "store")
        config = load_config(None, {"corpus": (path,), "model": "tiny", "store": store, **options})
        objects = ObjectStore(store)
        held = StoreReader(store) if read_manifest(objects) is not None else None
        with find_work(config, self.source, held, 1_000, LineReporter()) as work:
            if held is None:
                work.write(objects)
            (planned,) = work.planned
            tokens = [row for unit in work.units for row in work.tokens(unit).to_pylist()]
            skipped = tables.read(objects, layout.skipped_table(planned.document.plan)).to_pylist() if not held else []
            unit_rows = planned.manifest.chunking.unit_rows
            return Made(planned.document, unit_rows, planned.units, tokens, skipped)


@pytest.fixture
def desk(tiny_model: str, tmp_path: Path) -> Desk:
    return Desk(find_model(tiny_model, None, print), tmp_path)


def test_positions_are_checked_before_anything_is_read(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="decission"):
        desk.plan(corpus="no-such-file.jsonl", positions="decission")


def test_only_chosen_positions_have_rows(desk: Desk) -> None:
    plan = desk.plan(positions="decision")
    counts = plan.document.counts
    assert plan.document.settings["positions"] == "decision"
    assert counts.rows == counts.examples == len(ROWS)
    assert counts.rows < sum(unit.n_nodes for unit in plan.units) < counts.tokens
    assert [row["to_decision"] == 0 for row in plan.tokens] == [row["row"] is not None for row in plan.tokens]


def test_row_without_a_position_to_store_is_skipped_and_told(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    plan = desk.plan(positions="think")
    assert plan.document.counts.examples == 1
    assert {row["id"]: row["reason"] for row in plan.skipped} == {"plain": NO_POSITION, "long": NO_POSITION}
    assert f"2 rows skipped: 2 {NO_POSITION}" in capsys.readouterr().err


def test_corpus_without_a_position_to_store_is_refused(desk: Desk) -> None:
    with pytest.raises(CorpusError, match=f"every row of the corpus was skipped: 2 {NO_POSITION}"):
        desk.plan(ROWS[0], ROWS[2], positions="think")
    assert not (desk.folder / "store").exists()


@pytest.mark.parametrize(("asked", "got"), [(None, 1_024), (512, 512), (513, 768), (256, 512)])
def test_unit_rows_are_whole_chunks_and_hold_the_longest_example(desk: Desk, asked: int | None, got: int) -> None:
    """The longest example has some 400 tokens. The command that began the store goes on with it."""
    plan = desk.plan(unit_rows=asked)
    assert plan.unit_rows == got
    assert desk.plan(unit_rows=asked).document.digest == plan.document.digest
    assert desk.plan().document.digest == plan.document.digest


def test_unit_rows_need_to_hold_stored_positions_only(desk: Desk) -> None:
    assert desk.plan(unit_rows=256, positions="decision").unit_rows == 256


@pytest.mark.parametrize("asked", [256, 1_024])
def test_other_unit_rows_than_those_of_the_store_are_refused(desk: Desk, asked: int) -> None:
    desk.plan(unit_rows=768)
    with pytest.raises(StoreError, match=r"store .* has units of 768 rows: leave --unit-rows out"):
        desk.plan(unit_rows=asked)


def test_example_that_does_not_fit_into_the_store_is_refused(desk: Desk) -> None:
    desk.plan(ROWS[0], unit_rows=256)
    with pytest.raises(StoreError, match="256 rows; give another --store"):
        desk.plan()
    assert desk.plan(positions="last:9", append=True).document.counts.rows > 9


def test_plan_is_the_same_made_by_several_processes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"r{n}", "prompt": f"Say {n % 7} and {n}.", "note": n if n % 9 else "x"} for n in range(60)]
    rows += [{"id": "bad", "prompt": ""}, {"id": "thinks", "prompt": "Say no.", "response": "<think>Hm.</think>No."}]
    alone = desk.plan(*rows)
    monkeypatch.setattr(planning, "available_cpus", lambda: 2)
    monkeypatch.setattr("cliffstore.run.parallel._BLOCKS_HERE", 1)
    for module in ("cliffstore.corpus.files", "cliffstore.corpus.sources"):
        monkeypatch.setattr(f"{module}.BLOCK_ROWS", 8)
    apart = Desk(desk.source, desk.folder / "apart")
    apart.folder.mkdir()
    assert apart.plan(corpus=str(desk.folder / "corpus.jsonl")) == alone
