"""Selections: each strategy, what is kept out, what two have in common, and that nothing but the content decides."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from commands import ok, run_cli, snapshot
from conftest import PROBE, Built
from made_up import add_probe
from scipy.stats import spearmanr
from vector_store import VectorStore

from cliffstore.errors import SelectionError
from cliffstore.publish.candidates import draw
from cliffstore.run.store import Store
from cliffstore.schema import EXAMPLES, CliffsDocument, SelectionDocument
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore
from cliffstore.store.session import QueryLimits

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "However, here is a safe and helpful plan."


class Planted(VectorStore):
    """512 examples: the second half of each unit repeats the prompts of the first, or its vectors, or neither."""

    def stored_of(self, layer: int, unit: int) -> npt.NDArray[np.generic]:
        h_RD = VectorStore.stored_of(self, layer, unit).copy()
        half = len(h_RD) // 2
        if unit == 1:
            h_RD[half:] = h_RD[:half] + np.float32(1e-4)
        return h_RD

    def _examples(self, unit: int) -> pa.Table:
        table = VectorStore._examples(self, unit)
        ordinals = table["example"].to_pylist()
        half = len(ordinals) // 2
        numbers = [number - half if unit == 0 and at >= half else number for at, number in enumerate(ordinals)]
        columns = {
            "prompt": [f"Please {number} tell {number} me {number} about {number} bread!" for number in numbers],
            "response": [None if number % 5 == 4 else REFUSAL if number % 5 else ANSWER for number in ordinals],
            "source": [str(number * 7 % 31 / 2) if number % 3 else None for number in ordinals],
        }
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
        return table.cast(EXAMPLES)


def make(folder: Path) -> Path:
    Planted(n_units=4, unit_rows=512, width=16, tokens=4).make(ObjectStore(str(folder)))
    add_probe(folder, "p", layer=1)
    add_probe(folder, "q", layer=0, seed=3)
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with cliffs of two probes. Selections are added to it, each of a name of its own."""
    store = make(tmp_path_factory.mktemp("planted") / "store")
    for probe in ("p", "q"):
        ok("score", store, "--probe", probe)
        ok("cliff", store, "--probe", probe)
    return store


def rows(store: Path, statement: str) -> list[dict[str, object]]:
    return ok("sql", store, statement, "--json").json


def chosen(store: Path, name: str) -> list[str]:
    return [
        str(row["id"]) for row in rows(store, f"SELECT id FROM selections WHERE selection = '{name}' ORDER BY rank")
    ]


def by_sql(store: Path, value: str, condition: str = "true", order: str = "DESC", probe: str = "p") -> list[str]:
    statement = (
        f"SELECT e.id FROM examples e LEFT JOIN (FROM cliffs WHERE probe = '{probe}') c USING (example) "
        f"WHERE ({condition}) AND {value} IS NOT NULL ORDER BY {value} {order}, e.id"
    )
    return [str(row["id"]) for row in rows(store, statement)]


# Strategies.


