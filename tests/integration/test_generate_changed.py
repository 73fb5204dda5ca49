"""`cliffstore generate --intervene` on a planted model: without its suppressors it refuses what it complied with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import write_jsonl
from generated import Row, generate, models_loaded_once, rows_of
from told import Told

from cliffstore import Store
from cliffstore.model.planted.model import Planted, PlantSettings, plant
from cliffstore.run.stages import extract


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with models_loaded_once():
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, Path]:
    folder = tmp_path_factory.mktemp("planted") / "model"
    made = plant(PlantSettings(seed=4, layers=4, heads=6, suppressors=2))
    made.save(folder)
    return made, folder


@pytest.fixture(scope="module")
def corpus(planted: tuple[Planted, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = rows_of(planted[1] / "corpus.jsonl")[:12]
    assert len({row["kind"] for row in rows}) == 3
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "rows.jsonl", rows)


def steps(planted: Planted, positions: str, heads: tuple[tuple[int, int], ...] | None = None) -> dict[str, object]:
    chosen = planted.truth.suppressors if heads is None else heads
    return {"steps": [{"kind": "scale_heads", "heads": [list(head) for head in chosen], "positions": positions}]}


def answers(
    planted: tuple[Planted, Path], corpus: Path, folder: Path, wish: dict[str, object], *more: str
) -> list[Row]:
    file, out = folder / "changes.json", folder / f"out-{len(list(folder.iterdir()))}.jsonl"
    file.write_text(json.dumps(wish))
    result = generate(corpus, planted[1], out, "--intervene", file, *more)
    assert result.code == 0, result.stderr
    return rows_of(out)


@pytest.mark.parametrize("thinking", ["fixed", "regenerated"])
@pytest.mark.parametrize("positions", ["all", "template,response", "decision"])
def test_suppressors_off(
    thinking: str, positions: str, planted: tuple[Planted, Path], corpus: Path, tmp_path: Path
) -> None:
    """At the template's positions too, some of which the model writes itself where thinking is generated."""
    more = ("--regenerate-thinking",) if thinking == "regenerated" else ()
    truth = planted[0].truth
    for size in ("5", "16"):
        found = answers(planted, corpus, tmp_path, steps(planted[0], positions), *more, "--batch-size", size)
        for row in found:
            wanted = truth.compliance if row["kind"] == "benign" else truth.refusal
            assert row["response"] == wanted, (row["kind"], row["prompt"])


def test_changes_elsewhere_change_nothing(planted: tuple[Planted, Path], corpus: Path, tmp_path: Path) -> None:
    plain = generate(corpus, planted[1], tmp_path / "plain.jsonl", "--regenerate-thinking")
    assert plain.code == 0
    for number, wish in enumerate((steps(planted[0], "user"), steps(planted[0], "all", planted[0].truth.idle[:3]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = answers(planted, corpus, folder, wish, "--regenerate-thinking")
        assert found == rows_of(tmp_path / "plain.jsonl")


def test_other_interventions_are_other_settings(planted: tuple[Planted, Path], corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "changes.json"
    file.write_text(json.dumps(steps(planted[0], "all")))
    at = (corpus, planted[1], tmp_path / "out.jsonl", "--limit", "2")
    assert generate(*at, "--intervene", file).code == 0
    refused = generate(*at)
    assert (refused.code, "interventions" in refused.stderr) == (2, True)
    file.write_text(json.dumps({"steps": [{"kind": "scale_heads", "heads": [[99, 0]]}]}))
    wrong = generate(corpus, planted[1], tmp_path / "none.jsonl", "--intervene", file)
    assert (wrong.code, "layer 99" in wrong.stderr, (tmp_path / "none.jsonl").exists()) == (2, True, False)


def test_what_a_store_has_is_named_with_the_store(planted: tuple[Planted, Path], corpus: Path, tmp_path: Path) -> None:
    """`generate` is of no store."""
    store = tmp_path / "store"
    extract(str(planted[1] / "corpus.jsonl"), model=str(planted[1]), store=str(store), yes=True)
    with Store(str(store), reporter=Told()) as opened:
        opened.import_probe("refusal", planted[0].truth.w_D, layer=planted[0].truth.layer)
        opened.trace_heads("refusal", where="kind = 'jailbroken'", name="shares", model=str(planted[1]), resamples=0)
    folder = tmp_path / "out"
    folder.mkdir()
    table: Row = {"kind": "scale_heads", "top": len(planted[0].truth.suppressors)}
    found = answers(planted, corpus, folder, {"steps": [table | {"table": f"{store}/heads/shares"}]})
    assert {row["response"] for row in found if row["kind"] == "jailbroken"} == {planted[0].truth.refusal}
    for step, said in ((table | {"table": "shares"}, "STORE/heads/shares"),
                       ({"kind": "ablate", "direction": "refusal"}, "STORE/probes/refusal")):  # fmt: skip
        file = tmp_path / "wrong.json"
        file.write_text(json.dumps({"steps": [step]}))
        wrong = generate(corpus, planted[1], folder / "none.jsonl", "--intervene", file)
        assert (wrong.code, said in wrong.stderr) == (2, True)
