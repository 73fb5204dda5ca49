"""YAML files of jobs: what they say is done, options win over them, and a mistake in one is one line."""

from __future__ import annotations

import copy
import json
import os
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from commands import Result, captured, ok, run_cli, snapshot, write_jsonl
from conftest import PROBE, SELECTION, Built
from quick import quick_runs
from servers import Storage, filesystem

from cliffstore.config import PipelineConfig
from cliffstore.errors import InterruptedRunError
from cliffstore.run.pipeline import run_pipeline
from cliffstore.run.progress import LOG_VARIABLE, PIECE, LineReporter, Piece
from cliffstore.settings import read_config

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "jobs" / "pipeline.example.yaml"
Job = Callable[..., Result]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    """`job(name, argument, ...)` does in this process what `python -m jobs.NAME ARGUMENT...` does."""
    monkeypatch.setenv(LOG_VARIABLE, "json")

    def run(name: str, *arguments: str | Path) -> Result:
        monkeypatch.setattr("sys.argv", [name, *(str(argument) for argument in arguments)])

        def act() -> int:
            with pytest.raises(SystemExit) as stop:
                runpy.run_module(f"jobs.{name}", run_name="__main__")
            return int(str(stop.value.code))

        return captured(act)

    return run


@pytest.fixture
def store(built: Built, tmp_path: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(built.store, tmp_path / "store"))


def write_yaml(path: Path, settings: object) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def pipeline_settings(built: Built, folder: Path) -> dict[str, dict[str, object]]:
    return {
        "store": str(folder / "store"),  # type: ignore[dict-item]
        "extract": {"corpus": str(built.corpus), "model": built.model, "layers": "1-2", "unit-rows": 512,
                    "passes": "tree", "pass-tokens": 64},
        "probe": {"name": "refusal"},
        "select": {"name": "worst", "top": 4},
        "export": {"output": str(folder / "train")},
    }  # fmt: skip


def pipeline_config(built: Built, folder: Path) -> PipelineConfig:
    settings = pipeline_settings(built, folder)
    return read_config(PipelineConfig, str(write_yaml(folder / "pipeline.yaml", settings)), {})


def events(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stderr.splitlines() if not line.startswith("error: ")]


# What a file says.


def test_each_job_does_the_work_of_its_command(job: Job, store: Path, tmp_path: Path) -> None:
    at = {"store": str(store)}
    fit = job(
        "fit_probe", write_yaml(tmp_path / "fit.yaml", {**at, "name": "twin", "layers": "1,2", "test-where": "true"})
    )
    assert fit.code == 2, "all test examples are ones that the probe was fitted with"
    fit = job("fit_probe", write_yaml(tmp_path / "fit.yaml", {**at, "name": "twin", "layers": "1,2"}))
    assert (fit.code, fit.json["name"], [one["layer"] for one in fit.json["cells"]]) == (0, "twin", [1, 2])
    scored = job("score", write_yaml(tmp_path / "score.yaml", {**at, "probe": "twin"}))
    assert (scored.code, scored.json["units_done_before"], scored.json["units"] > 0) == (0, 0, True)
    select = {"name": "by-twin", "top": "50%", "where": "label = '1'"}
    ranked = job("rank", write_yaml(tmp_path / "rank.yaml", {**at, "probe": "twin", "top": 3, "select": select}))
    assert (ranked.code, len(ranked.json["top"])) == (0, 3)
    assert (ranked.json["select"]["probe"], ranked.json["select"]["chosen"]) == ("twin", 5)
    output = {"selection": "by-twin", "output": str(tmp_path / "train"), "target-text": "No."}
    exported = job("export", write_yaml(tmp_path / "export.yaml", {**at, **output}))
    assert (exported.code, exported.json["rows"]) == (0, 5)
    more = {"format": "prompt-completion", "mix": 0.3, "mix-where": "label = '0'", "validation": "20%"}
    mixed = job("export", write_yaml(tmp_path / "mixed.yaml", {**at, **output, **more, "output": str(tmp_path / "m")}))
    assert (mixed.code, mixed.json["rows"], mixed.json["mixed"], mixed.json["validation"]) == (0, 7, 2, 1)
    for result in (fit, scored, ranked, exported, mixed):
        assert events(result)[-1] == {"time": events(result)[-1]["time"], "event": "exit", "exit_code": 0}
    progress = [one for one in events(scored) if one["event"] == "progress"]
    assert [one["units_done"] for one in progress] == list(range(1, scored.json["units"] + 1))
    assert progress[-1]["tokens"] == scored.json["tokens"]
    assert [one["stage"] for one in events(fit) if one["event"] == "progress"] == ["probe", "probe"]


