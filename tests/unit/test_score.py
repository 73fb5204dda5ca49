"""Scores of stored vectors: their bits do not depend on blocks or on other probes, and nothing uncommitted is read."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import make_probe
from vector_store import VectorStore
from whole_store import Silent

from cliffstore import Store
from cliffstore.analyze import score
from cliffstore.analyze.score import ScoredProbe, ScoreJob, ScoreSpec
from cliffstore.errors import ConfigError, ExtractionError, InterruptedRunError, ProbeError, StoreError
from cliffstore.run.scoring import score_store
from cliffstore.schema import ScoreReceipt
from cliffstore.store import documents, layout, receipts, tables
from cliffstore.store.arrays import to_float32
from cliffstore.store.checks.findings import Finding
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanTables
from cliffstore.store.probes import ProbeWeights, read_probe, write_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import ProbeKey, is_scored, scored_units

MADE = VectorStore(n_units=3, unit_rows=512, width=24, n_layers=3, tokens=8, dtype="bfloat16")
PROBES = {"a": 2, "b": 2, "c": 0}
"""Probes and the layers that they read."""


def add_probes(objects: ObjectStore, alias: str = "main", suffix: str = "") -> None:
    capture = next(one for one in StoreReader(objects.url).captures() if one.alias == alias)
    for number, (name, layer) in enumerate(PROBES.items()):
        write_probe(objects, *make_probe(capture, name + suffix, layer=layer, seed=number), replace=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with probes and without scores. Tests copy it."""
    store = tmp_path_factory.mktemp("made") / "store"
    MADE.make(ObjectStore(str(store)))
    add_probes(ObjectStore(str(store)))
    return store


@pytest.fixture
def objects(made: Path, tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(shutil.copytree(made, tmp_path / "store")))


def findings_of_scores(objects: ObjectStore) -> list[Finding]:
    """Return what `verify` finds wrong with scores and their errors; the made-up plan is none that it believes."""
    with Store(objects.url, reporter=Silent()) as store:
        return [finding for finding in store.verify().findings if "scores/" in finding.key]


def score_all(objects: ObjectStore, *probes: str, **options: object):
    return score_store(StoreReader(objects.url), probes, Silent(), **options)


def table_bytes(objects: ObjectStore, *probes: str) -> dict[str, bytes]:
    keys = [key for probe in probes for key in objects.list(layout.scores_of(probe)) if key.endswith(".parquet")]
    return {key: objects.get(key) for key in keys}


def table(objects: ObjectStore, probe: str, unit: int) -> pa.Table:
    return tables.read(objects, layout.scores_table(probe, unit))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_scores_are_products_of_the_vectors(dtype: str, tmp_path: Path) -> None:
    made, objects = replace(MADE, dtype=dtype), ObjectStore(str(tmp_path / "store"))
    made.make(objects)
    add_probes(objects)
    report = score_all(objects, *PROBES)
    n_rows = made.n_units * made.n_rows
    assert (report.units, report.tokens, report.units_done_before, report.units_missing) == (3, n_rows, 0, 0)
    assert [(one.probe, one.units, one.tokens) for one in report.probes] == [(name, 3, n_rows) for name in PROBES]
    for name, layer in PROBES.items():
        _, weights = read_probe(objects, name)
        for unit in range(made.n_units):
            h_ND = made.vectors_of(layer, unit).astype(np.float64)
            expected = h_ND @ weights.w_D.astype(np.float64) + weights.b
            found = table(objects, name, unit)["score"].to_numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_sql_has_the_same_bits(objects: ObjectStore) -> None:
    score_all(objects, "a")
    with Store(objects.url, reporter=Silent()) as store:
        unlike = (
            "SELECT count(*), count(*) FILTER (s.score IS DISTINCT FROM score('a', t.row)) "
            "FROM scores s JOIN tokens t USING (example, position)"
        )
        assert store.sql(unlike).fetchall() == [(MADE.n_units * MADE.n_rows, 0)]


def test_scored_together_is_scored_alone(objects: ObjectStore) -> None:
    score_all(objects, *PROBES)
    together = table_bytes(objects, *PROBES)
    assert len(together) == len(PROBES) * MADE.n_units
    objects.delete(layout.SCORES)
    for name in PROBES:
        score_all(objects, name)
    assert table_bytes(objects, *PROBES) == together