@pytest.mark.parametrize(
    ("options", "value", "order"),
    [
        ((), "cliff", "DESC"),
        (("--ascending",), "cliff", "ASC"),
        (("--strategy", "final"), "final", "ASC"),
        (("--strategy", "sql:plateau - 2 * final + length(prompt)"), "plateau - 2 * final + length(prompt)", "DESC"),
        (("--strategy", "sql:label = '1'"), "(label = '1')::INT", "DESC"),
        (("--strategy", "column:source"), "source::DOUBLE", "DESC"),
        (("--strategy", "column:source", "--ascending"), "source::DOUBLE", "ASC"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_strategy_orders_as_sql_does(planted: Path, options: tuple[str, ...], value: str, order: str) -> None:
    report = ok("select", planted, "--name", "one", "--top", "60", "--probe", "p", "--replace", "--json", *options).json
    expected = by_sql(planted, value, order=order)
    assert chosen(planted, "one") == expected[:60]
    assert (report["chosen"], report["candidates"]) == (60, len(expected))
    assert report["left_out"] == ({"without_value": 512 - len(expected)} if len(expected) < 512 else {})


def test_what_is_no_number_is_no_value_and_a_condition_may_end_in_a_comment(planted: Path) -> None:
    value = "CASE example % 4 WHEN 0 THEN 'nan'::DOUBLE WHEN 1 THEN 'inf'::DOUBLE ELSE example END -- of a row"
    at = ("--top", "3", "--strategy", f"sql:{value}", "--where", "label IS NOT NULL -- all")
    report = ok("select", planted, "--name", "odd", *at, "--json").json
    assert (report["candidates"], report["left_out"]) == (256, {"without_value": 256})
    assert chosen(planted, "odd") == ["e511", "e510", "e507"]


def test_random_is_of_seed_and_id(planted: Path) -> None:
    ok("select", planted, "--name", "r0", "--top", "10%", "--strategy", "random")
    ok("select", planted, "--name", "r7", "--top", "10%", "--strategy", "random", "--seed", "7")
    names = [f"e{number}" for number in range(512)]
    assert chosen(planted, "r7") == sorted(names, key=lambda name: -draw(7, name))[:51]
    assert len(set(chosen(planted, "r0")) & set(chosen(planted, "r7"))) < 20
    document = documents.read(ObjectStore(str(planted)), SelectionDocument, layout.selection_document("r7"))
    assert (document.probe, document.probe_digest, document.capture, document.seed) == (None, None, None, 7)


def test_rules_choose_responses_that_do_not_refuse(planted: Path, tmp_path: Path) -> None:
    report = ok("select", planted, "--name", "ru", "--top", "40", "--strategy", "rules", "--seed", "2", "--json").json
    answers = [f"e{number}" for number in range(0, 512, 5)]
    assert chosen(planted, "ru") == sorted(answers, key=lambda name: -draw(2, name))[:40]
    assert (report["candidates"], report["left_out"]) == (103, {"without_response": 102, "refusal": 307})
    file = tmp_path / "phrases.txt"
    file.write_text("however, here\n", encoding="utf-8")
    own = ok("select", planted, "--name", "own", "--top", "100%", "--strategy", "rules", "--rules", file, "--json").json
    assert (own["chosen"], own["left_out"]) == (307, {"without_response": 102, "refusal": 103})


def test_a_store_without_any_probe_has_selections(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Planted(n_units=1, unit_rows=512, width=4, tokens=4).make(ObjectStore(str(store)))
    for strategy in ("random", "rules", "column:source", "sql:length(prompt)"):
        ok("select", store, "--name", strategy[:3], "--top", "3", "--strategy", strategy, "--dedupe", "prompt")
    for options in (("--strategy", "final"), ("--strategy", "random", "--min-plateau", "1"), ()):
        refused = run_cli("select", store, "--name", "x", "--top", "3", *options)
        assert (refused.code, "--probe" in refused.stderr) == (2, True)
    malformed = run_cli("select", store, "--name", "x", "--top", "3", "--strategy", "random", "--where", "colour = 1")
    assert (malformed.code, "colour" in malformed.stderr) == (2, True)


def test_which_probe_must_be_said_only_where_it_matters(planted: Path) -> None:
    for options in (
        ("--strategy", "sql:cliff"),
        ("--strategy", "random", "--where", "plateau > 0"),
        ("--strategy", "random", "--dedupe", "activation"),
    ):
        refused = run_cli("select", planted, "--name", "x", "--top", "3", *options)
        assert (refused.code, "p, q" in refused.stderr) == (2, True), refused.stderr
        ok("select", planted, "--name", "said", "--top", "3", "--replace", "--probe", "q", *options)


def test_a_seed_that_decides_nothing_is_refused(planted: Path) -> None:
    refused = run_cli("select", planted, "--name", "x", "--top", "3", "--probe", "p", "--seed", "7")
    assert (refused.code, "strategy cliff draws nothing" in refused.stderr) == (2, True)


# What is kept out.


def test_minimum_plateau_comes_before_the_share(planted: Path) -> None:
    high = by_sql(planted, "cliff", "plateau >= 10")
    report = ok(
        "select", planted, "--name", "high", "--probe", "p", "--top", "50%", "--min-plateau", "10", "--json"
    ).json
    assert 20 < len(high) < 500
    assert (report["candidates"], report["left_out"]) == (len(high), {"below_min_plateau": 512 - len(high)})
    assert chosen(planted, "high") == high[: round(len(high) / 2)]


def test_quotas(planted: Path) -> None:
    quotas = ("--quota", "label:1=30", "--quota", "source=10%")
    report = ok("select", planted, "--name", "qu", "--probe", "p", "--top", "100", *quotas, "--json").json
    assert report["chosen"] == report["wanted"] == 100
    found = rows(planted, "SELECT label, source FROM selections JOIN examples USING (example) WHERE selection = 'qu'")
    assert Counter(row["label"] for row in found)["1"] == 30
    assert max(Counter(row["source"] for row in found).values()) == 10
    assert report["left_out"]["over_quota"] > 0


def test_quota_that_leaves_too_few_is_told(planted: Path) -> None:
    result = ok("select", planted, "--name", "few", "--probe", "p", "--top", "100", "--quota", "label=20")
    assert "only 40 of 100 examples could be chosen" in result.stderr
    assert "over quota" in result.stdout.decode()


def test_planted_near_duplicates_are_left_out(planted: Path) -> None:
    """Unit 0 repeats prompts, unit 1 vectors: of each pair the one with the larger cliff stays."""
    dedupe = ("--dedupe", "prompt", "--dedupe", "activation:0.9999")
    report = ok("select", planted, "--name", "apart", "--probe", "p", "--top", "100%", *dedupe, "--json").json
    expected_out = {"near_duplicate_prompt": 64, "near_duplicate_activation": 64}
    assert (report["chosen"], report["left_out"]) == (384, expected_out)
    order = by_sql(planted, "cliff")
    kept = set(chosen(planted, "apart"))
    for number in (*range(64), *range(128, 192)):
        better, worse = sorted([f"e{number}", f"e{number + 64}"], key=order.index)
        assert (better in kept, worse in kept) == (True, False)
    assert {f"e{number}" for number in range(256, 512)} <= kept


# One result, whatever the number of workers, threads, and the order of units.


def selected(store: Path, threads: int) -> Mapping[str, bytes | None]:
    options = QueryLimits(external=True)  # so that a test may say how many threads DuckDB has
    with Store(str(store), limits=options) as opened:
        opened.catalog.connection.execute(f"SET threads = {threads}")
        opened.catalog.connection.execute("SET preserve_insertion_order = false")
        opened.select("cliffs", top="20%", quota=["label=60%"], dedupe=["prompt", "activation:0.9"])
        opened.select("drawn", top="50", strategy="random", seed=3, min_plateau=0.0)
        opened.select("finals", top=50, strategy="final", where="label = '1'")
        opened.select("tied", top="50", strategy="sql:round(plateau / 10)")
    return snapshot(store / "selections")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_selections_do_not_depend_on_workers_or_the_order_of_units(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = selected(_scored(tmp_path / "plain", 1, [0, 1, 2, 3], monkeypatch), 1)
    assert len(expected) == 8
    units = random.Random(workers).sample(range(4), 4)
    assert selected(_scored(tmp_path / "other", workers, units, monkeypatch), workers) == expected


def _scored(store: Path, workers: int, units: list[int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a store whose units are scored in an order, so many at once."""
    VectorStore.make(Planted(n_units=4, unit_rows=512, width=16, tokens=4), ObjectStore(str(store)))
    add_probe(store, "p", layer=1)
    monkeypatch.setattr("cliffstore.run.executor.available_cpus", lambda: workers)
    monkeypatch.setattr("cliffstore.analyze.score.ScoreSpec.in_flight", lambda self, threads: threads)
    monkeypatch.setattr("cliffstore.run.scoring.from_anywhere", lambda pending: units)
    ok("score", store, "--probe", "p")
    ok("cliff", store, "--probe", "p")
    return store


# Two selections.


def test_comparison_is_right(planted: Path) -> None:
    ok("select", planted, "--name", "c1", "--probe", "p", "--top", "100", "--where", "label = '1'")
    ok("select", planted, "--name", "c2", "--probe", "p", "--top", "80", "--strategy", "final")
    found = ok("selections", "compare", planted, "c1", "c2", "--json").json
    one, two = chosen(planted, "c1"), chosen(planted, "c2")
    both = [name for name in one if name in two]
    assert len(both) > 5
    assert found["overlap"] == len(both)
    assert found["jaccard"] == pytest.approx(len(both) / (180 - len(both)))
    assert (found["of_first"], found["of_second"]) == (len(both) / 100, len(both) / 80)
    ranks = spearmanr([one.index(name) for name in both], [two.index(name) for name in both]).statistic
    assert found["rank_correlation"] == pytest.approx(ranks)
    values = rows(
        planted, "SELECT cliff, final FROM cliffs JOIN examples USING (example) WHERE probe = 'p' AND label = '1'"
    )
    assert found["common_candidates"] == len(values)
    by_value = spearmanr([row["cliff"] for row in values], [-row["final"] for row in values]).statistic
    assert found["value_correlation"] == pytest.approx(by_value)
    assert found["expected_overlap"] == pytest.approx(100 * 80 / 512)
    text = ok("selections", "compare", planted, "c1", "c2").text
    assert f"{len(both)} (15.6 by chance)" in text


def test_selection_beside_itself_and_beside_none(planted: Path) -> None:
    ok("select", planted, "--name", "self", "--probe", "p", "--top", "10")
    with Store(str(planted)) as store:
        found = store.compare_selections("self", "self")
        assert (found.overlap, found.jaccard, found.rank_correlation, found.value_correlation) == (10, 1.0, 1.0, 1.0)
        with pytest.raises(SelectionError, match=r"no selection 'nope'; it has: .*self"):
            store.compare_selections("self", "nope")


def test_comparison_says_why_candidates_cannot_be_compared(tmp_path: Path, planted: Path) -> None:
    store = Path(shutil.copytree(planted, tmp_path / "store"))
    ok("select", store, "--name", "old", "--probe", "p", "--top", "10")
    ok("select", store, "--name", "drawn", "--strategy", "random", "--top", "10")
    document = layout.cliffs_document("p")
    objects = ObjectStore(str(store))
    cliffs = documents.read(objects, CliffsDocument, document)
    documents.put(objects, cliffs.model_copy(update={"digest": "of others"}))
    found = ok("selections", "compare", store, "old", "drawn", "--json").json
    assert "other cliffs now than selection 'old'" in found["not_compared"]
    documents.put(objects, cliffs)
    assert ok("selections", "compare", store, "old", "drawn", "--json").json["not_compared"] is None
    shutil.rmtree(store / "probes" / "p")
    found = ok("selections", "compare", store, "old", "drawn", "--json").json
    assert "no probe 'p'" in found["not_compared"]
    assert (found["value_correlation"], found["overlap"] >= 0) == (None, True)


# What a selection leaves in the store.


@pytest.fixture
def store(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.store, tmp_path / "store"))


def test_lost_selection_is_made_again_with_all_its_options(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("I would rather\n", encoding="utf-8")
    ok(
        "select", store, "--name", "full", "--top", "90%", "--strategy", "rules", "--rules", file, "--seed", "5",
        "--where", "plateau IS NOT NULL", "--min-plateau", "-1000", "--quota", "label:0=4", "--quota", "topic=1",
        "--dedupe", "prompt:0.9", "--dedupe", "activation:0.99999",
    )  # fmt: skip
    ok("select", store, "--name", "sql", "--top", "5", "--strategy", "sql:cliff", "--ascending")
    ok("select", store, "--name", "drawn", "--top", "5", "--strategy", "random")
    before = snapshot(store / "selections")
    file.unlink()
    for name in ("full", "sql", "drawn"):
        (store / "selections" / f"{name}.parquet").unlink()
    assert ok("verify", store, "--repair", "--json").json["findings"] == []
    assert snapshot(store / "selections") == before
    body = json.loads(before["full.json"] or b"")
    assert body["phrases"] == ["I would rather"]
    assert body["left_out"]["refusal"] == 10


def test_other_options_to_the_same_examples_are_another_selection(store: Path) -> None:
    ok("select", store, "--name", "again", "--top", "3")
    before = snapshot(store)
    ok("select", store, "--name", "again", "--top", "3")
    assert snapshot(store) == before
    refused = run_cli("select", store, "--name", "again", "--top", "3", "--quota", "label=3")
    assert (refused.code, "--replace" in refused.stderr) == (2, True)
    assert snapshot(store) == before


def test_section_of_a_file_has_all_options(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "rank.yaml"
    file.write_text(
        f"store: {store}\nprobe: {PROBE}\nselect:\n  name: y\n  top: 5\n  strategy: final\n  min-plateau: -99\n"
        "  quota: label=3\n  dedupe: [prompt, 'activation:0.999999']\n",
        encoding="utf-8",
    )
    report = ok("cliff", "--config", file, "--json").json["select"]
    assert (report["strategy"], report["chosen"]) == ("final", 5)
    labels = rows(store, "SELECT label FROM selections JOIN examples USING (example) WHERE selection = 'y'")
    assert max(Counter(row["label"] for row in labels).values()) == 3


@pytest.mark.parametrize("probe", [None, PROBE])
def test_examples_without_cliffs_are_exported(probe: str | None, store: Path, tmp_path: Path) -> None:
    said = ("--probe", probe) if probe else ()
    ok("select", store, "--name", "all", "--top", "100%", "--strategy", "random", *said)
    report = ok("export", store, "--selection", "all", "-o", tmp_path / "out", "--target-text", "No.", "--json").json
    assert report["rows"] == 40
    assert [row["probe"] for row in rows(store, "SELECT DISTINCT probe FROM selections WHERE selection = 'all'")] == [
        probe
    ]
