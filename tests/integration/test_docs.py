"""Every command and snippet of README and docs runs, document by document, on tiny models in the place of those named.

SQL in blocks runs in `test_sql_of_docs.py`. What a reader has and a test has not: a model of the hub is a tiny one in a
folder; `s3://bucket` is a folder, or a server on this machine; commands of Ray are looked up, and what they submit runs
here (jobs on a real cluster are in `test_ray.py`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import serving
from commands import ok, write_jsonl
from conftest import corpus_rows
from docs_blocks import DATA, DOCUMENTS, PYTHON, ROOT, SHELL, SQL, Block, Scene, blocks_of, shell_commands
from quick import quick_runs
from safetensors.numpy import load_file, save_file
from servers import Storage

BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
MODEL = r"Qwen/Qwen3-0\.6B"
ONE_STEP = (
    'max_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no", max_length=256, disable_tqdm=True, '
)
FEW_LAYERS = {
    r"\b8-20\b": "1-3",
    r"\b0-7\b": "0-1",
    r"(?<=--layer )20\b": "2",
    r"(?<=layer=)20\b": "2",
    r"(?<=\(row, )20\b": "2",
    r"\b3:1,5:0\b": "3:1,2:0",
    r"\[\[12, 3\], \[14, 0\]\]": "[[2, 3], [3, 0]]",
    r"(?<=layers: )12\b": "2",
    r"(?<=top: )32\b": "4",
}
"""Layers of a model of some thirty blocks -> layers of one of four."""
LESS = {
    r"(?<=--shares 1,3,10 )--random 20\b": "--random 2 --new-tokens 8 --limit 6",
    r"(?<=decision,)-8\.\.-1(?=,think)": "-2..-1",
}
"""What takes long and shows no more -> the same with less."""


def blocks(document: str) -> Iterator[Block]:
    """Yield the blocks of a document that are run here."""
    for block in BLOCKS:
        if block.document == document and block.language in (SHELL, PYTHON) and block.not_run is None:
            yield block


def run(document: str, scene: Scene) -> Scene:
    """Run a document from its beginning to its end."""
    with quick_runs(), pytest.MonkeyPatch.context() as patch:
        for block in blocks(document):
            scene.run(block, patch)
    return scene


def test_every_block_is_run_or_is_data() -> None:
    known = (SHELL, PYTHON, SQL, *DATA)
    assert [f"{block.where}: {block.language}" for block in BLOCKS if block.language not in known] == []
    run_here = {"README.md", "cluster.md", "extending.md", "paper.md", "tutorial.md"}
    run_elsewhere = {"costs.md"}  # test_docs_facts.py
    run_elsewhere |= {"benchmarks.md"}  # by hand: what it shows are runs of minutes
    assert {block.document for block in BLOCKS if block.language in (SHELL, PYTHON)} == run_here | run_elsewhere


def test_what_is_not_run_has_a_reason_and_is_little() -> None:
    skipped = [f"{block.where}: {block.not_run}" for block in BLOCKS if block.not_run]
    print("\n".join(skipped))
    assert len(skipped) <= 2


def test_blocks_and_commands_are_found(tmp_path: Path) -> None:
    """Should the way that documents write them change, nothing must pass for want of any."""
    text = (
        "# A\n\n```\ncliffstore a \\\n    b 'c d'  # why\nx && y\n```\n\n<!-- not run: because -->\n```python\n1\n```\n"
    )
    (tmp_path / "a.md").write_text(text)
    first, second = blocks_of(tmp_path / "a.md")
    assert list(shell_commands(first.text)) == ["cliffstore a b 'c d'", "x", "y"]
    assert (first.language, first.heading, first.line, first.not_run) == (SHELL, "A", 3, None)
    assert (second.language, second.not_run) == (PYTHON, "because")
    n_commands = sum(len(list(shell_commands(block.text))) for block in blocks("README.md") if block.language == SHELL)
    assert n_commands >= 35


@pytest.fixture(scope="module")
def tutorial(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The folder that the tutorial leaves behind."""
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        return run("tutorial.md", Scene(folder, {MODEL: tiny_model, r"max_steps=50, ": ONE_STEP}))


def test_tutorial(tutorial: Scene) -> None:
    folder = tutorial.folder
    tuned, before = (
        load_file(path / "model.safetensors") for path in (folder / "tuned", Path(tutorial.stands_for[MODEL]))
    )
    assert any(not np.array_equal(tuned[name], before[name]) for name in before)
    both = ok(
        "sql", folder / "acts", "SELECT count(*) AS n, count(DISTINCT b.cliff - t.cliff) AS moved FROM cliffs b JOIN "
        "cliffs t USING (example) WHERE b.probe = 'refusal' AND t.probe = 'refusal.tuned'", "--json",
    ).json  # fmt: skip
    assert both[0]["n"] == 72
    assert both[0]["moved"] > 1