def test_options_win_over_the_file(job: Job, store: Path, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "fit.yaml", {"store": str(tmp_path / "nowhere"), "name": "a", "layers": "1", "c": 2})
    result = job("fit_probe", file, "--name", "b", "--layers", "2-3")
    assert result.code == 2
    result = run_cli("probe", "fit", store, "--config", file, "--name", "b", "--layers", "2-3", "--json")
    found = (result.json["name"], [one["layer"] for one in result.json["cells"]], result.json["c"])
    assert found == ("b", [2, 3], 2.0)
    file = write_yaml(tmp_path / "select.yaml", {"name": "x", "top": 8})
    selected = run_cli("select", store, "--config", file, "--top", "3", "--json")
    assert (selected.json["name"], selected.json["chosen"]) == ("x", 3)


def test_example_runs_with_settings_over_its_sections(built: Built, tmp_path: Path, job: Job) -> None:
    sets = (
        f"store={tmp_path / 'store'}", f"extract.corpus={built.corpus}", f"extract.model={built.model}",
        f"export.output={tmp_path / 'train'}", "extract.layers=3", "select.top=25%", "probe.seed=7",
        "export.target-text=I would rather not.",
    )  # fmt: skip
    result = job("pipeline", EXAMPLE, *(part for one in sets for part in ("--set", one)))
    assert result.code == 0, result.stderr
    report = result.json
    assert [one["layer"] for one in report["probe"]["cells"]] == [3]
    assert (report["probe"]["seed"], report["select"]["chosen"], report["export"]["rows"]) == (7, 5, 5)
    assert (tmp_path / "train" / "train.parquet").exists()


def test_example_is_the_one_in_the_readme() -> None:
    assert f"```yaml\n{EXAMPLE.read_text()}```" in (ROOT / "README.md").read_text()


