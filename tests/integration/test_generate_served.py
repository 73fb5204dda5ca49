"""A real `transformers serve` as endpoint says what the model says when it runs here, and two Ray actors say it too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import write_jsonl
from generated import generate, rows_of, texts_of
from ray_processes import end, environment, family, private_folder, run_bounded
from servers import free_port

from cliffstore.model.planted.model import PlantSettings, plant

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "model"
    plant(PlantSettings(seed=1, layers=3, heads=6, suppressors=1)).save(folder)
    return folder


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run `transformers serve` on loopback and without a network, and end it by its process."""
    port, log = free_port(), folder / "serve.log"
    program = "from transformers.cli.transformers import main; main()"
    command = [
        sys.executable, "-c", program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
        "--dtype", "float32",
    ]  # fmt: skip
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environ, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_up(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_served_model_says_the_same(
    planted: Path, smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server for both models: it loads the one that a request names."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    rows = rows_of(planted / "corpus.jsonl")[:5]
    corpora = {
        planted: write_jsonl(tmp_path / "planted.jsonl", ({"id": row["id"], "prompt": row["prompt"]} for row in rows)),
        smollm2: write_jsonl(
            tmp_path / "smollm2.jsonl",
            ({"id": str(number), "prompt": text} for number, text in enumerate(("Hi", "Name a colour.", "2 + 2 = ?"))),
        ),
    }
    with serving(tmp_path) as url:
        for model, corpus in corpora.items():
            folder = tmp_path / f"of-{corpus.stem}"
            folder.mkdir()
            more = ("--max-new-tokens", "24" if model == planted else "8")
            here = generate(corpus, model, folder / "here.jsonl", "--dtype", "float32", *more)
            assert here.code == 0, here.stderr
            asked = generate(corpus, model, folder / "asked.jsonl", "--endpoint", url, "--concurrency", "2", *more)
            assert asked.code == 0, asked.stderr + (tmp_path / "serve.log").read_text()
            assert texts_of(folder / "asked.jsonl") == texts_of(folder / "here.jsonl")
            assert asked.json["tokens"] >= here.json["rows"]


def test_two_workers_say_the_same(planted: Path, tmp_path: Path) -> None:
    """Two Ray actors with a model each; pieces are the same, and so is the output."""
    rows = rows_of(planted / "corpus.jsonl")[:12]
    corpus = write_jsonl(tmp_path / "rows.jsonl", ({"id": row["id"], "prompt": row["prompt"]} for row in rows))
    sampled = ("--temperature", "1", "--batch-size", "4")
    assert generate(corpus, planted, tmp_path / "one.jsonl", *sampled).code == 0
    assert generate(corpus, planted, tmp_path / "greedy-one.jsonl").code == 0
    runs = [
        {"output": str(tmp_path / "two.jsonl"), "temperature": 1.0, "batch_size": 4},
        {"output": str(tmp_path / "greedy-two.jsonl"), "batch_size": 4},
    ]
    program = (
        "import json, ray, sys, cliffstore\n"
        "ray.init(include_dashboard=False, log_to_driver=False)\n"
        "for run in json.loads(sys.argv[1]):\n"
        "    report = cliffstore.generate(sys.argv[2], model=sys.argv[3], executor='ray', actors=2, **run)\n"
        "    print(report.executor)\n"
    )
    with private_folder() as folder:
        try:
            command = [sys.executable, "-c", program, json.dumps(runs), str(corpus), str(planted)]
            done = run_bounded(command, folder, environment(folder), ROOT)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("2 Ray actor") == 2
        finally:
            end(family(None, folder))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert (tmp_path / "greedy-two.jsonl").read_bytes() == (tmp_path / "greedy-one.jsonl").read_bytes()