def test_extending(tutorial: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from cliffstore.publish import candidates, criteria

    monkeypatch.setattr(criteria, "STRATEGIES", criteria.STRATEGIES)
    monkeypatch.setattr(criteria, "_OF_CLIFFS", criteria._OF_CLIFFS)
    monkeypatch.setattr(candidates, "_VALUES", dict(candidates._VALUES))
    run("extending.md", Scene(tutorial.folder, tutorial.stands_for))
    chosen = ok("sql", tutorial.folder / "acts", "SELECT selection, id FROM selections ORDER BY rank", "--json").json
    by_name = {name: [row["id"] for row in chosen if row["selection"] == name] for name in ("steep", "steepest")}
    assert len(by_name["steep"]) == 5
    assert by_name["steep"] == by_name["steepest"]


def test_extending_names_what_there_is() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"`((?:cliffstore|tests)/[\w/]+\.py)`", text)):
        assert (ROOT / path).is_file(), path
    for names, path in re.findall(r"((?:`\w+`(?: and )?)+) in `(cliffstore/[\w/]+\.py)`", text):
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), (name, path)


def test_paper(tmp_path: Path) -> None:
    scene = run("paper.md", Scene(tmp_path))
    truth = json.loads((tmp_path / "planted" / "truth.json").read_text())
    said = {tuple(head) for head in scene.names["lowest"]}  # type: ignore[attr-defined]
    assert said == {tuple(head) for head in truth["suppressors"]} == {(1, 2), (3, 4), (4, 2)}
    assert truth["gates"] == [[0, 5]]
    answers = {}
    for name in ("plain", "off", "control"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        answers[name] = {(row["kind"], row["response"]) for row in rows}
    comply, refuse = truth["compliance"], truth["refusal"]
    assert answers["plain"] == answers["control"] == {
        ("benign", comply), ("harmful", refuse), ("jailbroken", comply)
    }  # fmt: skip
    assert answers["off"] == {("benign", comply), ("harmful", refuse), ("jailbroken", refuse)}


@dataclass(frozen=True)
class Reader:
    """What somebody has who follows the README: a folder with a corpus, models, and stores to begin from.

    Attributes
    ----------
    full : store with probes, scores, cliffs and selections
    scored : the same before anything was selected by cliff
    bare : store with activations alone
    """

    folder: Path
    full: Path
    scored: Path
    bare: Path

    def begin(self, store: Path | None) -> None:
        """Have `./acts` be one of the stores, or none."""
        for leftover in ("acts", "train", "bucket/acts", "bucket/train"):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)
        if store is not None:
            shutil.copytree(store, self.folder / "acts")


def adapter(model: str, folder: Path) -> None:
    """Write a LoRA over a model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)


def tuned(model: str, folder: Path) -> None:
    """Write a model that differs from another in one tensor."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    save_file({**weights, name: weights[name] * 1.5}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def reader(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("readme")
    rows = [{**row, "source": "unseen" if number >= 28 else "seen"} for number, row in enumerate(corpus_rows())]
    corpus = write_jsonl(folder / "prompts.jsonl", rows)
    asked = [{name: row[name] for name in ("id", "prompt", "label", "source")} for row in rows[-6:]]
    write_jsonl(folder / "asked.jsonl", asked)
    write_jsonl(folder / "more.jsonl", [{"prompt": f"Name {n} birds.", "label": 0} for n in range(2, 8)])
    for place in (folder, folder / "bucket"):
        place.mkdir(exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist([{**dict.fromkeys(rows[-1]), **row} for row in rows]), place / "prompts.parquet"
        )
    shutil.copytree(tiny_model, folder / "model")
    tuned(tiny_model, folder / "tuned")
    adapter(tiny_model, folder / "lora")
    save_file({"w": np.linspace(-1, 1, 32).astype(np.float32)}, folder / "direction.safetensors")
    full, scored, bare = (folder / "stores" / name for name in ("full", "scored", "bare"))
    with quick_runs():
        ok("extract", corpus, "--model", folder / "model", "--store", bare)
        shutil.copytree(bare, scored)
        ok("probe", "fit", scored, "--name", "refusal", "--label", "label")
        ok("probe", "random", scored, "--like", "refusal", "--n", "2")
        ok("score", scored, "--probe", "all")
        for probe in ("refusal", "refusal-random-0-1"):
            ok("cliff", scored, "--probe", probe)
        shutil.copytree(scored, full)
        ok("select", full, "--name", "random", "--strategy", "random", "--top", "8")
        ok("select", full, "--name", "worst", "--probe", "refusal", "--top", "8")
        ok("heads", "trace", full, "--probe", "refusal", "--name", "shares", "--model", folder / "model")
    return Reader(folder, full, scored, bare)


