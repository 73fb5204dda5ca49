"""Rights in a bucket: what a reader, a writer and a maintainer may do, and that they need all of it.

The policies are those of `infra/policies`, on a server that checks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import yaml
from commands import Result, ok, run_cli, write_jsonl
from iam_server import (
    POLICIES,
    GuardedStorage,
    Policy,
    and_bulk_removal,
    guarded,
    read_policy,
    without,
)
from quick import quick_runs

from cliffstore.errors import StoreError
from cliffstore.schema import UnitError
from cliffstore.store import layout, receipts
from cliffstore.store.objects import ObjectStore

NAMES = ("reader", "writer", "maintainer")
OF_A_BUCKET, OF_OBJECTS = {"s3:ListBucket"}, {
    "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject",
}  # fmt: skip
SCHEMA = {
    # The grammar of IAM policies, version 2012-10-17, as far as these files may use it: no wildcards among actions.
    "type": "object",
    "required": ["Version", "Statement"],
    "additionalProperties": False,
    "properties": {
        "Version": {"const": "2012-10-17"},
        "Statement": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["Sid", "Effect", "Action", "Resource"],
                "additionalProperties": False,
                "properties": {
                    "Sid": {"type": "string", "pattern": "^[A-Za-z0-9]+$"},
                    "Effect": {"const": "Allow"},
                    "Action": {
                        "type": "array",
                        "minItems": 1,
                        "uniqueItems": True,
                        "items": {"enum": sorted(OF_A_BUCKET | OF_OBJECTS)},
                    },
                    "Resource": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "pattern": r"^arn:aws:s3:::BUCKET(/[^ ]*)?$"},
                    },
                },
            },
        },
    },
}
DENIED = "access denied"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def storage() -> Iterator[GuardedStorage]:
    with guarded() as storage:
        yield storage


def actions(policy: Policy) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


# What the files say.


@pytest.mark.parametrize("name", NAMES)
def test_policy_is_well_formed(name: str) -> None:
    policy = read_policy(name, "BUCKET")
    jsonschema.validate(policy, SCHEMA)
    sids = [statement["Sid"] for statement in policy["Statement"]]
    assert len(set(sids)) == len(sids)
    for statement in policy["Statement"]:
        # A statement on objects that names the bucket, or the other way round, allows nothing, without a word.
        of_objects = all("/" in resource for resource in statement["Resource"])
        of_bucket = all("/" not in resource for resource in statement["Resource"])
        assert of_objects if set(statement["Action"]) <= OF_OBJECTS else of_bucket
        assert set(statement["Action"]) <= (OF_OBJECTS if of_objects else OF_A_BUCKET)


def test_there_are_no_other_policies() -> None:
    assert {path.stem for path in POLICIES.iterdir()} == set(NAMES)


def test_each_may_do_what_the_one_before_may() -> None:
    reader, writer, maintainer = (actions(read_policy(name)) for name in NAMES)
    assert reader == {"s3:ListBucket", "s3:GetObject"}
    assert writer - reader == {"s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"}
    assert maintainer == writer, "of as many kinds, but of all objects"


KEYS = {
    "shard": layout.shard("activations/main/resid_post/3", 7, 2),
    "receipt": layout.receipt("main-0", 7),
    "manifest": layout.MANIFEST,
    "place": layout.place(1),
    "plan": layout.plan_document("p"),
    "plan_table": layout.tokens_part("p", 0),
    "capture": layout.capture_document("main", "c"),
    "metadata": layout.metadata("activations/main/resid_post/3"),
    "unit_error": layout.unit_error("main-0", 7),
    "probe": layout.probe_document("refusal"),
    "weights": layout.probe_weights("refusal"),
    "score_receipt": layout.scores_receipt("refusal", 7),
    "scores": layout.scores_table("refusal", 7),
    "cliffs": layout.cliffs_document("refusal"),
    "cliffs_table": layout.cliffs_table("refusal"),
    "heads": layout.heads_document("effects"),
    "heads_table": layout.heads_table("effects"),
    "heads_piece": layout.heads_piece("effects", "0f"),
    "experiment": layout.experiment_document("off"),
    "experiment_table": layout.experiment_table("off"),
    "experiment_piece": layout.experiment_piece("off", "0f"),
    "selection": layout.selection_document("worst"),
    "selection_table": layout.selection_table("worst"),
}
"""One key of each kind of object that there is."""


def test_a_writer_may_remove_errors_of_units_and_pieces_of_heads_and_nothing_else() -> None:
    (statement,) = (one for one in read_policy("writer")["Statement"] if "s3:DeleteObject" in one["Action"])
    patterns = [re.compile(re.escape(one).replace(r"\*", ".*")) for one in statement["Resource"]]

    def is_removable(key: str) -> bool:
        return any(pattern.fullmatch(f"arn:aws:s3:::bucket/some/store/{key}") for pattern in patterns)

    assert all(layout.kind_of(key) == kind for kind, key in KEYS.items())
    assert {kind for kind, key in KEYS.items() if is_removable(key)} == {"unit_error", "heads_piece"}
    assert is_removable(layout.unit_error(layout.score_errors("refusal"), 7))
    assert not any(is_removable(layout.copy_of(key)) for kind, key in KEYS.items() if kind in layout.COPIED)


# What a server lets them do.


@dataclass
class Story:
    """What is done to a store, by whoever has the options of a file."""

    storage: GuardedStorage
    corpus: Path
    model: str
    folder: Path
    url: str

    def options(self, name: str, policy: Policy) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"storage-options": self.storage.user(name, policy)}))
        return path

    def extract(self, who: Path, *, layers: str = "1") -> Result:
        return run_cli(
            "extract", self.corpus, "--model", self.model, "--store", self.url, "--layers", layers,
            "--passes", "padded", "--pass-tokens", "64", "--unit-rows", "256", "--config", who, "--json",
        )  # fmt: skip

    def steps(self, who: Path) -> dict[str, Result]:
        """Do what a pipeline does."""
        at, train = ("--config", who, "--json"), f"{self.url}-train"
        return {
            "extract": self.extract(who),
            "probe": run_cli("probe", "fit", self.url, "--name", "refusal", "--c", "1", "--workers", "1", *at),
            "score": run_cli("score", self.url, "--probe", "refusal", *at),
            "cliff": run_cli("cliff", self.url, "--probe", "refusal", *at),
            "select": run_cli("select", self.url, "--name", "worst", "--top", "2", *at),
            "export": run_cli("export", self.url, "--selection", "worst", "-o", train, "--target-text", "No.", *at),
        }

    def objects(self, who: Path) -> ObjectStore:
        return ObjectStore(self.url, yaml.safe_load(who.read_text())["storage-options"])

    def fail_a_unit(self) -> str:
        """Leave a store as a unit leaves it that has failed: no receipt, and an error. Return the error's key."""
        objects = ObjectStore(self.url, self.storage.root.options)
        key = next(key for key in objects.list(layout.RECEIPTS) if layout.unit_of(key) is not None)
        capture, unit = key.split("/")[1], layout.unit_of(key) or 0
        objects.delete(key)
        error = UnitError(capture=capture, unit=unit, attempt=1, worker="w", error="out of luck")
        receipts.record_error(objects, error)
        return layout.unit_error(capture, unit)

    def contents(self) -> dict[str, int]:
        return ObjectStore(self.url, self.storage.root.options).sizes("")


