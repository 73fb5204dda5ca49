"""A unit with NaN fails by name, the other units are stored, and the user may store it as it is.

A masked key has the weight zero, and zero times NaN is NaN: in a pass that several examples share, one bad token
spoils vectors of examples that do not have it. Neither the message nor what is stored may be misled by that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import add_probe
from quick import quick_runs
from transformers import AutoModelForCausalLM, AutoTokenizer

from cliffstore import Store
from cliffstore.cli.main import main

POISON = " zebra"
BAD = "p40"
PROBE = "made-up"
N_PROMPTS = 44

Passes = list[str]
TREE: Passes = ["--passes", "tree"]
PADDED: Passes = ["--passes", "padded"]
NARROW: Passes = ["--passes", "tree", "--pass-tokens", "40"]
"""Passes over a piece of an example, so that NaN also comes from the path."""


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@dataclass(frozen=True)
class Poisoned:
    """A model whose embedding of one word is NaN, and a corpus of several units with the word in one example."""

    model: str
    corpus: str
    healthy: str

    def command(self, store: Path, *more: str) -> list[str]:
        return ["extract", self.corpus, "--model", self.model, "--store", str(store), "--json", *more]


@pytest.fixture(scope="module")
def poisoned(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    """The word stands in the middle of one of the examples that begin with the same ten words."""
    folder = tmp_path_factory.mktemp("poisoned")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    token = tokenizer(POISON, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token[-1]] = float("nan")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = [[str((group + 1) * word) for word in range(20)] for group in range(N_PROMPTS // 4)]
    rows = []
    for number in range(N_PROMPTS):
        own = [*words[number // 4][:10], f"then{number}", *words[number // 4][10:]]
        if f"p{number}" == BAD:
            own.insert(15, POISON.strip())
        rows.append({"id": f"p{number}", "prompt": f"Group {number // 4}: " + " ".join(own)})
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Poisoned(str(folder / "model"), str(corpus), tiny_model)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def vectors_by_place(folder: Path, layer: int) -> dict[tuple[str, int], np.ndarray]:
    """Return (id, position) -> vector of every token."""
    with Store(str(folder)) as store:
        places = store.sql("SELECT id, position, row FROM tokens JOIN examples USING (example)").fetchall()
        vectors = store.vectors("resid_post", layer, np.array([row for *_, row in places]))
    return {(example, position): vector for (example, position, _), vector in zip(places, vectors, strict=True)}


def spoiled(model: str, store: Path) -> set[tuple[str, int]]:
    """Return (id, position) from the bad token on, of every example that has one."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    token = tokenizer(POISON, add_special_tokens=False)["input_ids"][-1]
    with Store(str(store)) as opened:
        found = opened.sql(
            "SELECT e.id, t.position FROM tokens t JOIN examples e USING (example) JOIN "
            f"(SELECT example, min(position) AS first FROM tokens WHERE token_id = {token} GROUP BY 1) USING (example) "
            "WHERE t.position >= first"
        ).fetchall()
    return set(found)


