"""The exported training set trains: one step of TRL's SFTTrainer on it, on the CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from commands import ok
from conftest import SELECTION, Built


def test_one_step(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    ok("export", built.store, "--selection", SELECTION, "-o", tmp_path / "out")
    train = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "out" / "train.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(built.model),
        args=SFTConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_steps=1,
            max_length=256,
            disable_tqdm=True,
        ),
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(built.model),
    )
    done = trainer.train()
    assert done.global_step == 1
    assert math.isfinite(done.training_loss)
    text = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"])
    assert "<think>" in text
    assert "</think>" in text
