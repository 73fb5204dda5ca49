"""A base model and the same with an adapter stand side by side in a store, row for row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ok, run_cli
from peft import LoraConfig, PeftModel, get_peft_model
from quick import quick_runs
from transformers import AutoModelForCausalLM

from cliffstore import Store


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes something, as after training."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=64, init_lora_weights=False, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(corpus: Path, tiny_model: str, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("tuned") / "store"
    common = ["extract", corpus, "--model", tiny_model, "--store", store, "--layers", "1,2", "--dtype", "float32"]
    base = ok(*common, "--json").json
    tuned = ok(*common, "--adapter", adapter, "--model-alias", "tuned", "--json").json
    assert tuned["plan"] == base["plan"]
    assert tuned["capture"] != base["capture"]
    assert tuned["units_done_now"] == base["units"] > 1
    return store


def _plain(model: torch.nn.Module, token_ids: list[int], layer: int) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states[layer + 1][0].numpy()


def test_each_model_has_its_own_vectors_at_the_same_rows(store: Path, tiny_model: str, adapter: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with Store(str(store)) as opened:
        (rows,) = opened.sql("SELECT list(row ORDER BY position) FROM tokens WHERE example = 3").fetchall()[0]
        token_ids = [
            token
            for (token,) in opened.sql("SELECT token_id FROM tokens WHERE example = 3 ORDER BY position").fetchall()
        ]
        stored = {alias: opened.vectors("resid_post", 1, np.array(rows), alias) for alias in ("main", "tuned")}
        captures = {one.alias: one for one in opened.reader.captures()}
    plain = {"main": _plain(base, token_ids, 1)}
    plain["tuned"] = _plain(PeftModel.from_pretrained(base, str(adapter)).eval(), token_ids, 1)
    for alias, vectors in stored.items():
        assert np.linalg.norm(vectors - plain[alias], axis=1).max() <= 1e-5 * np.linalg.norm(plain[alias], axis=1).min()
    assert np.linalg.norm(stored["main"] - stored["tuned"]) > 0.01 * np.linalg.norm(stored["main"])
    assert captures["main"].model.adapter is None
    assert captures["tuned"].model.adapter is not None
    assert captures["tuned"].model.adapter.kind == "LORA"


def test_an_adapter_under_the_name_of_the_base_model_is_refused(
    store: Path, corpus: Path, tiny_model: str, adapter: Path
) -> None:
    before = sorted(store.rglob("*"))
    result = run_cli("extract", corpus, "--model", tiny_model, "--store", store, "--layers", "1", "--adapter", adapter)
    assert result.code == 2
    assert "--model-alias" in result.stderr.splitlines()[-1]
    assert sorted(store.rglob("*")) == before


def test_a_run_with_an_adapter_resumes(store: Path, corpus: Path, tiny_model: str, adapter: Path) -> None:
    again = ok(
        "extract", corpus, "--model", tiny_model, "--store", store, "--layers", "1,2", "--dtype", "float32",
        "--adapter", adapter, "--model-alias", "tuned", "--json",
    )  # fmt: skip
    assert json.loads(again.text)["units_done_now"] == 0