@pytest.mark.parametrize(("block_bytes", "slice_bytes"), [(1, 1), (300 * 48, 7 * 96), (1 << 30, 1 << 30)])
def test_blocks_do_not_show(
    objects: ObjectStore, block_bytes: int, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_all(objects, "a", "c")
    before = table_bytes(objects, "a", "c")
    objects.delete(layout.SCORES)
    monkeypatch.setattr(score, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(score, "SLICE_BYTES", slice_bytes)
    score_all(objects, "a", "c")
    assert table_bytes(objects, "a", "c") == before


@given(
    n_rows=st.integers(1, 40), width=st.integers(1, 70), cut=st.integers(1, 40), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_a_score_does_not_depend_on_the_vectors_beside_it(n_rows: int, width: int, cut: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    stored = (numbers.standard_normal((n_rows, width), dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    weights = ProbeWeights(numbers.standard_normal(width, dtype=np.float32), 0.5)
    h_ND = to_float32(stored, "bfloat16")
    pieces = [weights.scores(to_float32(stored[at : at + cut], "bfloat16")) for at in range(0, n_rows, cut)]
    np.testing.assert_array_equal(np.concatenate(pieces), weights.scores(h_ND))
    exact = h_ND.astype(np.float64) @ weights.w_D.astype(np.float64) + weights.b
    most = np.abs(h_ND.astype(np.float64)) @ np.abs(weights.w_D).astype(np.float64) + 1
    assert (np.abs(weights.scores(h_ND) - exact) <= 1e-5 * most).all()


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Return the ranges of arrays that are read from now on."""
    read: list[tuple[str, int, int]] = []
    begin = score.ScoreWorker.begin

    def counting(self, job):
        begin(self, job)
        read_range = self._reader.arrays.read_range

        def counted(key, first, last):
            read.append((key, first, last))
            return read_range(key, first, last)

        monkeypatch.setattr(self._reader.arrays, "read_range", counted)

    monkeypatch.setattr(score.ScoreWorker, "begin", counting)
    return read


def test_a_unit_is_read_once_for_all_probes_of_an_array(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted_reads(monkeypatch)
    score_all(objects, *PROBES)
    arrays = [layout.array("main", "resid_post", layer) for layer in (2, 0)]
    units = [(unit * MADE.unit_rows, unit * MADE.unit_rows + MADE.n_rows) for unit in range(MADE.n_units)]
    assert sorted(read) == sorted((array, *unit) for array in arrays for unit in units)


def test_only_what_is_lacking_is_scored(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    score_all(objects, "a")
    objects.delete(layout.scores_receipt("a", 1))
    kept = [key for key in objects.list(layout.scores_of("a")) if layout.unit_of(key) != 1]
    before = {key: Path(objects.path(key)).stat().st_mtime_ns for key in kept}
    read = counted_reads(monkeypatch)
    report = score_all(objects, "a", "c")
    assert [(one.probe, one.units, one.units_done_before) for one in report.probes] == [("a", 1, 2), ("c", 3, 0)]
    assert (report.units, report.units_done_before) == (3, 0)
    assert sorted(key for key, *_ in read).count(layout.array("main", "resid_post", 2)) == 1
    assert {key: Path(objects.path(key)).stat().st_mtime_ns for key in kept} == before
    read.clear()
    again = score_all(objects, "a", "c")
    assert (again.units, again.tokens, again.units_done_before, again.executor) == (0, 0, 3, "none")
    assert not read


def test_scores_of_other_weights_are_made_again(objects: ObjectStore) -> None:
    score_all(objects, "a")
    document, _ = read_probe(objects, "a")
    other = ProbeWeights(np.ones(MADE.width, dtype=np.float32), 0.0)
    changed = document.model_copy(update={"digest": other.digest, "file_digest": other.file_digest})
    before = table_bytes(objects, "a")
    write_probe(objects, changed, other, replace=True)
    assert score_all(objects, "a").units == MADE.n_units
    assert table_bytes(objects, "a").keys() == before.keys()
    assert all(content != before[key] for key, content in table_bytes(objects, "a").items())


def test_units_that_are_not_extracted_are_not_read(objects: ObjectStore) -> None:
    """Their rows may hold what was never committed. Another model's probe is scored on them."""
    replace(MADE, alias="tuned", seed=1).add_capture(objects)
    add_probes(objects, "tuned", "-tuned")
    objects.delete(layout.receipt("capture-of-tuned", 1))
    report = score_all(objects, "a", "a-tuned", "c-tuned")
    assert (report.units, report.units_missing, report.tokens) == (3, 1, 3 * MADE.n_rows)
    assert [(one.units, one.units_missing) for one in report.probes] == [(3, 0), (2, 1), (2, 1)]
    assert not [key for key in objects.list(layout.scores_of("a-tuned")) if layout.unit_of(key) == 1]
    tuned = table(objects, "a-tuned", 0)["score"].to_numpy()
    assert (tuned != table(objects, "a", 0)["score"].to_numpy()).any()


class Sparse(VectorStore):
    """Unit 0 has no token with a row, unit 1 has some, unit 2 has no token."""

    def _tokens(self, unit: int) -> pa.Table:
        tokens = super()._tokens(unit)
        number_R = np.arange(tokens.num_rows)
        absent = {0: number_R >= 0, 1: (number_R % 3 != 1) | (number_R < 20)}.get(unit, number_R < 0)
        rows = pa.array(tokens["row"].to_numpy(), pa.int64(), mask=absent)
        return tokens.set_column(tokens.column_names.index("row"), "row", rows)[: 0 if unit == 2 else None]


def test_tokens_without_a_row_have_no_score(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "store"))
    made = Sparse(3, 512, 24, n_layers=3, tokens=8)
    made.make(objects)
    add_probes(objects)
    report = score_all(objects, "a", "c")
    stored = np.flatnonzero(~((np.arange(512) % 3 != 1) | (np.arange(512) < 20)))
    assert (report.units, report.tokens) == (3, len(stored))
    assert [table(objects, "a", unit).num_rows for unit in range(3)] == [0, len(stored), 0]
    _, weights = read_probe(objects, "a")
    np.testing.assert_array_equal(
        table(objects, "a", 1)["score"].to_numpy(), weights.scores(made.vectors_of(2, 1)[stored])
    )
    assert score_all(objects, "a", "c").units == 0


def test_receipts_say_how_scores_came_to_be(objects: ObjectStore) -> None:
    score_all(objects, "a")
    assert not findings_of_scores(objects)
    for unit in range(MADE.n_units):
        receipt = documents.read(objects, ScoreReceipt, layout.scores_receipt("a", unit))
        assert (receipt.attempt, receipt.n_tokens) == (1, MADE.n_rows)
        assert receipt.seconds >= 0
        assert ":" in receipt.worker


def test_a_death_is_recorded_for_the_probes_that_lack_their_scores(objects: ObjectStore) -> None:
    score_all(objects, "a", units=[0])
    job = job_of(objects, "a", "c")
    job.record_failure(0, 3, "host:1", "unit 0: its worker died")
    errors = [one for probe in "ac" for one in receipts.read_errors(objects, layout.score_errors(probe))]
    assert [(one.capture, one.unit, one.attempt, one.error) for one in errors] == [
        ("scores/c", 0, 3, "probe c: unit 0: its worker died")
    ]
    score_all(objects, "c")
    assert not objects.list(layout.RECEIPTS + "/scores")


def job_of(objects: ObjectStore, *names: str) -> ScoreJob:
    reader, probes = StoreReader(objects.url), []
    for name in names:
        document, weights = read_probe(objects, name)
        key = ProbeKey(name, document.digest, document.capture)
        _, array = reader.find_array(document.site, document.layer)
        probes.append(ScoredProbe(key, array, weights, frozenset(range(MADE.n_units))))
    return ScoreJob(objects.url, tuple(probes), {})


def test_job_and_spec_pickle(objects: ObjectStore) -> None:
    job, spec = pickle.loads(pickle.dumps((job_of(objects, *PROBES), ScoreSpec())))  # noqa: S301
    worker = spec.make(2)
    worker.begin(job)
    assert worker.run(1, 1).n_tokens == MADE.n_rows
    assert worker.run(1, 1).n_tokens == 0
    assert all(is_scored(objects, probe.key, 1) for probe in job.probes)


def test_a_stopped_worker_commits_nothing_more(objects: ObjectStore) -> None:
    worker = ScoreSpec().make(1)
    worker.begin(job_of(objects, "a"))
    worker.stop()
    with pytest.raises(InterruptedRunError):
        worker.run(0, 1)
    assert not objects.list(layout.SCORES)


def test_an_array_that_cannot_be_read_does_not_keep_others_from_their_scores(objects: ObjectStore) -> None:
    shard = layout.shard(layout.array("main", "resid_post", 2), 1, 2)
    content = objects.get(shard)
    objects.put(shard, content[: len(content) // 2])
    with pytest.raises(ExtractionError, match=r"1 of 3 units failed.*unit 1: .*resid_post/2"):
        score_all(objects, *PROBES)
    scored = {name: scored_units(objects, job_of(objects, name).probes[0].key) for name in PROBES}
    assert scored == {"a": {0, 2}, "b": {0, 2}, "c": {0, 1, 2}}
    with Store(objects.url, reporter=Silent()) as store:
        found = store.sql("SELECT unit, attempt, error FROM units WHERE error IS NOT NULL ORDER BY error").fetchall()
    assert [(unit, attempt, error.split(":")[0]) for unit, attempt, error in found] == [
        (1, 3, "probe a"),
        (1, 3, "probe b"),
    ]
    objects.put(shard, content)
    report = score_all(objects, *PROBES)
    assert [(one.units, one.units_done_before) for one in report.probes] == [(1, 2), (1, 2), (0, 3)]
    assert not objects.list(layout.receipts_of(layout.SCORES))


def test_replacing_a_probe_removes_its_errors(objects: ObjectStore) -> None:
    job_of(objects, "a").record_failure(0, 3, "host:1", "it died")
    document, _ = read_probe(objects, "a")
    other = ProbeWeights(np.ones(MADE.width, dtype=np.float32), 0.0)
    changed = document.model_copy(update={"digest": other.digest, "file_digest": other.file_digest})
    write_probe(objects, changed, other, replace=True)
    assert not objects.list(layout.receipts_of(layout.SCORES))


def test_an_error_of_a_probe_that_is_gone_is_found(objects: ObjectStore) -> None:
    job_of(objects, "a").record_failure(0, 3, "host:1", "it died")
    assert not findings_of_scores(objects)
    for key in (layout.probe_document("a"), layout.probe_weights("a")):
        documents.delete(objects, key)
    (finding,) = findings_of_scores(objects)
    assert finding.key == "receipts/scores/a/unit-000000.error.json"
    assert finding.action.value == "remove"


def test_every_probe_is_all(objects: ObjectStore) -> None:
    replace(MADE, alias="tuned", seed=1).add_capture(objects)
    elsewhere = next(one for one in StoreReader(objects.url).captures() if one.alias == "tuned")
    brought = make_probe(elsewhere, "brought", layer=1)[0].model_copy(update={"alias": "absent"})
    write_probe(objects, brought, make_probe(elsewhere, "brought", layer=1)[1], replace=False)
    told = Silent()
    report = score_store(StoreReader(objects.url), ["all"], told)
    assert [one.probe for one in report.probes] == sorted(PROBES)
    assert [text for text in told.told if "brought" in text and "left out" in text]
    with pytest.raises(StoreError):
        score_all(objects, "brought")


def test_what_cannot_be_scored_is_said(objects: ObjectStore) -> None:
    with pytest.raises(ProbeError, match="no probe 'nope'"):
        score_all(objects, "a", "nope")
    assert not objects.list(layout.SCORES)
    with pytest.raises(ConfigError, match="--actors 2 needs --executor ray"):
        score_all(objects, "a", executor="local", actors=2)
    objects.delete(layout.PROBES)
    with pytest.raises(ProbeError, match="no probe to score with"):
        score_all(objects, "all")


def test_weights_of_another_width_are_refused(objects: ObjectStore) -> None:
    weights = ProbeWeights(np.ones(MADE.width + 1, dtype=np.float32), 0.0)
    document, _ = read_probe(objects, "a")
    wide = {"name": "wide", "digest": weights.digest, "file_digest": weights.file_digest}
    write_probe(objects, document.model_copy(update=wide), weights, replace=False)
    with pytest.raises(ProbeError, match="'wide' has 25 weights, and vectors of resid_post/2 are of 24"):
        score_all(objects, "wide")


def test_tokens_are_read_once_a_unit(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    tokens = PlanTables.tokens

    def counted(self, unit, columns=None):
        read.append(unit)
        return tokens(self, unit, columns)

    monkeypatch.setattr(PlanTables, "tokens", counted)
    score_all(objects, *PROBES)
    assert sorted(read) == list(range(MADE.n_units))


def test_scoring_loads_no_model_library(objects: ObjectStore) -> None:
    code = (
        "import sys; from cliffstore.cli.main import main; "
        f"code = main(['score', {objects.url!r}, '--probe', 'all', '--json']); "
        "print(code, *({'torch', 'transformers', 'ray'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], timeout=120
    )
    assert done.stdout.splitlines()[-1] == "0"
