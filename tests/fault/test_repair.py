"""What `verify` says of the states that runs, accidents and forgers leave, and what `--repair` does about them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import ok, run_cli, write_jsonl
from damage import Damage, contents_of, kind_of
from quick import quick_runs
from servers import Storage
from whole_store import PROBE, WORDS, Case, Silent, assert_undisturbed, findings_of, repaired, unnamed

from cliffstore import Store
from cliffstore.errors import InterruptedRunError
from cliffstore.run import repair as repair_module
from cliffstore.run.origins import Origins
from cliffstore.run.repair import repair_store
from cliffstore.run.verification import verify
from cliffstore.schema import CaptureDocument, Manifest, PlanPlace, Receipt
from cliffstore.store import documents, layout
from cliffstore.store.checks.findings import Action, Kind
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture
def objects(whole: Case, tmp_path: Path) -> ObjectStore:
    return whole.copy(tmp_path)


def first(objects: ObjectStore, kind: str) -> str:
    return next(key for key in objects.list("") if kind_of(key) == kind)


def flip(objects: ObjectStore, key: str) -> None:
    content = bytearray(objects.get(key))
    content[len(content) // 2] ^= 4
    objects.put(key, bytes(content))


def of_capture(objects: ObjectStore) -> tuple[str, list[str]]:
    """Return a capture and its receipts."""
    receipts = [key for key in objects.list(layout.RECEIPTS) if kind_of(key) == "receipt"]
    capture = receipts[0].split("/")[1]
    return capture, [key for key in receipts if key.split("/")[1] == capture]


def shards_of(objects: ObjectStore, capture: str, unit: int) -> list[str]:
    document = next(one for one in StoreReader(objects.url).captures() if one.capture == capture)
    arrays = {layout.array(document.alias, one.site, one.layer) for one in document.arrays}
    places = {key: layout.array_and_unit(key) for key in objects.list(layout.ACTIVATIONS)}
    return [key for key, place in places.items() if place is not None and place[0] in arrays and place[1] == unit]


def test_forged_receipt_of_a_unit_that_is_not_extracted(whole: Case, objects: ObjectStore) -> None:
    capture, receipts = of_capture(objects)
    forged = objects.get(receipts[2])
    shards = shards_of(objects, capture, 2)
    for key in (receipts[2], *shards):
        objects.delete(key)
    report = verify(objects, Silent())
    assert (report.findings, report.units_missing) == ((), 1)
    objects.put(receipts[2], forged)
    found = findings_of(objects)
    assert sorted(one.key for one in found) == sorted(shards)
    assert {(one.kind, one.action, one.unit) for one in found} == {(Kind.MISSING, Action.EXTRACT, 2)}
    assert all(receipts[2] in one.problem for one in found)
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_what_interrupted_runs_leave(whole: Case, objects: ObjectStore) -> None:
    """A unit without its receipt, a plan and a capture that were not finished, a probe, scores, half files."""
    _, receipts = of_capture(objects)
    plan = StoreReader(objects.url).plans()[0]
    place = documents.read(objects, PlanPlace, layout.place(0))
    left = {
        "receipts/.tmp-0123": b"half",
        f"{shards_of(objects, receipts[1].split('/')[1], 1)[0]}.__lock": b"",
        "plans/plan-0123456789ab/examples/part-000000.parquet": objects.get(layout.examples_part(plan.plan, 0)),
        "activations/main/resid_mid/0/zarr.json": objects.get("activations/main/resid_post/0/zarr.json"),
        "activations/main/resid_mid/zarr.json": objects.get("activations/main/zarr.json"),
        "activations/main/resid_mid/0/c/0/0": b"vectors",
        "probes/begun/probe.safetensors": b"weights",
    }
    for key, content in left.items():
        objects.put(key, content)
    begun = place.model_copy(
        update={"number": 1, "plan": "plan-0123456789ab", "first_unit": place.n_units, "n_units": 3}
    )
    documents.create(objects, begun)
    objects.delete(receipts[1])
    objects.delete(layout.scores_receipt(PROBE, 0))
    found = {one.key: one for one in findings_of(objects)}
    expected = {*left, layout.place(1), receipts[1], layout.scores_receipt(PROBE, 0)}
    assert set(found) == expected
    assert {one.kind for one in found.values()} == {Kind.ORPHAN}
    for key in (receipts[1], layout.place(1), "plans/plan-0123456789ab/examples/part-000000.parquet"):
        assert "extracting again settles it" in found[key].problem
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_receipts_protect_the_arrays_of_a_lost_capture(whole: Case, objects: ObjectStore) -> None:
    capture, receipts = of_capture(objects)
    key = next(key for key in objects.list(layout.CAPTURES) if capture in key)
    kept = objects.get(key)
    documents.delete(objects, key)
    before = contents_of(objects)
    report = repair_store(objects, whole.origins, Silent())
    assert set(receipts) <= {one.key for one in report.after.findings}
    assert all(one.action is Action.NONE for one in report.after.findings)
    assert contents_of(objects) == before
    objects.put(key, kept)
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_document_and_copy_damaged(whole: Case, objects: ObjectStore) -> None:
    """The rest is repaired, and what is left is listed with the way out."""
    capture = next(key for key in objects.list(layout.CAPTURES))
    for key in (capture, layout.copy_of(capture)):
        flip(objects, key)
    objects.delete(layout.copy_of(layout.MANIFEST))
    result = run_cli("verify", objects.url, "--repair", "--model", whole.model)
    assert result.code == 1
    assert "backup" in result.text
    assert {one.key for one in findings_of(objects)} == {capture, layout.copy_of(capture)}


def test_two_sealed_documents_that_differ_are_left_to_the_user(whole: Case, objects: ObjectStore) -> None:
    held = documents.read(objects, Manifest, layout.MANIFEST)
    other = held.model_copy(update={"created": "2020-01-01T00:00:00+00:00"})
    objects.put(layout.copy_of(layout.MANIFEST), other.to_bytes())
    before = contents_of(objects)
    report = repair_store(objects, whole.origins, Silent())
    (finding,) = report.after.findings
    assert (finding.key, finding.kind, finding.action) == (layout.MANIFEST, Kind.DISAGREES, Action.NONE)
    assert "remove the wrong one" in finding.problem
    assert contents_of(objects) == before
    objects.delete(layout.copy_of(layout.MANIFEST))
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


@pytest.mark.parametrize("kind", ["manifest", "plan"])
def test_missing_document_is_no_empty_store(whole: Case, objects: ObjectStore, kind: str) -> None:
    objects.delete(first(objects, kind))
    if kind == "manifest":
        result = run_cli("extract", whole.corpus, "--model", whole.model, "--store", objects.url)
        assert result.code == 1
        assert "manifest.json is missing" in result.stderr
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_without_its_model_nothing_is_condemned(whole: Case, objects: ObjectStore) -> None:
    receipt = of_capture(objects)[1][0]
    flip(objects, receipt)
    before = contents_of(objects)
    report = repair_store(objects, Origins(), Silent())
    assert contents_of(objects) == before
    assert len(report.failed) == 1
    assert "--model" in report.failed[0]
    assert [one.key for one in report.after.findings] == [receipt]


def test_another_model_is_refused(whole: Case, objects: ObjectStore, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    twin = Path(shutil.copytree(whole.model, tmp_path / "twin"))
    weights = load_file(twin / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, twin / "model.safetensors", {"format": "pt"})
    flip(objects, of_capture(objects)[1][0])
    before = contents_of(objects)
    report = repair_store(objects, Origins(models=(str(twin),)), Silent())
    assert "is another one" in report.failed[0]
    assert contents_of(objects) == before
    repair_store(objects, Origins(models=(str(twin), whole.model)), Silent())
    assert_undisturbed(objects, whole)


def test_table_of_a_plan_comes_from_the_same_corpus_only(whole: Case, objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(whole.corpus, tmp_path / "elsewhere"))
    renamed = Path(shutil.copy(whole.corpus, tmp_path / "renamed.jsonl"))
    changed = tmp_path / whole.corpus.name
    changed.write_text(moved.read_text().replace(WORDS[0], WORDS[1], 1))
    table = first(objects, "plan_table")
    flip(objects, table)
    before = contents_of(objects)
    report = repair_store(objects, Origins((whole.model,), corpus=(str(changed),)), Silent())
    assert "no longer what" in report.failed[0]
    assert "--corpus" in report.failed[0]
    report = repair_store(objects, Origins((whole.model,), corpus=(str(renamed),)), Silent())
    assert "names that they had" in report.failed[0]
    assert contents_of(objects) == before
    report = repair_store(objects, Origins((whole.model,), corpus=(str(moved),)), Silent())
    assert report.after.findings == ()
    assert_undisturbed(objects, whole)


def test_interrupted_repair_leaves_a_readable_store(
    whole: Case, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, receipts = of_capture(objects)
    for key in receipts[:3]:
        flip(objects, key)
    flip(objects, layout.scores_table(PROBE, 1))

    def stop(*_: object) -> None:
        raise InterruptedRunError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "run_extraction", stop)
        with pytest.raises(InterruptedRunError):
            repair_store(objects, whole.origins, Silent())
    reader = StoreReader(objects.url)
    assert len(reader.receipts(receipts[0].split("/")[1])) == len(receipts) - 3
    statement = "SELECT count(*) AS n FROM units WHERE extracted"
    counts = [ok("sql", store, statement, "--json").json[0]["n"] for store in (objects.url, whole.store)]
    assert counts[0] == counts[1] - 3 > 0
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_appended_plan_is_repaired_like_the_first(whole: Case, objects: ObjectStore, tmp_path: Path) -> None:
    rows = [{"id": f"a{n:02d}", "prompt": " ".join(WORDS[n % 7 :] + WORDS[: n % 9]), "topic": n} for n in range(30)]
    more = write_jsonl(tmp_path / "more.jsonl", [*rows, json.loads(whole.corpus.read_text().splitlines()[0])])
    command = ["extract", more, "--model", whole.model, "--store", objects.url, "--append", "--layers", "0-1"]
    ok(*command)
    report = verify(objects, Silent())
    assert report.findings == ()
    assert report.units_missing > 0
    grown = contents_of(objects)
    second = next(plan for plan in StoreReader(objects.url).plans() if plan.place == 1)
    damaged = [
        *(layout.in_plan(second.plan, path) for path in second.tables if not path.startswith("skipped")),
        layout.place(1),
        layout.plan_document(second.plan),
        "activations/main/resid_post/0/zarr.json",
        "activations/main/resid_post/2/zarr.json",
        next(key for key in grown if kind_of(key) == "receipt" and second.plan.encode() in grown[key]),
    ]
    for key in damaged:
        flip(objects, key)
    assert set(damaged) <= {one.key for one in repair_store(objects, whole.origins, Silent()).found}
    assert findings_of(objects) == ()
    after = contents_of(objects)
    same = {key for key in grown if kind_of(key) not in ("receipt", "metadata")}
    assert {key: after[key] for key in same} == {key: grown[key] for key in same}
    assert set(after) == set(grown)


def test_receipts_protect_the_units_of_a_lost_plan(whole: Case, objects: ObjectStore) -> None:
    receipts = of_capture(objects)[1]
    key = first(objects, "plan")
    kept = objects.get(key)
    documents.delete(objects, key)
    flip(objects, receipts[0])
    before = contents_of(objects)
    report = repair_store(objects, whole.origins, Silent())
    found = {one.key: one.problem for one in report.after.findings}
    assert "whose document is lost" in found[receipts[1]]
    assert f"{key} is lost" in found[layout.place(0)]
    assert all(one.action is Action.NONE for one in report.after.findings)
    assert contents_of(objects) == before
    objects.put(key, kept)
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_scores_protect_the_weights_of_a_lost_probe(whole: Case, objects: ObjectStore) -> None:
    key = layout.probe_document(PROBE)
    kept = objects.get(key)
    documents.delete(objects, key)
    flip(objects, layout.scores_receipt(PROBE, 0))
    before = contents_of(objects)
    report = repair_store(objects, whole.origins, Silent())
    found = {one.key for one in report.after.findings}
    assert {layout.probe_weights(PROBE), layout.cliffs_document(PROBE), layout.scores_receipt(PROBE, 1)} <= found
    assert all(one.action is Action.NONE for one in report.after.findings)
    assert contents_of(objects) == before
    objects.put(key, kept)
    repaired(objects, whole)
    assert_undisturbed(objects, whole)


def test_scores_without_vectors_are_scored_by_the_model(whole: Case, tmp_path: Path) -> None:
    live = tmp_path / "live"
    probe = f"{whole.store}/probes/{PROBE}"
    command = ["extract", whole.corpus, "--model", whole.model, "--store", live, "--unit-rows", "256"]
    ok(*command, "--probe", probe)
    objects = ObjectStore(str(live))
    assert findings_of(objects) == ()
    before = contents_of(objects)
    flip(objects, layout.scores_table(PROBE, 1))
    objects.delete(layout.scores_receipt(PROBE, 2))
    report = repaired(objects, whole)
    assert report.done == (f"2 units of probe {PROBE}: scored again",)
    assert set(contents_of(objects)) == set(before)
    assert ok("sql", live, "SELECT count(*) AS n FROM scores", "--json").json == ok(
        "sql", whole.store, f"SELECT count(*) AS n FROM scores WHERE probe = '{PROBE}'", "--json"
    ).json  # fmt: skip


def test_sample_reads_some_units_and_says_so(whole: Case, objects: ObjectStore) -> None:
    n_units = len(of_capture(objects)[1])
    for unit in range(n_units):
        flip(objects, shards_of(objects, of_capture(objects)[0], unit)[0])
    assert len(findings_of(objects)) == n_units
    report = verify(objects, Silent(), sample="2", seed=5)
    assert (report.units, report.units_unread, report.seed) == (4, 2 * n_units - 4, 5)
    assert len(report.findings) == 2
    assert verify(objects, Silent(), sample="2", seed=5) == report
    seen = {one.unit for seed in range(20) for one in verify(objects, Silent(), sample="1", seed=seed).findings}
    assert len(seen) > 2
    text = run_cli("verify", objects.url, "--sample", "40%", "--seed", "5")
    assert text.code == 1
    assert "were not read (seed 5)" in text.text
    flip(objects, of_capture(objects)[1][0])
    assert of_capture(objects)[1][0] in {one.key for one in verify(objects, Silent(), sample="1", seed=1).findings}


@pytest.mark.parametrize("wrong", ["0", "0%", "101%", "1.5", "-1", "some", ""])
def test_malformed_sample(whole: Case, wrong: str) -> None:
    result = run_cli("verify", whole.store, "--sample", wrong)
    assert result.code == 2
    assert "--sample" in result.stderr
    assert run_cli("verify", whole.store, "--repair", "--sample", "5%").code == 2


def test_command_line_tells_what_it_found_and_did(whole: Case, objects: ObjectStore) -> None:
    assert "everything agrees" in ok("verify", objects.url).text
    receipt = of_capture(objects)[1][0]
    flip(objects, receipt)
    found = run_cli("verify", objects.url)
    assert found.code == 1
    assert receipt in found.text
    assert "extract unit 0 of" in found.text
    assert "Traceback" not in found.stderr
    said = run_cli("verify", objects.url, "--json")
    assert said.code == 1
    (finding,) = said.json["findings"]
    assert (finding["kind"], finding["key"], finding["action"]) == ("damaged", receipt, "extract")
    done = ok("verify", objects.url, "--repair", "--model", whole.model)
    assert "repaired: 1 unit of" in done.text
    assert done.text.rstrip().endswith("everything agrees")
    again = ok("verify", objects.url, "--repair", "--json").json
    assert (again["found"], again["done"], again["findings"]) == ([], [], [])


@pytest.mark.parametrize(
    "options", [("--seed", "1"), ("--model", "m"), ("--adapter", "a"), ("--corpus", "c"), ("--allow-nonfinite",)]
)
def test_options_without_effect_are_refused(whole: Case, options: tuple[str, ...]) -> None:
    result = run_cli("verify", whole.store, *options)
    assert result.code == 2
    assert options[0] in result.stderr


def test_python_calls(whole: Case, objects: ObjectStore) -> None:
    receipt = of_capture(objects)[1][0]
    with Store(objects.url, reporter=Silent()) as store:
        assert store.verify(sample="50%", seed=1).findings == ()
        objects.delete(receipt)
        assert [one.key for one in store.verify().findings] == [receipt]
        assert store.repair(models=(whole.model,)).after.findings == ()
    assert_undisturbed(objects, whole)


@pytest.mark.parametrize(
    "kind", ["manifest", "place", "plan", "capture", "receipt", "probe", "weights", "score_receipt", "plan_table"]
)
def test_readers_say_in_one_line_what_is_damaged(whole: Case, objects: ObjectStore, kind: str) -> None:
    keys = [key for key in objects.list("") if kind_of(key) == kind]
    key = next((key for key in keys if key.split("/")[1:2] == [PROBE]), keys[0])
    objects.put(key, objects.get(key)[:-9])
    commands = [
        ["info", objects.url],
        ["sql", objects.url, "SELECT sum(seconds) FROM units"],
        ["sql", objects.url, f"SELECT sum(score('{PROBE}', row)) FROM tokens"],
        ["score", objects.url, "--probe", PROBE],
        ["extract", whole.corpus, "--model", whole.model, "--store", objects.url, "--layers", "3"],
    ]
    results = [run_cli(*command) for command in commands]
    failed = [result for result in results if result.code]
    assert failed
    for result in failed:
        assert "Traceback" not in result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert key in lines[0] or key.rsplit("/", 1)[0] in lines[0]


def test_damaged_store_leaves_no_noise_behind(objects: ObjectStore) -> None:
    """DuckDB complains at the end of a process about a connection that nobody closed."""
    flip(objects, first(objects, "capture"))
    command = [sys.executable, "-m", "cliffstore.cli.main", "sql", objects.url, "SELECT 1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: captures/")


def test_on_s3(whole: Case, moto_s3: Storage) -> None:
    objects = ObjectStore(moto_s3.new_url(), moto_s3.options)
    contents = contents_of(ObjectStore(str(whole.store)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(objects.put, contents, contents.values()))
    assert findings_of(objects) == ()
    receipts = [key for key in contents if kind_of(key) == "receipt"]
    shards = [key for key in contents if kind_of(key) == "shard"]
    captures = [key for key in contents if kind_of(key) == "copy of capture"]
    forged = documents.parse(Receipt, receipts[3], contents[receipts[3]])
    forged = forged.model_copy(update={"n_rows": forged.n_rows - 1})
    damages = [
        Damage("a receipt deleted", {receipts[0]: None}),
        Damage("a receipt forged", {receipts[3]: forged.to_bytes()}),
        Damage("a shard cut short", {shards[5]: contents[shards[5]][:-100]}),
        Damage("a shard deleted", {shards[-1]: None}),
        Damage("copies swapped", {captures[0]: contents[captures[1]], captures[1]: contents[captures[0]]}),
        Damage("the manifest emptied", {layout.MANIFEST: b""}),
        Damage("a group deleted", {"activations/main/zarr.json": None}),
    ]
    for damage in damages:
        damage.apply(objects)
    found = findings_of(objects)
    for damage in damages:
        assert not unnamed(damage, found), damage.what
    repaired(objects, whole)
    assert_undisturbed(objects, whole)
    assert StoreReader(objects.url, objects.storage_options).captures() == [
        documents.parse(CaptureDocument, key, contents[key]) for key in contents if kind_of(key) == "capture"
    ]