def rows() -> list[dict[str, object]]:
    things = ("bread", "a chair", "the sky", "a bicycle", "herbs", "a boat", "soup", "a scarf", "rain", "a gate")
    return [
        {"id": f"{label}-{thing}", "prompt": f"{wish} {thing}.", "label": label, "thinking": f"About {thing}: {mood}"}
        for thing in things
        for label, wish, mood in (
            (0, "Please praise", "This is friendly, I can help."),
            (1, "Please insult", "This is unkind, so no."),
        )
    ]


@pytest.fixture
def story(storage: GuardedStorage, tiny_model: str, tmp_path: Path) -> Story:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows())
    return Story(storage, corpus, tiny_model, tmp_path, storage.root.new_url())


@pytest.fixture(scope="module")
def finished(storage: GuardedStorage, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What a writer has made."""
    folder = tmp_path_factory.mktemp("finished")
    corpus = write_jsonl(folder / "corpus.jsonl", rows())
    story = Story(storage, corpus, tiny_model, folder, storage.root.new_url())
    for step, result in story.steps(story.options("writer", read_policy("writer"))).items():
        assert result.code == 0, (step, result.stderr)
    return story


def test_a_writer_takes_a_corpus_to_a_training_set_and_resumes(finished: Story) -> None:
    story, who = finished, finished.options("writer", read_policy("writer"))
    error = story.fail_a_unit()
    again = story.extract(who)
    assert (again.code, again.json["units_done_now"]) == (0, 1), again.stderr
    assert error not in story.contents()
    assert ok("verify", story.url, "--config", who, "--json").json["findings"] == []


def test_a_writer_replaces_and_removes_nothing(finished: Story) -> None:
    story, who = finished, finished.options("writer", read_policy("writer"))
    fit = ("probe", "fit", story.url, "--name", "other", "--workers", "1")
    ok(*fit, "--c", "1", "--config", who)
    ok("score", story.url, "--probe", "other", "--config", who)
    before = story.contents()
    receipt = next(key for key in before if key.startswith("receipts/"))
    for key in ("manifest.json", receipt, "scores/other"):
        with pytest.raises(StoreError, match=DENIED):
            story.objects(who).delete(key)
    refused = run_cli(*fit, "--c", "0.01", "--replace", "--config", who)
    assert (refused.code, DENIED in refused.stderr) == (2, True), refused.stderr
    assert story.contents() == before
    maintainer = story.options("maintainer", and_bulk_removal(read_policy("maintainer")))
    ok(*fit, "--c", "0.01", "--replace", "--config", maintainer)
    assert not any(key.startswith("scores/other") for key in story.contents())


def test_a_reader_reads_everything_and_writes_nothing(finished: Story) -> None:
    story, who = finished, finished.options("reader", read_policy("reader"))
    at = ("--config", who, "--json")
    query = "SELECT count(resid_post(row, 1)) AS vectors, count(*) AS n FROM tokens"
    (found,) = ok("sql", story.url, query, *at).json
    assert found["vectors"] == found["n"] > 100
    assert ok("sql", story.url, "SELECT count(*) AS n FROM cliffs", *at).json == [{"n": len(rows())}]
    assert "refusal" in ok("info", story.url, *at).json["scores"]
    assert ok("verify", story.url, *at).json["findings"] == []
    assert ok("probe", "show", story.url, "--name", "refusal", *at).json["name"] == "refusal"
    before = story.contents()
    tried = {
        "layers": story.extract(who, layers="2"),
        "probe": run_cli("probe", "fit", story.url, "--name", "mine", "--c", "1", "--workers", "1", *at),
        "select": run_cli("select", story.url, "--name", "mine", "--top", "1", *at),
        "export": run_cli(
            "export", story.url, "--selection", "worst", "-o", f"{story.url}-mine", "--target-text", "No.", *at
        ),
    }
    for step, result in tried.items():
        assert result.code in (1, 2), step
        assert DENIED in result.stderr, (step, result.stderr)
        assert "Traceback" not in result.stderr, step
    assert story.contents() == before


@pytest.mark.parametrize("action", ["s3:ListBucket", "s3:GetObject", "s3:PutObject"])
def test_a_writer_needs_each_right(story: Story, action: str) -> None:
    who = story.options("less", without(read_policy("writer"), action))
    result = story.extract(who)
    assert result.code != 0, f"a writer does not need {action}"
    assert DENIED in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_a_writer_needs_to_remove_errors(finished: Story) -> None:
    story, error = finished, finished.fail_a_unit()
    result = story.extract(story.options("less", without(read_policy("writer"), "s3:DeleteObject")))
    assert (result.code != 0, DENIED in result.stderr, error in story.contents()) == (True, True, True)
    assert story.extract(story.options("writer", read_policy("writer"))).code == 0


@pytest.mark.parametrize("action", sorted(actions(read_policy("reader"))))
def test_a_reader_needs_each_right(finished: Story, action: str) -> None:
    who = finished.options("less", without(read_policy("reader"), action))
    result = run_cli("sql", finished.url, "SELECT count(resid_post(row, 1)) FROM tokens", "--config", who)
    assert (result.code != 0, DENIED in result.stderr) == (True, True), result.stderr


def test_a_writer_leaves_no_parts_of_a_large_object_that_failed(story: Story) -> None:
    """Objects of 100 MiB and more go up in parts, which are paid for until they are taken back."""
    part, uploads = 5 * 2**20, {}
    for name, policy in (
        ("writer", read_policy("writer")),
        ("less", without(read_policy("writer"), "s3:AbortMultipartUpload")),
    ):
        objects = story.objects(story.options(name, policy))
        bucket, key, _ = objects.fs.split_path(objects.path(f"{name}.bin"))
        objects.put(f"{name}.bin", b"there already")
        with pytest.raises((FileExistsError, PermissionError)):
            objects.fs.pipe_file(f"{bucket}/{key}", bytes(2 * part + 1), chunksize=part, mode="create")
        root = ObjectStore(story.url, story.storage.root.options)
        listed = root.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        uploads[name] = len(listed.get("Uploads", []))
    assert uploads == {"writer": 0, "less": 1}
