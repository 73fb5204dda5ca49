"""`cliffstore generate` cut off, out of memory, failed or run twice: what is finished stays, and the rest is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from commands import snapshot, write_jsonl
from fault.generating_at_a_gate import hold
from generated import Row, generate, models_loaded_once, rows_of
from servers import Storage

import cliffstore
from cliffstore.errors import StoreError
from cliffstore.model.planted.model import PlantSettings, plant
from cliffstore.run.generation.workers import ModelWorker

ROOT = Path(__file__).parents[2]
GATE = ROOT / "tests" / "fault" / "generating_at_a_gate.py"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with models_loaded_once():
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks and answers."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    plant(PlantSettings(seed=4, layers=4, heads=6, suppressors=2)).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of several lengths, without thinking and response."""
    rows = rows_of(planted / "corpus.jsonl")[:24]
    kept = ({name: row[name] for name in ("id", "prompt", "kind", "label")} for row in rows)
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "prompts.jsonl", kept)


def test_killed_and_run_again(planted: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL at a gate after two of three batches: what is finished is not generated again, and bytes are equal."""
    out, log, gate = tmp_path / "out.parquet", tmp_path / "log", tmp_path / "gate"
    command = [
        sys.executable, str(GATE), str(gate), "2", str(log), "generate", str(corpus), "--model", str(planted),
        "-o", str(out), "--batch-size", "8",
    ]  # fmt: skip
    pieces = tmp_path / "out.parquet.generation" / "pieces"
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while len(list(pieces.glob("unit-*.parquet"))) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    before = {path.name: path.read_bytes() for path in pieces.iterdir()}
    assert len(before) == 2
    again = ("--batch-size", "8")
    with monkeypatch.context() as patch:
        patch.setattr(ModelWorker, "_rows", ModelWorker._rows)  # put back what `hold` changes
        hold(str(gate), 99, str(log))
        done = generate(corpus, planted, out, *again)
    assert done.code == 0, done.stderr
    generated = Counter(log.read_text().split())
    assert len(generated) == 24
    assert set(generated.values()) == {1}, "each example was generated once in both runs"
    assert (done.json["done_before"], done.json["generated_now"]) == (16, 8)
    assert generate(corpus, planted, tmp_path / "undisturbed.parquet", *again).code == 0
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert sorted(path.name for path in pieces.parent.iterdir()) == ["complete.json", "generation.json"]


def _environment() -> Mapping[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


def test_finished_run_is_not_run_again_and_others_are_refused(planted: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert generate(corpus, planted, out, "--limit", "6").code == 0
    first = snapshot(tmp_path)
    again = generate(corpus, planted, out, "--limit", "6")
    assert (again.code, again.json["generated_now"], again.json["rows"]) == (0, 0, 6)
    assert again.json["finish"] == {"stop": 6}
    for more, told in (
        (("--limit", "6", "--max-new-tokens", "9"), "max-new-tokens 1024, not 9"),
        (("--limit", "6", "--temperature", "1"), "temperature 0.0, not 1.0"),
        (("--limit", "5"), "another corpus (6 examples, not 5"),
    ):
        refused = generate(corpus, planted, out, *more)
        assert (refused.code, told in refused.stderr) == (2, True), refused.stderr
        assert refused.stderr.count("error:") == 1
    assert snapshot(tmp_path) == first
    out.unlink()
    assert generate(corpus, planted, out, "--limit", "6").json["generated_now"] == 6
    assert snapshot(tmp_path) == first
    out.write_text("mine\n")
    refused = generate(corpus, planted, out, "--limit", "6")
    assert (refused.code, "is not what was generated" in refused.stderr) == (2, True)
    write_jsonl(tmp_path / "labels.jsonl", ({**row, "label": 2} for row in rows_of(corpus)))
    (tmp_path / "labels.jsonl").replace(tmp_path / corpus.name)
    refused = generate(tmp_path / corpus.name, planted, out, "--limit", "6")
    assert (refused.code, "another corpus (6 examples, not 6, or other" in refused.stderr) == (2, True)
    (tmp_path / "other.jsonl").write_text("mine\n")
    refused = generate(corpus, planted, tmp_path / "other.jsonl")
    assert (refused.code, "no generation has written it" in refused.stderr) == (2, True)
    assert (tmp_path / "other.jsonl").read_text() == "mine\n"


def test_batch_that_does_not_fit_is_divided(
    planted: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from cliffstore.model.generation import TextGenerator

    batch, sizes = TextGenerator._batch, []

    def tight(self: TextGenerator, prompts: list[object]) -> object:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return batch(self, prompts)

    assert generate(corpus, planted, tmp_path / "whole.jsonl", "--limit", "10").code == 0
    monkeypatch.setattr(TextGenerator, "_batch", tight)
    result = generate(corpus, planted, tmp_path / "parts.jsonl", "--limit", "10")
    assert result.code == 0, result.stderr
    assert "batches of 10 do not fit into memory: 2 from now on" in result.stderr
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_failed_batch_is_counted_and_alone_is_run_again(
    planted: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ModelWorker._rows
    seen: list[int] = []

    def poisoned(self: ModelWorker, items: list[Row]) -> object:
        seen.append(len(items))
        if any(item["item"] == 3 for item in items):
            raise RuntimeError("poison")
        return rows(self, items)

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(ModelWorker, "_rows", poisoned)
        failed = generate(corpus, planted, out, "--limit", "10", "--batch-size", "2")
    assert failed.code == 1
    assert "2 of 10 rows failed, the others are kept" in failed.stderr
    assert len(seen) == 4 + 3, "a batch is tried three times"
    assert not out.exists()
    assert generate(corpus, planted, out, "--limit", "10", "--batch-size", "2").json["generated_now"] == 2
    assert len(rows_of(out)) == 10


def test_interrupted_run_says_what_is_kept(
    planted: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ModelWorker._rows
    calls: list[int] = []

    def interrupted(self: ModelWorker, items: list[Row]) -> object:
        calls.append(len(items))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return rows(self, items)

    monkeypatch.setattr(ModelWorker, "_rows", interrupted)
    result = generate(corpus, planted, tmp_path / "out.jsonl", "--limit", "20", "--batch-size", "4")
    assert result.code == 130
    assert "interrupted: " in result.stderr
    assert "of 20 rows are kept" in result.stderr


def test_output_and_pieces_in_object_storage(
    planted: Path, corpus: Path, moto_s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cliffstore.run.generation import generating

    url = moto_s3.new_url() + ".parquet"
    given = {"model": str(planted), "limit": 6, "batch_size": 2}
    with monkeypatch.context() as patch:
        patch.setattr(generating, "write_output", lambda *_: (_ for _ in ()).throw(StoreError("stopped")))
        with pytest.raises(StoreError, match="stopped"):
            cliffstore.generate(str(corpus), output=url, storage_options=moto_s3.options, **given)
    report = cliffstore.generate(str(corpus), output=url, storage_options=moto_s3.options, **given)
    assert (report.done_before, report.generated_now) == (6, 0)
    cliffstore.generate(str(corpus), output=str(tmp_path / "here.parquet"), **given)
    from servers import filesystem

    fs = filesystem(moto_s3)
    assert fs.cat_file(url) == (tmp_path / "here.parquet").read_bytes()
    held = [path.rsplit("/", 1)[-1] for path in fs.find(f"{url}.generation")]
    assert held == ["complete.json", "generation.json"]


def test_another_run_of_the_same_command_is_no_failure(
    planted: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends first, and clears away the work (before this one generates) or the pieces (before this one writes)."""
    from cliffstore.run.generation import generating

    for name in ("_generate", "write_output"):
        owner = generating._Run if name == "_generate" else generating
        act, out = getattr(owner, name), tmp_path / f"{name}.jsonl"

        def late(*given: object, act: object = act, out: Path = out, owner: object = owner, name: str = name) -> object:
            monkeypatch.setattr(owner, name, act)
            assert generate(corpus, planted, out, "--limit", "4").code == 0
            return act(*given)  # type: ignore[operator]

        monkeypatch.setattr(owner, name, late)
        result = generate(corpus, planted, out, "--limit", "4")
        assert (result.code, result.json["rows"]) == (0, 4), result.stderr
        assert "another run has written" in result.stderr
        held = sorted(path.name for path in (tmp_path / f"{name}.jsonl.generation").iterdir())
        assert held == ["complete.json", "generation.json"]


def test_work_that_is_gone_is_laid_out_again(planted: Path, corpus: Path, tmp_path: Path) -> None:
    """As after a kill between two removals, where an output that was lost is to be generated again."""
    out = tmp_path / "out.jsonl"
    assert generate(corpus, planted, out, "--limit", "4").code == 0
    first = snapshot(tmp_path)
    out.unlink()
    (tmp_path / "out.jsonl.generation" / "complete.json").unlink()
    assert generate(corpus, planted, out, "--limit", "4").code == 0
    assert snapshot(tmp_path) == first
