"""Jobs on a cluster that runs already: from a corpus in object storage to a training set there, through kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from commands import write_jsonl
from conftest import Built
from disturbed import WORDS, one_thread
from ray_cluster import IGNORED, Cluster, head_node
from servers import Storage, filesystem
from stores import assert_equal_stores

SITES = ("--sites", "resid_post,final_norm")
N_EXAMPLES, WAIT_SECONDS = 320, 120.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One head node for all jobs: each start costs seconds."""
    with head_node(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def labelled_rows(n: int) -> Iterator[dict[str, object]]:
    """Prompts of two classes that differ in their words; all have thinking and an answer."""
    numbers = random.Random(5)
    for number in range(n):
        words = WORDS[number % 2 :: 2]
        think = " ".join(numbers.choices(WORDS, k=12))
        yield {
            "id": f"e{number:04d}", "prompt": " ".join(numbers.choices(words, k=24)), "thinking": think,
            "response": f"About {words[0]}.", "label": number % 2,
        }  # fmt: skip


def events_of(log: str) -> list[dict[str, object]]:
    """Return the events in a job's log, each once: Ray repeats the last lines of a job that failed."""
    lines = dict.fromkeys(line for line in log.splitlines() if line.startswith('{"time"'))
    return [json.loads(line) for line in lines]


def named(log: str, event: str) -> list[dict[str, object]]:
    return [one for one in events_of(log) if one["event"] == event]


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass(frozen=True)
class Case:
    """A pipeline over an S3 server; the configuration says where that is, the environment has the credentials."""

    cluster: Cluster
    storage: Storage
    folder: str
    config: Path

    @property
    def store(self) -> str:
        return f"{self.folder}/store"

    @property
    def credentials(self) -> dict[str, str]:
        options = self.storage.options
        return one_thread({"AWS_ACCESS_KEY_ID": str(options["key"]), "AWS_SECRET_ACCESS_KEY": str(options["secret"])})

    def submit(self, *more: str):
        entrypoint = (sys.executable, "-m", "jobs.pipeline", self.config)
        return self.cluster.submit(*entrypoint, options=more, env_vars=self.credentials)

    def submit_and_go_on(self) -> str:
        submission = f"job-{uuid.uuid4().hex}"
        done = self.submit("--no-wait", "--submission-id", submission)
        assert done.returncode == 0, done.stdout + done.stderr
        return submission

    def receipts(self) -> int:
        keys = filesystem(self.storage).find(f"{self.store}/receipts".removeprefix("s3://"))
        return sum(not key.endswith(".error.json") for key in keys)

    def training_set(self) -> dict[str, bytes]:
        fs, folder = filesystem(self.storage), f"{self.folder}/train".removeprefix("s3://")
        return {path: fs.cat_file(path) for path in fs.find(folder)}

    def wipe(self) -> None:
        fs = filesystem(self.storage)
        for part in ("store", "train"):
            fs.rm(f"{self.folder}/{part}".removeprefix("s3://"), recursive=True)

    def ended(self, submission: str) -> Callable[[], bool]:
        return lambda: self.cluster.job(submission)["status"] in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody disturbed left: the training set, what it said, and the metrics behind it."""

    training_set: dict[str, bytes]
    log: str
    metrics: str
    report: dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def case(cluster: Cluster, rclone_s3: Storage, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    local = tmp_path_factory.mktemp("pipeline")
    corpus = write_jsonl(local / "corpus.jsonl", labelled_rows(N_EXAMPLES))
    folder = f"{rclone_s3.bucket}/{uuid.uuid4().hex}"
    filesystem(rclone_s3).put_file(str(corpus), f"{folder}/corpus.jsonl".removeprefix("s3://"))
    settings = {
        "store": f"{folder}/store",
        "storage_options": {name: rclone_s3.options[name] for name in ("endpoint_url", "region")},
        "extract": {
            "corpus": f"{folder}/corpus.jsonl",
            "model": tiny_model,
            "layers": "1-2",
            "actors": 2,  # of one thread each: sums over other numbers of threads differ in their last bits
            "unit-rows": 512,
            "passes": "tree",
            "pass-tokens": 64,
        },
        "probe": {"name": "refusal"},
        "select": {"name": "worst", "top": "10%"},
        "export": {"output": f"{folder}/train"},
    }
    config = local / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Case(cluster, rclone_s3, folder, config)


@pytest.fixture(scope="module")
def undisturbed(case: Case) -> Undisturbed:
    done = case.submit()
    assert done.returncode == 0, done.stdout + done.stderr
    with urllib.request.urlopen(case.cluster.metrics, timeout=30) as answer:
        metrics = answer.read().decode()
    log = done.stdout + done.stderr
    report = json.loads(next(line for line in log.splitlines() if line.startswith('{"extract"')))
    return Undisturbed(case.training_set(), log, metrics, report)


def test_pipeline_ends_in_a_training_set(case: Case, undisturbed: Undisturbed) -> None:
    names = {path.rpartition("/")[2] for path in undisturbed.training_set}
    assert names == {"train.parquet", "README.md"}
    report = undisturbed.report
    assert "2 Ray actor" in str(report["extract"]["executor"])
    assert (report["select"]["candidates"], report["export"]["rows"]) == (N_EXAMPLES, N_EXAMPLES // 10)
    assert report["probe"]["n_train"] + report["probe"]["n_validation"] == N_EXAMPLES  # type: ignore[operator]


def test_job_says_one_event_a_line(case: Case, undisturbed: Undisturbed) -> None:
    log, extracted = undisturbed.log, undisturbed.report["extract"]
    (last,) = [one for one in named(log, "end") if one["stage"] == "extract"]
    figures = {"units_done": extracted["units"], "tokens": extracted["tokens"], "bytes": extracted["bytes"]}
    assert figures.items() <= last.items()
    assert (last["units_failed"], last["queue_depth"]) == (0, 0)
    progress = [one for one in named(log, "progress") if one["stage"] == "extract"]
    assert [one["units_done"] for one in progress] == list(range(1, int(str(extracted["units"])) + 1))
    assert [one["queue_depth"] for one in progress] == [last["units_total"] - one["units_done"] for one in progress]
    assert all(one["tokens_per_s"] > 0 and one["bytes_per_s"] > 0 for one in progress)
    stages = [one["stage"] for one in named(log, "stage")]
    assert list(dict.fromkeys(stages)) == ["plan", "estimate", "extract", "probe", "score", "cliff", "select", "export"]
    assert [one["exit_code"] for one in named(log, "exit")] == [0]
    assert events_of(log)[-1]["event"] == "exit"


def test_secrets_are_not_in_what_a_job_says_and_writes(case: Case, undisturbed: Undisturbed) -> None:
    secret = case.credentials["AWS_SECRET_ACCESS_KEY"]
    assert secret not in undisturbed.log
    assert not any(secret.encode() in content for content in undisturbed.training_set.values())


def test_metrics_are_exported(undisturbed: Undisturbed) -> None:
    extracted = undisturbed.report["extract"]
    found: dict[str, float] = {}
    for line in undisturbed.metrics.splitlines():
        if line.startswith("ray_cliffstore_") and 'capture="scores"' not in line:
            name, _, rest = line.partition("{")
            tags, _, value = rest.rpartition("} ")
            assert f'store="{extracted["store"]}"' in tags
            assert f'capture="{extracted["capture"]}"' in tags
            found[name.removeprefix("ray_cliffstore_")] = float(value)
    assert found.pop("tokens_per_second") > 0
    assert found.pop("bytes_per_second") > 0
    assert found == {
        "units_done_total": extracted["units"],
        "tokens_total": extracted["tokens"],
        "bytes_total": extracted["bytes"],
        "queue_depth": 0,
    }


def test_killed_and_submitted_again_gives_the_same_bytes(case: Case, undisturbed: Undisturbed) -> None:
    """From nothing: the driver is killed, the job submitted again and stopped, and submitted again."""
    case.wipe()
    units = int(str(undisturbed.report["extract"]["units"]))

    killed = case.submit_and_go_on()
    wait_until(lambda: case.receipts() >= 2 or case.ended(killed)(), "no unit was done")
    driver = case.cluster.job(killed)["driver_info"]
    os.kill(int(driver["pid"]), signal.SIGKILL)  # type: ignore[index]
    wait_until(case.ended(killed), "the job goes on without its driver")
    kept = case.receipts()
    assert 2 <= kept < units, "it was to be killed in the middle"
    assert case.cluster.job(killed)["status"] == "FAILED"

    stopped = case.submit_and_go_on()
    wait_until(lambda: case.receipts() > kept or case.ended(stopped)(), "no unit was done")
    case.cluster.stop(stopped)
    wait_until(case.ended(stopped), "the job does not stop")
    assert case.cluster.job(stopped)["status"] == "STOPPED"
    assert kept < case.receipts() < units, "it was to be stopped in the middle"
    (exit_event,) = named(case.cluster.logs(stopped), "exit")
    assert exit_event["exit_code"] == 130
    assert f"of {units} units are stored" in str(exit_event["text"])
    assert not case.training_set()

    done = case.submit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert case.training_set() == undisturbed.training_set
    (last,) = [one for one in named(done.stdout, "end") if one["stage"] == "extract"]
    assert last["units_done"] == units
    assert 0 < len([one for one in named(done.stdout, "progress") if one["stage"] == "extract"]) < units - kept


def test_failed_units_fail_the_job(case: Case, tiny_model: str, tmp_path: Path) -> None:
    """One example meets a number that is none: its unit is given up and counted, the others are stored."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    model, store = Path(shutil.copytree(tiny_model, tmp_path / "model")), tmp_path / "store"
    (token,) = AutoTokenizer.from_pretrained(tiny_model)(" zebra", add_special_tokens=False)["input_ids"][:1]
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    rows = [*labelled_rows(60)]
    rows[7]["prompt"] = f"{rows[7]['prompt']} zebra"
    settings = {"corpus": str(write_jsonl(tmp_path / "corpus.jsonl", rows)), "model": str(model), "store": str(store)}
    config = tmp_path / "extract.yaml"
    config.write_text(yaml.safe_dump({**settings, "unit_rows": 512, "layers": 2}), encoding="utf-8")
    submission = f"job-{uuid.uuid4().hex}"
    options = ("--submission-id", submission)
    done = case.cluster.submit(sys.executable, "-m", "jobs.extract", config, options=options)
    assert done.returncode != 0
    assert case.cluster.job(submission)["status"] == "FAILED"
    (exit_event,) = named(done.stdout + done.stderr, "exit")
    assert exit_event["exit_code"] == 1
    assert "NaN" in str(exit_event["text"])
    (last,) = [one for one in named(done.stdout, "end") if one["stage"] == "extract"]
    assert (last["units_failed"], last["queue_depth"]) == (1, 0)
    assert last["units_done"] == len([*store.glob("receipts/*/unit-*[0-9].json")]) > 1
    with urllib.request.urlopen(case.cluster.metrics, timeout=30) as answer:
        lines = [line for line in answer.read().decode().splitlines() if f'store="{store}"' in line]
    counts = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert counts["ray_cliffstore_units_failed_total"] == 1
    assert counts["ray_cliffstore_units_done_total"] == last["units_done"]


def test_job_equals_one_process_and_sees_the_project_alone(built: Built, cluster: Cluster, tmp_path: Path) -> None:
    """`.gitignore` keeps the environment and whatever else is large out of what is uploaded."""
    store = tmp_path / "store"
    listing = (
        "import os,sys,runpy;print('uploaded',*sorted(os.listdir()),flush=True);del(sys.argv[0]);"
        "runpy.run_module(sys.argv[0],run_name='__main__',alter_sys=True)"
    )
    done = cluster.submit(
        sys.executable, "-c", listing, "jobs.extract", built.corpus, "--model", built.model, "--store", store, *SITES,
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    uploaded = next(line for line in done.stdout.splitlines() if line.startswith("uploaded")).split()
    assert {"cliffstore", "jobs", "pyproject.toml"} <= set(uploaded)
    assert not set(IGNORED) & set(uploaded)
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"store"')))
    assert "Ray actor" in report["executor"]
    assert "started for this run" not in report["executor"], "the job must use the cluster that it runs on"
    kept = ("plan", "capture", "examples", "tokens", "rows", "units", "units_done_now", "units_failed", "bytes")
    assert {name: report[name] for name in kept} == {name: built.report[name] for name in kept}
    assert_equal_stores(str(store), str(built.store), rtol=1e-5, atol=1e-6)