def test_every_command_reaches_a_store_by_the_options_of_a_file(
    built: Built, rclone_s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    url = rclone_s3.new_url()
    filesystem(rclone_s3).put(f"{built.store}/", url.removeprefix("s3://"), recursive=True)
    options = write_yaml(tmp_path / "options.yaml", {"storage-options": rclone_s3.options})
    at = ("--config", options, "--json")
    assert ok("info", url, *at).json["scores"] == [PROBE]
    assert ok("sql", url, "SELECT count(*) AS n FROM examples", *at).json == [{"n": 40}]
    assert [probe["probe"] for probe in ok("probe", "list", url, *at).json] == [PROBE]
    assert ok("probe", "show", url, "--name", PROBE, *at).json["name"] == PROBE
    assert ok("verify", url, *at).json["findings"] == []
    assert "there already" in ok("probe", "fit", url, "--name", PROBE, *at).stderr
    assert ok("score", url, "--probe", PROBE, *at).json["units"] == 0
    assert ok("cliff", url, "--probe", PROBE, *at).json["examples"] == 40
    assert ok("select", url, "--name", "few", "--top", "3", *at).json["chosen"] == 3
    output = f"{url}-train"
    assert ok("export", url, "--selection", "few", "-o", output, *at).json["rows"] == 3
    assert filesystem(rclone_s3).exists(f"{output}/train.parquet".removeprefix("s3://"))


# A pipeline that is run again.


class Interrupted(LineReporter):
    """Ends the run at its nth word, as Ctrl-C would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.said, self._at = 0, at

    def _count(self) -> None:
        self.said += 1
        if self.said == self._at:
            raise KeyboardInterrupt

    def stage(self, text: str) -> None:
        super().stage(text)
        self._count()

    def advance(self, piece: Piece = PIECE) -> None:
        super().advance(piece)
        self._count()


def test_pipeline_interrupted_anywhere_ends_with_the_same_bytes(built: Built, tmp_path: Path) -> None:
    """At every third word that a run has to say, from the estimate to the export, each time from nothing."""
    config, undisturbed = pipeline_config(built, tmp_path), Interrupted(0)
    run_pipeline(config, undisturbed)
    training_set, cliffs = snapshot(tmp_path / "train"), snapshot(tmp_path / "store" / "cliffs")
    assert undisturbed.said >= 16
    for at in range(undisturbed.said, 2, -3):
        for part in ("train", "store"):
            shutil.rmtree(tmp_path / part, ignore_errors=True)
        with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
            run_pipeline(config, Interrupted(at))
        run_pipeline(config, LineReporter())
        assert snapshot(tmp_path / "train") == training_set, at
        assert snapshot(tmp_path / "store" / "cliffs") == cliffs, at
    ok("verify", tmp_path / "store")


def test_what_is_there_is_not_done_again(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pipeline_config(built, tmp_path)
    first = run_pipeline(config, LineReporter())
    contents, written = snapshot(tmp_path), times(tmp_path)

    def never(*_: object, **__: object) -> None:
        pytest.fail("done again")

    monkeypatch.setattr("cliffstore.run.fitting.fit_probe", never)
    monkeypatch.setattr("cliffstore.analyze.cliff.cliff_table", never)
    again = run_pipeline(config, LineReporter())
    for stage in ("probe", "cliff", "select", "export"):
        assert getattr(again, stage) == getattr(first, stage)
    assert snapshot(tmp_path) == contents
    assert times(tmp_path) == written


def times(folder: Path) -> dict[Path, int]:
    """Return when each file was written; selections are chosen, and written, each time."""
    files = (path for path in folder.rglob("*") if path.is_file() and "selections" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in files}


def test_pipeline_over_a_store_that_has_grown(built: Built, tmp_path: Path) -> None:
    """A second corpus: what was made of the first alone is not taken for what both give."""
    first = run_pipeline(pipeline_config(built, tmp_path), LineReporter())
    before = snapshot(tmp_path)
    rows = [json.loads(line) for line in built.corpus.read_text().splitlines()]
    more = [row | {"id": f"more-{row['id']}", "prompt": f"{row['prompt']} And be quick."} for row in rows]
    settings = pipeline_settings(built, tmp_path)
    settings["extract"] |= {"corpus": str(write_jsonl(tmp_path / "more.jsonl", more)), "append": True}
    file = write_yaml(tmp_path / "more.yaml", settings)
    refused = run_cli("pipeline", file)
    assert (refused.code, "--replace" in refused.stderr) == (2, True)
    assert {name: snapshot(tmp_path)[name] for name in before if "train" in name} == {
        name: content for name, content in before.items() if "train" in name
    }
    report = ok("pipeline", file, "--set", "probe.replace=true", "--set", "select.replace=true", "--json").json
    assert report["extract"]["units_done_now"] == 0, "the run that was refused had computed them"
    assert report["probe"]["n_train"] + report["probe"]["n_validation"] == 2 * len(rows)
    assert report["probe"]["inputs"] != first.probe.inputs
    assert report["cliff"]["examples"] == 2 * len(rows)
    assert report["select"]["candidates"] == 2 * first.select.candidates
    again = ok("pipeline", file, "--json")
    assert again.json["export"] == report["export"]
    assert "there already" in again.stderr


def test_a_probe_of_other_examples_is_fitted_again(store: Path, built: Built) -> None:
    """A probe is kept for what it was fitted on, not for its name."""
    digest = ok("probe", "fit", store, "--name", "kept", "--where", "topic <> 'a chess club'", "--json").json["inputs"]
    same = ok("probe", "fit", store, "--name", "kept", "--where", "topic <> 'a chess club'", "--json")
    assert same.json["inputs"] == digest
    assert "there already" in same.stderr
    other = run_cli("probe", "fit", store, "--name", "kept", "--where", "topic <> 'a paper boat'", "--json")
    assert (other.code, "--replace" in other.stderr) == (2, True)


def test_cliffs_of_other_scores_are_ranked_again(store: Path) -> None:
    """Replacing a probe changes its scores: cliffs that were there must not be taken for theirs."""
    first = ok("cliff", store, "--probe", PROBE, "--json").json["top"]
    ok("probe", "fit", store, "--name", PROBE, "--c", "0.01", "--replace", "--json")
    ok("score", store, "--probe", PROBE, "--json")
    second = ok("cliff", store, "--probe", PROBE, "--json").json["top"]
    assert [row["cliff"] for row in first] != [row["cliff"] for row in second]
    ok("select", store, "--name", SELECTION, "--top", "8", "--replace", "--json")


# Mistakes.

Change = Callable[[dict[str, dict[str, object]]], object]
MISTAKES: list[tuple[str, Change, tuple[str, ...]]] = [
    ("unknown section", lambda p: p.update(extrakt={}), ("extrakt", "not known")),
    ("unknown option", lambda p: p["extract"].update(layrs="8"), ("extract.layrs", "not known")),
    ("missing section", lambda p: p.pop("select"), ("select", "section `select`")),
    ("missing option", lambda p: p["extract"].pop("model"), ("extract.model", "section `extract`")),
    ("missing store", lambda p: p.pop("store"), ("store",)),
    ("section that is none", lambda p: p.update(probe="refusal"), ("probe", "refusal")),  # type: ignore[arg-type]
    ("wrong type", lambda p: p["extract"].update(limit="many"), ("extract.limit", "many")),
    ("wrong list", lambda p: p["probe"].update(layers=[1, 2]), ("probe.layers", "string")),
    ("malformed layers", lambda p: p["probe"].update(layers="two"), ("'two'",)),
    ("malformed top", lambda p: p["select"].update(top="many"), ("top", "many")),
    ("unknown strategy", lambda p: p["select"].update(strategy="dice"), ("select.strategy", "dice")),
    ("malformed quota", lambda p: p["select"].update(quota=["label"]), ("select.quota", "'label'")),
    ("malformed dedupe", lambda p: p["select"].update(dedupe="words"), ("select.dedupe", "'words'")),
    ("no such rules", lambda p: p["select"].update(strategy="rules", rules="none.txt"), ("select.rules", "none.txt")),
    ("unknown format", lambda p: p["export"].update(format="pairs"), ("export.format", "pairs")),
    ("malformed thinking", lambda p: p["export"].update(thinking="cut"), ("export.thinking", "cut", "keep:40%")),
    ("a mix of nothing", lambda p: p["export"].update(mix=0.3), ("export", "mix-where")),
    ("a share that is none", lambda p: p["export"].update(validation="most"), ("export.validation", "most")),
    ("no such template", lambda p: p["export"].update({"target-template": "none.jinja"}), ("none.jinja",)),
    (
        "two answers",
        lambda p: p["export"].update({"target-text": "a", "target-column": "b"}),
        ("export", "target-text"),
    ),
    ("a name that is none", lambda p: p["probe"].update(name="../p"), ("../p",)),
    ("store in a section", lambda p: p["score"].update(store="x"), ("score.store", "once")),
    ("another probe", lambda p: p["score"].update(probe="other"), ("score.probe", "other", "refusal")),
    ("another selection", lambda p: p["export"].update(selection="other"), ("export.selection", "other", "worst")),
    ("a plateau that is none", lambda p: p["cliff"].update(plateau="mode"), ("'mode'", "median")),
    ("a section in a section", lambda p: p["cliff"].update(select={"name": "s", "top": 1}), ("cliff.select",)),
    ("scores alone", lambda p: p["extract"].update(probe="refusal"), ("extract.probe",)),
    ("output with a password", lambda p: p["export"].update(output="s3://me:hush@bucket/x"), ("s3://…@bucket/x",)),
    ("no such corpus", lambda p: p["extract"].update(corpus="nowhere.jsonl"), ("nowhere.jsonl",)),
]


@pytest.mark.parametrize(("change", "told"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_mistake_in_a_pipeline_is_one_line(
    change: Change, told: tuple[str, ...], built: Built, tmp_path: Path, job: Job
) -> None:
    settings = copy.deepcopy({**pipeline_settings(built, tmp_path), "score": {}, "cliff": {}})
    change(settings)
    file = write_yaml(tmp_path / "pipeline.yaml", settings)
    before = snapshot(tmp_path)
    result = job("pipeline", file)
    assert result.code == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for text in told:
        assert text in line
    assert "hush" not in result.stderr
    assert (events(result)[-1]["event"], events(result)[-1]["exit_code"]) == ("exit", 2)
    assert not result.stdout
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("fit_probe", {"nam": "p"}, "option nam is not known"),
        ("fit_probe", {}, "name is not given: say --name"),
        ("score", {}, "probe is not given: say --probe"),
        ("rank", {"probe": PROBE, "top": 0}, "option top:"),
        ("rank", {"probe": PROBE, "select": {"name": "s"}}, "select.top is not given: add it to the section `select`"),
        ("rank", {"probe": PROBE, "select": {"name": "s", "top": "few"}}, "'few'"),
        ("export", {"selection": SELECTION}, "output is not given: say --output"),
        ("export", {"selection": SELECTION, "output": "o", "storage-options": {"secret": ["hush"]}}, "storage-options"),
        ("score", {"probe": PROBE, "secret": "hush"}, "option secret is not known"),
    ],
)
def test_mistake_in_a_job_is_one_line(
    name: str, settings: dict[str, object], told: str, store: Path, tmp_path: Path, job: Job
) -> None:
    file = write_yaml(tmp_path / "job.yaml", {"store": str(store), **settings})
    before = snapshot(tmp_path)
    result = job(name, file)
    assert (result.code, result.stdout) == (2, b"")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert told in line
    assert "hush" not in result.stderr
    assert snapshot(tmp_path) == before


def test_mistake_in_a_job_without_a_file_is_one_line(built: Built, tmp_path: Path, job: Job) -> None:
    result = job("extract", tmp_path / "nowhere.jsonl", "--model", built.model, "--store", tmp_path / "store")
    assert result.code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: no such file")]
    assert "nowhere.jsonl" in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("pair", ["extract.layers", "=3", "extract.=3", "extract.layers=[1, 2"])
def test_mistake_in_a_setting_is_one_line(pair: str, built: Built, tmp_path: Path) -> None:
    result = run_cli("pipeline", write_yaml(tmp_path / "p.yaml", pipeline_settings(built, tmp_path)), "--set", pair)
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert "--set" in result.stderr
