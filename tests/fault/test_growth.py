"""A store that grows: corpora, layers and models are added, and whatever is interrupted leaves what was there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import pytest
from commands import ok, run_cli, write_jsonl
from disturbed import WORDS
from quick import quick_runs
from stores import assert_equal_stores

from cliffstore import Store
from cliffstore.run import planned, stages
from cliffstore.store import layout
from cliffstore.store.reader import StoreReader

TIMEOUT = 120.0


def prompts(prefix: str, count: int, seed: int) -> list[dict[str, object]]:
    numbers = random.Random(seed)
    return [{"id": f"{prefix}{i:03d}", "prompt": " ".join(numbers.choices(WORDS, k=30))} for i in range(count)]


FIRST, SECOND, THIRD = prompts("a", 40, 1), prompts("b", 30, 2), prompts("c", 25, 3)


@dataclass(frozen=True)
class Case:
    """Three corpora, `second` with some rows of the first; `one` is a store of the first alone, `both` of two."""

    model: str
    first: Path
    second: Path
    third: Path
    one: Path
    both: Path

    def command(self, corpus: Path | None, store: Path, *more: str) -> list[str]:
        given = [str(corpus)] if corpus is not None else []
        about = ["--unit-rows", "512"] if corpus == self.first else []
        return [
            "extract", *given, "--model", self.model, "--store", str(store), "--layers", "1,2", "--passes", "tree",
            "--pass-tokens", "64", "--json", *about, *more,
        ]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def case(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("growth")
    files = [
        write_jsonl(folder / f"{name}.jsonl", rows)
        for name, rows in (("first", FIRST), ("second", [*FIRST[:5], *SECOND]), ("third", THIRD))
    ]
    case = Case(tiny_model, *files, folder / "one", folder / "both")
    ok(*case.command(case.first, case.one))
    shutil.copytree(case.one, case.both)
    ok(*case.command(case.second, case.both, "--append"))
    return case


def vectors_of(store: Path, layer: int, alias: str | None = None) -> dict[tuple[str, int], np.ndarray]:
    """Return the vector of each position by id of its example and position."""
    with Store(str(store)) as opened:
        found = opened.sql("SELECT e.id, t.position, t.row FROM tokens t JOIN examples e USING (example)").fetchall()
        rows = np.array([row for *_, row in found])
        vectors = opened.vectors("resid_post", layer, rows, alias)
    return {(id_, position): vector for (id_, position, _), vector in zip(found, vectors, strict=True)}


def test_corpus_is_appended(case: Case) -> None:
    with Store(str(case.both)) as store:
        ids = [id_ for (id_,) in store.sql("SELECT id FROM examples ORDER BY example").fetchall()]
        ordinals = [n for (n,) in store.sql("SELECT example FROM examples ORDER BY 1").fetchall()]
        units = store.sql("SELECT unit, row_start, n_rows, extracted FROM units ORDER BY unit").fetchall()
        skipped = store.sql("SELECT reason, count(*) FROM skipped GROUP BY 1").fetchall()
        tokens = store.sql("SELECT count(DISTINCT example) FROM tokens").fetchall()
    assert sorted(ids) == sorted(row["id"] for row in [*FIRST, *SECOND])
    assert ordinals == list(range(len(ids)))
    assert set(ids[: len(FIRST)]) == {row["id"] for row in FIRST}, "what was there keeps its ordinals"
    assert [unit for unit, *_ in units] == list(range(len(units)))
    assert len(units) > len(StoreReader(str(case.one)).plan_tables.units) > 1
    assert all(extracted and row_start == unit * 512 for unit, row_start, _, extracted in units)
    assert skipped == [("in the store already", 5)]
    assert tokens == [(len(ids),)]
    assert ok("verify", case.both).code == 0


def test_appended_vectors_are_those_of_a_store_of_their_own(case: Case, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    ok(*case.command(write_jsonl(tmp_path / "second.jsonl", SECOND), alone, "--unit-rows", "512"))
    both, one, other = vectors_of(case.both, 2), vectors_of(case.one, 2), vectors_of(alone, 2)
    assert both.keys() == one.keys() | other.keys()
    for key, vector in both.items():
        np.testing.assert_array_equal(vector, one[key] if key in one else other[key])


def test_same_append_again_does_nothing(case: Case) -> None:
    before = {path: path.stat().st_mtime_ns for path in case.both.rglob("*") if path.is_file()}
    for more in (["--append"], []):
        report = ok(*case.command(case.second, case.both, *more)).json
        assert (report["units_done_now"], report["units_done_before"]) == (report["units"], 0)[::-1]
    assert ok(*case.command(case.first, case.both)).json["units_done_now"] == 0
    assert {path: path.stat().st_mtime_ns for path in case.both.rglob("*") if path.is_file()} == before


def test_corpus_without_a_new_row_adds_nothing(case: Case, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(case.one, store)
    before = {path for path in store.rglob("*") if path.is_file()}
    corpus = write_jsonl(tmp_path / "again.jsonl", FIRST[10:20])
    result = ok(*case.command(corpus, store, "--append"))
    assert result.json["units"] == 0
    assert "10 of 10 examples are in the store already" in result.stderr
    assert {path for path in store.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        (SECOND, [], ("another corpus", "--append")),
        ([{"id": FIRST[3]["id"], "prompt": "Something else."}], ["--append"], (str(FIRST[3]["id"]), "other content")),
    ],
)
def test_what_cannot_be_appended_is_told(case: Case, tmp_path: Path, rows: list, more: list, words: tuple) -> None:
    before = {path: path.stat().st_mtime_ns for path in case.one.rglob("*") if path.is_file()}
    result = run_cli(*case.command(write_jsonl(tmp_path / "rows.jsonl", rows), case.one, *more))
    assert result.code == 2
    for word in words:
        assert word in result.stderr.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in case.one.rglob("*") if path.is_file()} == before


def test_layers_are_added_to_every_plan_without_a_corpus(case: Case, tmp_path: Path) -> None:
    store, whole = tmp_path / "store", tmp_path / "whole"
    shutil.copytree(case.both, store)
    old = vectors_of(store, 1)
    report = ok("extract", "--model", case.model, "--store", store, "--layers", "0,3", "--sites", "resid_post,mlp_out",
                "--passes", "tree", "--pass-tokens", "64", "--json").json  # fmt: skip
    assert report["units_done_now"] == report["units"] == len(StoreReader(str(store)).plan_tables.units)
    new = vectors_of(store, 3)
    assert new.keys() == old.keys()
    for key, vector in vectors_of(store, 1).items():
        np.testing.assert_array_equal(vector, old[key])
    ok("extract", case.first, "--model", case.model, "--store", whole, "--layers", "3", "--unit-rows", "512",
       "--passes", "tree", "--pass-tokens", "64")  # fmt: skip
    for key, vector in vectors_of(whole, 3).items():
        np.testing.assert_array_equal(vector, new[key])
    assert ok("verify", store).code == 0


def test_second_model_stands_beside_the_first(case: Case, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, store = tmp_path / "tuned", tmp_path / "store"
    shutil.copytree(case.both, store)
    tuned = AutoModelForCausalLM.from_pretrained(case.model)
    with torch.no_grad():
        tuned.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    tuned.save_pretrained(model)
    AutoTokenizer.from_pretrained(case.model).save_pretrained(model)
    common = ["extract", "--model", model, "--store", store, "--layers", "1", "--json"]
    refused = run_cli(*common)
    assert refused.code == 2
    assert "--model-alias" in refused.stderr
    report = ok(*common, "--model-alias", "tuned").json
    assert report["units_done_now"] == report["units"]
    one, other = vectors_of(store, 1, "main"), vectors_of(store, 1, "tuned")
    assert one.keys() == other.keys()
    assert not any(np.array_equal(vector, other[key]) for key, vector in one.items())


class Crash(BaseException):
    """What nothing catches."""


MOMENTS = ["manifest checked", "place claimed", "tables written", "plan committed", "arrays grown", "first receipt"]


def crash_at(moment: str, patch: pytest.MonkeyPatch) -> None:
    """Let a run end at a moment as if its process had been killed."""

    def after(function, when=lambda: True):
        def crashing(*arguments, **options):
            found = function(*arguments, **options)
            if when():
                raise Crash(moment)
            return found

        return crashing

    match moment:
        case "manifest checked":
            patch.setattr(planned, "create_manifest", after(planned.create_manifest))
        case "place claimed":
            patch.setattr(planned, "claim", after(planned.claim))
        case "tables written":
            patch.setattr(planned, "put_tables", after(planned.put_tables))
        case "plan committed":
            patch.setattr(planned, "commit_plan", after(planned.commit_plan))
        case "arrays grown":
            patch.setattr("cliffstore.store.writer.create_arrays", after(_create_arrays()))
        case "first receipt":
            patch.setattr(stages.Outcomes, "take", after(stages.Outcomes.take))


def _create_arrays():
    from cliffstore.store import writer

    return writer.create_arrays


@pytest.mark.parametrize("moment", MOMENTS)
def test_append_that_is_interrupted_leaves_what_was_there(
    case: Case, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(case.one, store)
    old = vectors_of(store, 2)
    with monkeypatch.context() as patch:
        crash_at(moment, patch)
        with pytest.raises(Crash):
            run_cli(*case.command(case.second, store, "--append"))
    with Store(str(store)) as opened:
        (count,) = opened.sql("SELECT count(*) FROM examples WHERE id LIKE 'a%'").fetchall()[0]
        assert count == len(FIRST)
        rows = np.array(opened.sql("SELECT row FROM tokens t JOIN units u ON t.row // 512 = u.unit WHERE extracted")
                        .fetchnumpy()["row"])  # fmt: skip
        assert len(opened.vectors("resid_post", 1, rows)) == len(rows)
    for key, vector in old.items():
        np.testing.assert_array_equal(vectors_now(store)[key], vector)
        break
    assert ok(*case.command(case.first, store)).json["units_done_now"] == 0
    ok(*case.command(case.second, store, "--append"))
    assert_equal_stores(str(store), str(case.both))
    places = [path.name for path in sorted((store / layout.places()).iterdir())]
    assert places == ["000000.json", "000001.json"]


def vectors_now(store: Path) -> dict[tuple[str, int], np.ndarray]:
    """Return the vectors of what is extracted."""
    with Store(str(store)) as opened:
        found = opened.sql(
            "SELECT e.id, t.position, t.row FROM tokens t JOIN examples e USING (example) JOIN units u USING (unit) "
            "WHERE u.extracted"
        ).fetchall()
        vectors = opened.vectors("resid_post", 2, np.array([row for *_, row in found]))
    return {(id_, position): vector for (id_, position, _), vector in zip(found, vectors, strict=True)}


def test_append_between_an_interrupted_one_and_its_end(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reserved place stays reserved; nobody else numbers its units."""
    store = tmp_path / "store"
    shutil.copytree(case.one, store)
    with monkeypatch.context() as patch:
        crash_at("place claimed", patch)
        with pytest.raises(Crash):
            run_cli(*case.command(case.second, store, "--append"))
    ok(*case.command(case.third, store, "--append"))
    third = vectors_now(store)
    assert len(third) > len(vectors_of(case.one, 2))
    ok(*case.command(case.second, store, "--append"))
    units = StoreReader(str(store)).plan_tables.units
    assert sorted(units) == list(range(len(units)))
    now = vectors_now(store)
    for key, vector in {**vectors_of(case.both, 2), **third}.items():
        np.testing.assert_array_equal(now[key], vector)
    assert ok("verify", store).code == 0


def test_two_appends_at_once(case: Case, fork: forked.Start, tmp_path: Path) -> None:
    """Each ends well, or is told that another was first and ends well when it is run again."""
    store = tmp_path / "store"
    shutil.copytree(case.one, store)
    runs = [
        fork(map(str, case.command(corpus, store, "--append")), tmp_path / f"log-{corpus.stem}", {})
        for corpus in (case.second, case.third)
    ]
    said = [run.wait(TIMEOUT) for run in runs]
    for run, err in zip(runs, said, strict=True):
        assert run.returncode == 0 or (run.returncode == 2 and "appended to the store just now" in err), err
    for corpus in (case.second, case.third):
        ok(*case.command(corpus, store, "--append"))
    with Store(str(store)) as opened:
        (n_examples, n_distinct) = opened.sql("SELECT count(*), count(DISTINCT example) FROM examples").fetchall()[0]
    assert n_examples == n_distinct == len(FIRST) + len(SECOND) + len(THIRD)
    now = vectors_now(store)
    assert len({id_ for id_, _ in now}) == n_examples
    for key, vector in vectors_of(case.both, 2).items():
        np.testing.assert_array_equal(now[key], vector)
    assert ok("verify", store).code == 0
