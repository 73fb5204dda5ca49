"""A unit with NaN fails by name, the other units are stored, and the user may store it as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cliffstore import Store
from cliffstore.cli.main import main

POISON = " zebra"


@pytest.fixture
def poisoned(tiny_model: str, tmp_path: Path) -> tuple[str, str]:
    """A model whose embedding of one word is NaN, and a corpus of several units with the word in one example."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    token = tokenizer(POISON, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token[-1]] = float("nan")
    folder, corpus = tmp_path / "model", tmp_path / "corpus.jsonl"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts = [f"Number {i}: " + " ".join(str(i * j) for j in range(20)) for i in range(80)]
    prompts[40] += POISON
    lines = (json.dumps({"id": f"p{i}", "prompt": prompt}) for i, prompt in enumerate(prompts))
    corpus.write_text("\n".join(lines), encoding="utf-8")
    return str(folder), str(corpus)


def test_nan_fails_its_unit_and_no_other(
    poisoned: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, corpus = poisoned
    command = ["extract", corpus, "--model", model, "--store", str(tmp_path / "store"), "--json"]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    for part in ("p40", "resid_post", "layer 0", "--allow-nonfinite"):
        assert part in error
    with Store(str(tmp_path / "store")) as store:
        units = store.sql("SELECT extracted, error FROM units").fetchall()
    assert len(units) >= 3
    assert sum(not extracted for extracted, _ in units) == 1
    assert [("p40" in problem) for extracted, problem in units if not extracted] == [True]
    assert main([*command, "--allow-nonfinite"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["units_done_now"] == 1
    with Store(str(tmp_path / "store")) as store:
        rows = store.sql("SELECT row FROM tokens JOIN examples USING (example) WHERE id = 'p40'").fetchnumpy()["row"]
        assert np.isnan(store.vectors("resid_post", 0, rows)).any()
        assert store.sql("SELECT count(*) FROM units WHERE error IS NOT NULL").fetchall() == [(0,)]
