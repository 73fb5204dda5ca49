"""The method on real weights: SmolLM2 on benchmark prompts, corpus to probe; and the demo on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cliffstore import Store
from cliffstore.cli.main import main
from cliffstore.run.demo import corpus_path
from cliffstore.run.progress import LineReporter
from cliffstore.run.stages import extract

FIT = "source = 'advbench' AND id < 'advbench-00060' OR source = 'alpaca' AND id < 'alpaca-00060'"
UNSEEN = "source = 'harmbench_val' OR source = 'alpaca' AND id >= 'alpaca-01959'"
LAYERS = (14, 16)


@pytest.fixture(scope="module")
def store(smollm2: str, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """AdvBench and Alpaca prompts at two middle layers, in float32."""
    url = str(tmp_path_factory.mktemp("real") / "store")
    inputs = [str(shared_data / f"{name}.jsonl") for name in ("advbench", "alpaca", "harmbench_val")]
    layers = ",".join(str(layer) for layer in LAYERS)
    extract(inputs, model=smollm2, store=url, where=f"{FIT} OR {UNSEEN}", layers=layers, dtype="float32")
    return url


def test_stored_vectors_are_those_of_a_plain_forward(store: str, smollm2: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with Store(store) as opened:
        for example in (0, 77, 150):
            tokens = opened.sql(
                f"SELECT token_id, row FROM tokens WHERE example = {example} ORDER BY position"
            ).fetchall()
            with torch.inference_mode():
                output = model(torch.tensor([[token for token, _ in tokens]]), output_hidden_states=True)
            for layer in LAYERS:
                stored_TD = opened.vectors("resid_post", layer, np.array([row for _, row in tokens]))
                plain_TD = output.hidden_states[layer + 1][0].numpy()
                errors_T = np.linalg.norm(stored_TD - plain_TD, axis=1) / np.linalg.norm(plain_TD, axis=1)
                assert errors_T.max() <= 1e-5


def test_refusal_is_linearly_readable_and_shuffled_labels_are_not(store: str) -> None:
    with Store(store, reporter=LineReporter()) as opened:
        probe = opened.fit_probe("refusal", where=FIT, test_where=UNSEEN)
    chosen = probe.chosen
    assert chosen is not None
    assert chosen.auroc >= 0.99
    assert chosen.test_auroc is not None
    assert chosen.test_auroc >= 0.95
    assert 0.3 <= probe.shuffled_auroc <= 0.7  # 24 validation examples: a wide band
    assert probe.n_test == 82


def test_demo_runs_every_stage(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--model", tiny_model, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    stages = ("extract", "probe", "score", "cliff", "select", "export", "report", "training set", "requests to decline")
    for stage in stages:
        assert stage in printed
    page = output / "report.html"
    assert str(page) in printed
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (output / "training-set" / "train.parquet").is_file()
    assert main(["demo", "--model", tiny_model, "--output", str(output), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["extract"]["units_done_now"] == 0
    assert again["rows_exported"] == 10
    assert again["with_cliff"] == 64


def test_demo_corpus_is_what_the_readme_promises() -> None:
    rows = [json.loads(line) for line in corpus_path().read_text(encoding="utf-8").splitlines()]
    labels = [row["label"] for row in rows]
    assert labels.count(1) >= 80
    assert labels.count(0) >= 80
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert sum(row["thinking"] is not None for row in rows) >= 40
    assert all(row["response"] for row in rows if row["thinking"])