def begin(section: str, command: str, *, is_first: bool, reader: Reader) -> None:
    """Have the store that a command of the README speaks of. Other sections begin with all there is."""
    if section == "What is computed, and what is stored":  # each is a way to begin
        reader.begin(reader.full if "--probe" in command or "--adapter" in command else None)
    elif section == "A store grows":  # each is a way to go on
        reader.begin(reader.full)
    elif is_first:
        chosen = ("Cliffs, the choice of examples, the training set", "Heads")  # they make what the full store has
        stores = {"Probes": reader.bare, **dict.fromkeys(chosen, reader.scored)}
        empty = ("Five commands", "Jobs", "On a cluster", "Python")
        reader.begin(None if section in empty else stores.get(section, reader.full))


def readme_sections() -> list[str]:
    return list(dict.fromkeys(block.heading for block in blocks("README.md")))


@pytest.fixture(scope="module")
def readme(reader: Reader) -> Iterator[Scene]:
    with serving() as served:
        yield readme_scene(reader, served.url)


def readme_scene(reader: Reader, endpoint: str) -> Scene:
    stands_for = {
        r"(?<=generate )prompts\.jsonl": "asked.jsonl --max-new-tokens 4",
        r"http://127\.0\.0\.1:8000/v1": endpoint,
        r"\bdemo-124\b": "r1-01",
        MODEL: str(reader.folder / "model"),
        r"(?<=--model )MODEL\b": str(reader.folder / "model"),
        "s3://bucket": str(reader.folder / "bucket"),
        **FEW_LAYERS,
        **LESS,
    }
    scene = Scene(reader.folder, stands_for, {"step": lambda _: None, "checkpoint": {}})
    example = reader.folder / "jobs" / "pipeline.example.yaml"
    example.parent.mkdir()
    example.write_text(scene.replaced((ROOT / "jobs" / example.name).read_text()))
    steps = [block.text for block in BLOCKS if block.document == "README.md" and block.text.startswith("steps:\n")]
    (reader.folder / "steps.yaml").write_text(scene.replaced("".join(steps)))
    return scene


@pytest.mark.parametrize("section", readme_sections())
def test_readme(section: str, readme: Scene, reader: Reader) -> None:
    begun: list[str] = []

    def before(command: str) -> None:
        begin(section, command, is_first=not begun, reader=reader)
        begun.append(command)

    with quick_runs(), pytest.MonkeyPatch.context() as patch:
        for block in blocks("README.md"):
            if block.heading == section:
                readme.run(block, patch, before)
    if section == "Heads":
        for table in ("heads", "experiments WHERE measure = 'refused'"):
            assert ok("sql", reader.folder / "acts", f"SELECT * FROM {table}", "--json").json


def test_cluster(tiny_model: str, moto_s3: Storage, reader: Reader, tmp_path: Path) -> None:
    """On a server of object storage, that is reached by what the environment says."""
    import fsspec

    from cliffstore.access import fsspec_options

    bucket = moto_s3.new_url().removesuffix("/store")
    scene = Scene(tmp_path, {MODEL: tiny_model, "s3://bucket": bucket, **FEW_LAYERS})
    (tmp_path / "jobs").mkdir()
    example = "jobs/pipeline.example.yaml"
    (tmp_path / example).write_text(scene.replaced((ROOT / example).read_text()))
    with pytest.MonkeyPatch.context() as patch:
        names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "endpoint_url": "AWS_ENDPOINT_URL"}
        for option, name in names.items():
            patch.setenv(name, str(moto_s3.options[option]))
        url = f"{bucket}/prompts.parquet"
        fs, path = fsspec.core.url_to_fs(url, **fsspec_options(url, moto_s3.options))
        fs.put_file(str(reader.folder / "prompts.parquet"), path)
        with quick_runs():
            for block in blocks("cluster.md"):
                scene.run(block, patch)
    assert {command.split()[1] for command in scene.checked} == {"get-auth-token", "start", "job"}
