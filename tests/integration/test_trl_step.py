"""The exported training set trains: one step of TRL's SFTTrainer by the card's own snippet, on the CPU."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from commands import ok
from conftest import SELECTION, Built

ONE_STEP = (
    'max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False, save_strategy="no", '
    "logging_steps=1, max_length=256, disable_tqdm=True, output_dir="
)


@pytest.mark.parametrize("format", ["messages", "prompt-completion", "alpaca", "raw"])
def test_one_step(format: str, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoTokenizer

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    out = tmp_path / "out"
    ok("export", built.store, "--selection", SELECTION, "-o", out, "--format", format, "--validation", "25%")
    monkeypatch.chdir(out)
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (snippet,) = [block for block in blocks if "SFTTrainer(" in block]
    tuned = snippet.replace(json.dumps(Path(built.model).name), json.dumps(built.model))
    tuned = tuned.replace("SFTConfig(output_dir=", f"SFTConfig({ONE_STEP}")
    assert built.model in tuned
    assert ONE_STEP in tuned
    names: dict[str, object] = {}
    exec(compile(tuned, "snippet", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 1
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert len(trainer.train_dataset) == 6
    tokenizer = AutoTokenizer.from_pretrained(built.model)
    row = trainer.train_dataset[0]
    text = tokenizer.decode(row["input_ids"])
    assert "<think>" in text
    assert "</think>" in text
    if format != "messages":
        learnt = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert learnt.lstrip().startswith("<think>")
