"""Every command and snippet of README and docs runs, document by document, on tiny models in place of those named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import write_jsonl
from conftest import Built, corpus_rows
from docs_blocks import DATA, DOCUMENTS, PYTHON, SHELL, SQL, Block, Scene, blocks_of, shell_commands
from quick import quick_runs

BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
ONE_STEP = (
    'max_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no", max_length=256, disable_tqdm=True, '
)


def test_every_block_is_of_a_language_that_is_run_or_is_data() -> None:
    unknown = [f"{block.where}: {block.language}" for block in BLOCKS if block.language not in (SHELL, PYTHON, SQL, *DATA)]
    assert not unknown
    assert {block.document for block in BLOCKS} >= {"README.md", "tutorial.md"}


def test_what_is_not_run_has_a_reason_and_is_little() -> None:
    skipped = [f"{block.where}: {block.not_run}" for block in BLOCKS if block.not_run]
    print("\n".join(skipped))
    assert len(skipped) <= 3


def _run(document: str, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with quick_runs():
        for block in (block for block in BLOCKS if block.document == document and not block.not_run):
            if block.language in (SHELL, PYTHON):
                scene.run(block, monkeypatch)
            elif block.language == SQL:
                pass  # test_sql_of_docs


def test_tutorial(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    scene = Scene(tmp_path, {r"Qwen/Qwen3-0\.6B": tiny_model, r"max_steps=50, ": ONE_STEP})
    _run("tutorial.md", scene, monkeypatch)
    assert (tmp_path / "tuned" / "config.json").is_file()


def test_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path)
    _run("paper.md", scene, monkeypatch)
    truth = json.loads((tmp_path / "planted" / "truth.json").read_text())
    said = {tuple(head) for head in scene.names["lowest"]}
    assert said == {tuple(head) for head in truth["suppressors"]} == {(1, 2), (3, 4), (4, 2)}
    assert truth["gates"] == [[0, 5]]
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("plain", "off", "control")
    }
    refused = {
        name: {(row["kind"], row["response"]) for row in found} for name, found in rows.items()
    }
    assert refused["plain"] == refused["control"] != refused["off"]
