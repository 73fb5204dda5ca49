"""Knock-outs that are cut off: what was measured is kept, and the end is that of a run that nobody disturbed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import ok, run_cli
from quick import quick_runs
from told import Told

from cliffstore import Store
from cliffstore.errors import CliffstoreError, InterruptedRunError, StoreError
from cliffstore.model.knockout import Knockouts
from cliffstore.model.planted.model import PlantSettings, plant
from cliffstore.run.heads import knocking, measuring
from cliffstore.run.heads.ablate import AblateReport
from cliffstore.run.stages import extract

EXAMPLES = 9
NAME = "cut"


@dataclass(frozen=True)
class Place:
    """A store, and the folder of its model."""

    store: Path
    model: Path

    @property
    def pieces(self) -> list[Path]:
        return sorted((self.store / "heads" / NAME).glob("*.piece"))

    @property
    def result(self) -> list[bytes]:
        return [(self.store / "heads" / f"{NAME}.{kind}").read_bytes() for kind in ("parquet", "json")]

    def measure(self, told: Told | None = None, **more: object) -> AblateReport:
        given: dict[str, object] = {"positions": "all", "ablation": "mean", "group_by": "kind", "resamples": 20}
        with Store(str(self.store), reporter=told or Told()) as opened:
            return opened.ablate_heads(
                "refusal", name=NAME, heads="1:0,2:1", controls=2, model=str(self.model), **given | more
            )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    planted = plant(PlantSettings(seed=4, layers=4, heads=4, suppressors=1))
    folder = tmp_path_factory.mktemp("resumed")
    place = Place(folder / "store", folder / "model")
    planted.save(place.model, examples=EXAMPLES)
    with quick_runs():
        extract(str(place.model / "corpus.jsonl"), model=str(place.model), store=str(place.store), passes="tree",
                pass_tokens=256, yes=True)  # fmt: skip
    with Store(str(place.store), reporter=Told()) as opened:
        opened.import_probe("refusal", planted.truth.w_D, layer=planted.truth.layer, bias=float(planted.truth.b))
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    return Place(Path(shutil.copytree(made.store, tmp_path / "store")), made.model)


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each batch is a part, of a prompt or two; gives how many prompts each call scored or summed."""
    calls: list[int] = []
    scores, z_of = Knockouts.scores, Knockouts.z_of

    def scoring(self: Knockouts, prompts: list, choices: list, means: object = None) -> object:
        calls.append(len(prompts))
        return scores(self, prompts, choices, means)

    def summing(self: Knockouts, prompt: object) -> object:
        calls.append(1)
        return z_of(self, prompt)

    monkeypatch.setattr(Knockouts, "scores", scoring)
    monkeypatch.setattr(Knockouts, "z_of", summing)
    monkeypatch.setattr(measuring, "PASSES", 0)
    monkeypatch.setitem(knocking.TOKENS, "cpu", 512)
    return calls


def _cut_off(monkeypatch: pytest.MonkeyPatch, place: Place, at: int, **more: object) -> None:
    """Be interrupted while a piece is written."""
    write, written = knocking.write_piece, []

    def writing(*given: object) -> None:
        if len(written) == at:
            raise KeyboardInterrupt
        written.append(given)
        write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(knocking, "write_piece", writing)
        with pytest.raises(InterruptedRunError, match="run the same command again"):
            place.measure(**more)


def test_a_run_that_was_cut_off_goes_on_and_ends_alike(
    made: Place, place: Place, many_parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off among the means, then among the effects; every prompt is computed once for each."""
    checked = 2  # prompts that are compared with whole passes at the beginning of a run
    _cut_off(monkeypatch, place, 2)
    n_means = sum(many_parts) - checked
    assert len(place.pieces) == 2
    many_parts.clear()
    _cut_off(monkeypatch, place, EXAMPLES)
    assert sum(many_parts) > checked
    found = run_cli("verify", place.store)
    assert (found.code, "has not ended" in found.text + found.stderr) == (1, True)
    n_pieces = len(place.pieces)
    many_parts.clear()
    told = Told()
    report = place.measure(told)
    assert 0 < report.done_before < EXAMPLES
    assert sum(many_parts) - checked == EXAMPLES - report.done_before
    assert n_means < EXAMPLES < n_pieces
    assert (place.pieces, (place.store / "heads" / NAME).exists()) == ([], False)
    assert ok("verify", place.store).code == 0
    undisturbed = Place(Path(shutil.copytree(made.store, place.store.parent / "other")), made.model)
    assert undisturbed.measure().done_before == 0
    assert undisturbed.result == place.result


def test_pieces_are_of_what_was_asked_and_whole(
    place: Place, many_parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings measure anew, a condition keeps what it can, damage is removed and told."""
    usual = {"positions": "template", "ablation": "zero"}
    _cut_off(monkeypatch, place, EXAMPLES - 2, **usual)
    kept = place.pieces
    assert len(kept) == EXAMPLES - 2
    _cut_off(monkeypatch, place, 0, positions="decision", ablation="zero")
    assert place.pieces == kept
    kept[3].write_bytes(kept[3].read_bytes()[:40] + b"x" * 9 + kept[3].read_bytes()[49:])
    with pytest.raises(StoreError, match="is damaged and is removed: run the same command again"):
        place.measure(**usual)
    assert not kept[3].exists()
    assert place.measure(where="example <> 8", **usual).done_before == EXAMPLES - 2
    assert place.pieces == []
    with pytest.raises(CliffstoreError, match="pass --replace"):
        place.measure(**usual)


def test_passes_are_halved_where_memory_runs_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"positions": "template", "ablation": "zero", "resamples": 0}
    place.measure(**usual)
    with Store(str(place.store), reporter=Told()) as opened:
        expected = opened.heads(NAME)[1]["mean"].to_pylist()
    scores, told = Knockouts.scores, Told()

    def scarce(self: Knockouts, *given: object) -> object:
        if self.tokens > 500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores(self, *given)

    monkeypatch.setattr(Knockouts, "scores", scarce)
    place.measure(told, replace=True, **usual)
    assert any("passes do not fit into memory: 256 positions from now on" in one for one in told.notices), told.notices
    with Store(str(place.store), reporter=Told()) as opened:
        assert opened.heads(NAME)[1]["mean"].to_pylist() == pytest.approx(expected, abs=1e-5)
