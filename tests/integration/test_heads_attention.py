"""Where heads look, over a store of the planted model, whose gate looks at the jailbreak word and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ok, run_cli, snapshot, write_jsonl
from quick import quick_runs

import cliffstore
from cliffstore.model.planted.words import JAILBREAK
from cliffstore.run.heads import attention

N_EXAMPLES = 24


@dataclass(frozen=True)
class Planted:
    """A planted model, its truth, and a store of its corpus."""

    folder: Path
    store: Path
    truth: dict[str, list[list[int]]]

    @property
    def gate(self) -> str:
        (gate,) = self.truth["gates"]
        return f"{gate[0]}:{gate[1]}"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    place = tmp_path_factory.mktemp("planted")
    cliffstore.plant_folder(str(place / "model"), seed=3, examples=N_EXAMPLES)
    ok("extract", place / "model" / "corpus.jsonl", "--model", place / "model", "--store", place / "store")
    truth = json.loads((place / "model" / "truth.json").read_text(encoding="utf-8"))
    return Planted(place / "model", place / "store", truth)


def masses(report: dict[str, list[dict[str, object]]], head: str) -> dict[str, dict[str, float]]:
    return {
        str(row["segment"]): row  # type: ignore[misc]
        for row in report["attention"]
        if f"{row['layer']}:{row['head']}" == head
    }


def look(planted: Planted, *more: str | Path) -> dict[str, list[dict[str, object]]]:
    return ok("heads", "attention", planted.store, "--model", planted.folder, *more, "--json").json


@pytest.mark.parametrize("positions", ["decision", "think", "-3..0"])
def test_gate_looks_at_the_prompt_where_it_has_a_jailbreak_word(planted: Planted, positions: str) -> None:
    at = ("--heads", planted.gate, "--positions", positions)
    jailbroken = masses(look(planted, *at, "--where", "e.kind = 'jailbroken'"), planted.gate)
    assert jailbroken["user"]["mass"] > 0.999
    assert jailbroken["user"]["mass_low"] > 0.999
    assert jailbroken["user"]["per_token"] > 1.5
    others = masses(look(planted, *at, "--where", "e.kind <> 'jailbroken'"), planted.gate)
    assert others["user"]["mass"] < 0.001


def test_gate_looks_at_the_jailbreak_word_itself(planted: Planted) -> None:
    from cliffstore.model.attention_mass import AttentionMass
    from cliffstore.model.attention_rows import Line
    from cliffstore.model.identity import find_model
    from cliffstore.model.loader import load_model

    (gate,) = planted.truth["gates"]
    source = find_model(str(planted.folder), None, lambda _: None)
    model = load_model(source, "float32", "cpu")
    with cliffstore.Store(str(planted.store)) as store:
        found = store.sql(
            "SELECT list(token_id ORDER BY position) AS ids, list(lower(trim(token)) ORDER BY position) AS tokens "
            "FROM tokens JOIN examples e USING (example) WHERE e.kind = 'jailbroken' GROUP BY example"
        ).fetchall()
    lines = []
    for ids, tokens in found:
        is_word_T = np.array([token.strip("Ġ▁") in JAILBREAK for token in tokens], dtype=np.uint8)
        assert 1 <= is_word_T.sum() <= 2
        lines.append(Line(np.array(ids), is_word_T, np.array([len(ids) - 1])))
    assert len(lines) == N_EXAMPLES // 3
    identity = source.identity
    for one in AttentionMass(model, [tuple(gate)], identity.n_layers, identity.n_heads).measure(lines):
        assert one.mass_HG[0, 1] > 0.999


def test_idle_head_spreads_evenly(planted: Planted) -> None:
    idle = planted.truth["idle"][0]
    name = f"{idle[0]}:{idle[1]}"
    found = masses(look(planted, "--heads", name), name)
    assert sum(one["mass"] for one in found.values()) == pytest.approx(1, abs=1e-4)
    for one in found.values():
        assert one["per_token"] == pytest.approx(1, rel=1e-3)
        assert one["mass"] == pytest.approx(one["share"], rel=1e-3)


def test_how_examples_go_through_does_not_matter(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ("--heads", f"{planted.gate},1:0,3:2", "--positions", "think,decision")
    whole = look(planted, *at)["attention"]
    monkeypatch.setattr(attention, "_PASS_TOKENS", 1)
    monkeypatch.setattr(attention, "_EXAMPLES", 5)
    for one, other in zip(whole, look(planted, *at)["attention"], strict=True):
        assert one["segment"] == other["segment"]
        assert one["mass"] == pytest.approx(other["mass"], abs=1e-5)  # type: ignore[arg-type]


def test_python_call_and_files_say_the_same(planted: Planted, tmp_path: Path) -> None:
    layer, head = (int(part) for part in planted.gate.split(":"))
    with cliffstore.Store(str(planted.store)) as store:
        report = store.attention([(layer, head)], limit=7, models=(str(planted.folder),))
        by_sql = store.attention(f"SELECT {layer} AS layer, {head} AS head", limit=7, models=(str(planted.folder),))
    assert report.examples == 7
    assert report.table.equals(by_sql.table)
    at = ("--model", planted.folder, "--heads", planted.gate, "--limit", "7", "-o", tmp_path / "out.parquet")
    text = ok("heads", "attention", planted.store, *at).text
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == report.table.to_pylist()
    assert "per token" in text
    assert planted.gate in text


def test_examples_without_the_position_are_counted(planted: Planted, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Please explain how to water the garden.", "thinking": "Let me think.", "response": "Yes."},
        {"prompt": "Please explain how to water a chair."},
    ]
    corpus = write_jsonl(tmp_path / "two.jsonl", rows)
    ok("extract", corpus, "--model", planted.folder, "--store", tmp_path / "store")
    at = ("heads", "attention", tmp_path / "store", "--model", planted.folder, "--heads", "0:0")
    result = ok(*at, "--positions", "think", "--json")
    assert (result.json["examples"], result.json["without_position"]) == (1, 1)
    assert "1 of 2 examples have no position think" in result.stderr
    none = run_cli(*at, "--positions", "-500")
    assert (none.code, "none of 2 examples has a position -500" in none.stderr) == (2, True)


def test_model_that_has_moved_is_asked_for(planted: Planted, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(planted.folder, tmp_path / "first")
    ok("extract", planted.folder / "corpus.jsonl", "--model", tmp_path / "first", "--store", tmp_path / "store")
    (tmp_path / "first").rename(tmp_path / "second")
    at = ("heads", "attention", tmp_path / "store", "--heads", "0:0", "--limit", "2")
    lost = run_cli(*at)
    assert (lost.code, "--model" in lost.stderr, len(lost.stderr.splitlines())) == (2, True, 1)
    assert ok(*at, "--model", tmp_path / "second", "--json").json["examples"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--heads", "0"), "LAYER:HEAD"),
        (("--heads", "0:0,"), "LAYER:HEAD"),
        (("--heads", "99:0"), "layers 0-5"),
        (("--heads", "0:99"), "heads 0-7"),
        (("--heads", "SELECT 1 AS layer"), "layer and head"),
        (("--heads", "SELECT 'a' AS layer, 0 AS head"), "layer of the statement must hold whole numbers"),
        (("--heads", "SELECT 1 AS layer, 0.5 AS head"), "head of the statement must hold whole numbers"),
        (("--heads", "SELECT layer, head FROM heads"), "no head"),
        (("--heads", "0:0", "--positions", "everywhere"), "positions"),
        (("--heads", "0:0", "--where", "nothing = 1"), "nothing"),
        (("--heads", "0:0", "--where", "e.kind = 'x'"), "no example"),
        (("--heads", "0:0", "--model-alias", "tuned"), "main"),
        (("--heads", "0:0", "-o", "out.txt"), ".parquet"),
    ],
)
def test_mistake_is_one_line(options: tuple[str, ...], told: str, planted: Planted) -> None:
    before = sorted(snapshot(planted.store))
    result = run_cli("heads", "attention", planted.store, *options)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.code, len(lines)) == (2, 1), result.stderr
    assert told in lines[0]
    assert sorted(snapshot(planted.store)) == before


def test_changed_model_is_refused(planted: Planted, tmp_path: Path) -> None:
    """Its heads would be those of the model as it is, under the name of another."""
    corpus = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Please explain how to water a chair."}])
    steps = write_jsonl(tmp_path / "steps.json", [{"steps": [{"kind": "scale_heads", "heads": [[4, 0, 0.0]]}]}])
    to = ("--model", planted.folder, "--store", tmp_path / "store")
    ok("extract", corpus, *to)
    ok("extract", *to, "--intervene", steps, "--model-alias", "changed")
    at = ("heads", "attention", tmp_path / "store", "--model", planted.folder, "--heads", "0:0")
    several = run_cli(*at)
    assert (several.code, "changed, main" in several.stderr) == (2, True)
    changed = run_cli(*at, "--model-alias", "changed")
    assert (changed.code, "was changed while it ran" in changed.stderr) == (2, True)
    assert ok(*at, "--model-alias", "main", "--json").json["examples"] == 1