@pytest.mark.parametrize("passes", [[], TREE, NARROW, PADDED], ids=["auto", "tree", "narrow", "padded"])
def test_nan_fails_its_unit_and_no_other(
    poisoned: Poisoned, passes: Passes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_path = tmp_path / "store"
    command = poisoned.command(store_path, *passes)
    assert main(command) == 1
    error = error_of(capsys)
    for part in (f"example {BAD};", "resid_post", "layer 0", "--allow-nonfinite"):
        assert part in error
    with Store(str(store_path)) as store:
        units = store.sql("SELECT extracted, error FROM units").fetchall()
    assert len(units) >= 3
    assert sum(not extracted for extracted, _ in units) == 1
    assert [(f"example {BAD};" in problem) for extracted, problem in units if not extracted] == [True]

    assert main([*command, "--allow-nonfinite"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["units_done_now"] == 1
    with Store(str(store_path)) as store:
        assert store.sql("SELECT count(*) FROM units WHERE error IS NOT NULL").fetchall() == [(0,)]


@pytest.fixture(scope="module")
def healthy(poisoned: Poisoned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the same corpus from the model without the bad embedding."""
    store = tmp_path_factory.mktemp("healthy") / "store"
    command = ["extract", poisoned.corpus, "--model", poisoned.healthy, "--store", str(store), *PADDED]
    assert main(command) == 0
    return store


@pytest.mark.parametrize("passes", [TREE, NARROW, PADDED], ids=["tree", "narrow", "padded"])
def test_only_what_follows_the_bad_token_is_nan(
    poisoned: Poisoned, healthy: Path, passes: Passes, tmp_path: Path
) -> None:
    """Every other vector is the one that the model without the bad embedding has there."""
    assert main(poisoned.command(tmp_path / "store", *passes, "--allow-nonfinite")) == 0
    expected = spoiled(poisoned.model, tmp_path / "store")
    assert {example for example, _ in expected} == {BAD}
    for layer in (0, 3):
        found, plain = (vectors_by_place(folder, layer) for folder in (tmp_path / "store", healthy))
        assert {place for place, vector in found.items() if not np.isfinite(vector).all()} == expected
        fine = sorted(found.keys() - expected)
        np.testing.assert_allclose(
            np.stack([found[place] for place in fine]), np.stack([plain[place] for place in fine]), rtol=1e-4, atol=1e-5
        )


def test_the_example_is_named_that_has_it_and_not_one_that_shares_its_prefix(
    poisoned: Poisoned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four of a group begin alike, up to the word before their number; in one pass NaN reaches each of them."""
    command = poisoned.command(tmp_path / "store", "--passes", "tree", "--pass-tokens", "100000")
    assert main(command) == 1
    assert f"in example {BAD};" in error_of(capsys)
    with Store(str(tmp_path / "store")) as store:
        shared = store.sql(
            "SELECT count(DISTINCT e.id) FROM tokens t JOIN examples e USING (example) WHERE t.row IN "
            f"(SELECT row FROM tokens JOIN examples USING (example) WHERE id = '{BAD}') AND e.id != '{BAD}'"
        ).fetchall()
    assert shared[0][0] >= 3


@pytest.mark.parametrize("passes", [TREE, PADDED], ids=["tree", "padded"])
def test_scores_only(poisoned: Poisoned, passes: Passes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same example, layer and site are named, and the unit gets no scores unless NaN is allowed."""
    stored, scored = tmp_path / "stored", tmp_path / "scored"
    assert main(poisoned.command(stored, *passes)) == 1
    named = error_of(capsys).partition("NaN or Inf")[2]
    assert f"example {BAD};" in named
    command = poisoned.command(scored, *passes, "--probe", add_probe(stored, PROBE))
    assert main(command) == 1
    error = error_of(capsys)
    assert error.partition("NaN or Inf")[2] == named
    with Store(str(scored)) as store:
        units = [row[0] for row in store.sql("SELECT unit FROM units ORDER BY unit").fetchall()]
        failed = store.sql("SELECT unit, extracted, error FROM units WHERE error IS NOT NULL").fetchall()
        without = store.sql("SELECT DISTINCT unit FROM examples WHERE example NOT IN (SELECT example FROM scores)")
        assert without.fetchall() == [(failed[0][0],)]
    assert [(extracted, f"example {BAD};" in problem) for _, extracted, problem in failed] == [(False, True)]
    files = {path.name for path in (scored / "scores" / PROBE).iterdir()}
    assert files == {f"unit-{unit:06d}.{end}" for unit in units if unit != failed[0][0] for end in ("parquet", "json")}

    assert main([*command, "--allow-nonfinite"]) == 0
    assert json.loads(capsys.readouterr().out)["units_done_now"] == 1
    with Store(str(scored)) as store:
        assert store.sql("SELECT count(*) FROM units WHERE error IS NOT NULL").fetchall() == [(0,)]
        bad = store.sql("SELECT id, position FROM scores JOIN examples USING (example) WHERE isnan(score)").fetchall()
        n_scores = store.sql("SELECT count(*) FROM scores").fetchall()
        assert n_scores == store.sql("SELECT count(*) FROM tokens").fetchall()
    assert set(bad) == spoiled(poisoned.model, scored)


def test_without_replaced_attention_the_right_example_is_named_too(
    poisoned: Poisoned, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that keeps the attention it was loaded with runs padded passes, where lines are apart."""
    monkeypatch.setattr("cliffstore.extract.runner.disagreement", lambda *_: "made up")
    assert main(poisoned.command(tmp_path / "store")) == 1
    assert f"in example {BAD};" in error_of(capsys)
