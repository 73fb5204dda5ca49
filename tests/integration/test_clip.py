"""Clipping from a store to the report: the corpus, its extraction into the same store, scores by fraction kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ok, run_cli, snapshot, write_jsonl
from conftest import PROBE, Built, corpus_rows
from quick import quick_runs

from cliffstore.run.clipping import CLIPPED
from cliffstore.run.store import Store

KEPT = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def clipped(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with clipped examples and their scores, and the corpus of these."""
    folder = tmp_path_factory.mktemp("clip")
    store, corpus = Path(shutil.copytree(built.store, folder / "store")), folder / "clipped.jsonl"
    made = ok("clip", "make", store, "-o", corpus)
    assert made.text == f"{corpus}: 120 rows of 20 examples\n"
    assert "20 of 40 examples have no thinking and are left out" in made.stderr
    ok(
        "extract",
        corpus,
        "--append",
        "--model",
        built.model,
        "--store",
        store,
        "--sites",
        "resid_post,final_norm",
        "--positions",
        "think,decision",
    )
    ok("score", store, "--probe", PROBE)
    return store, corpus


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_corpus(clipped: tuple[Path, Path]) -> None:
    rows = {row["id"]: row for row in read_lines(clipped[1])}
    given = {row["id"]: row for row in corpus_rows() if "thinking" in row}
    assert set(rows) == {f"{one}@{kept * 100:g}" for one in given for kept in KEPT}
    for row in rows.values():
        original = given[row["clipped_from"]]
        assert (row["prompt"], row["label"]) == (original["prompt"], str(original["label"]))
        assert original["thinking"].startswith(row["thinking"] or "")
        assert row["response"] == original["response"]
    for one, original in given.items():
        assert rows[f"{one}@100"]["thinking"] == original["thinking"]
        assert rows[f"{one}@0"]["thinking"] is None
        lengths = [len(rows[f"{one}@{kept * 100:g}"]["thinking"] or "") for kept in KEPT]
        assert lengths == sorted(set(lengths), reverse=True)


def test_the_share_is_one_of_tokens(clipped: tuple[Path, Path]) -> None:
    """Tokenised again, a cut thinking has as many tokens as it was to keep."""
    counted = """
        SELECT e.id, e.clipped_from, e.kept, count(t.position) AS n FROM examples e
        LEFT JOIN tokens t ON t.example = e.example AND t.segment = 'think' GROUP BY ALL
    """
    with Store(str(clipped[0])) as store:
        found = store.catalog.arrow(counted).to_pylist()
    whole = {row["id"]: row["n"] for row in found if row["kept"] is None}
    cuts = [row for row in found if row["kept"] is not None]
    assert len(cuts) == 120
    for row in cuts:
        assert row["n"] == int(whole[row["clipped_from"]] * row["kept"] + 0.5)


def test_shared_prefixes_are_computed_once(clipped: tuple[Path, Path]) -> None:
    statement = "SELECT sum(n_tokens), sum(n_nodes), sum(n_rows) FROM units GROUP BY plan ORDER BY 1"
    with Store(str(clipped[0])) as store:
        _, (tokens, nodes, rows) = store.catalog.relation(statement).fetchall()
    # Six rows of an example share its prompt, and each all thinking of the shorter ones; responses are not computed.
    assert rows < nodes < 0.2 * float(tokens)


def test_all_of_the_thinking_scores_as_the_original_does(clipped: tuple[Path, Path]) -> None:
    """The response is there too, since the token before it may depend on it."""
    statement = """
        SELECT c.score, o.score FROM scores c JOIN examples e USING (example) JOIN examples f ON f.id = e.clipped_from
        JOIN scores o ON o.example = f.example WHERE e.kept = 1 AND c.to_decision = 0 AND o.to_decision = 0
    """
    with Store(str(clipped[0])) as store:
        pairs = np.array(store.sql(statement).fetchall())
    assert pairs.shape == (20, 2)
    np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], rtol=1e-4, atol=1e-4)


def test_the_report_is_one_of_scores_by_fraction(clipped: tuple[Path, Path]) -> None:
    store = clipped[0]
    found = ok("clip", "report", store, "--probe", PROBE, "--json").json
    assert [row["kept"] for row in found] == list(KEPT)
    statement = (
        "SELECT avg(score), avg(1 / (1 + exp(-score))), count(*) FROM scores JOIN examples USING (example) "
        "WHERE to_decision = 0 AND kept = $1"
    )
    with Store(str(store)) as opened:
        for row in found:
            logit, probability, n = opened.sql(statement, [row["kept"]]).fetchall()[0]
            assert row["n"] == n == 20
            assert (row["logit"], row["probability"]) == (pytest.approx(logit), pytest.approx(probability))
            assert row["logit_low"] < row["logit"] < row["logit_high"]
            assert row["probability_low"] <= row["probability"] <= row["probability_high"]
        figures = opened.clip_report(PROBE, where="e.label = '1' -- those to decline")
    assert [one.n for one in figures] == [10] * 6
    table = ok("clip", "report", store, "--probe", PROBE).text
    assert "probability" in table.splitlines()[0]
    assert len(table.splitlines()) == 7


def test_what_was_clipped_is_not_clipped_again(clipped: tuple[Path, Path], tmp_path: Path) -> None:
    ok("clip", "make", clipped[0], "-o", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == clipped[1].read_bytes()


def test_parquet_and_conditions(built: Built, tmp_path: Path) -> None:
    with Store(str(built.store)) as store:
        report = store.clip(str(tmp_path / "half.parquet"), keep=(50, 12.5), where="e.label = '1' -- those to decline")
    assert (report.examples, report.rows, report.without_thinking, report.by_words) == (10, 20, 10, 0)
    table = pq.read_table(tmp_path / "half.parquet")
    assert table.schema.names == CLIPPED.names
    assert set(table["label"].to_pylist()) == {"1"}
    assert {one.partition("@")[2] for one in table["id"].to_pylist()} == {"50", "12.5"}


def test_conversations_keep_their_turns_and_odd_characters_are_whole(built: Built, tmp_path: Path) -> None:
    turns = [("system", "Be short."), ("user", "Hi."), ("assistant", "Hello."), ("user", "A tale?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    answer = {"role": "assistant", "content": "<think>\nOne about a fox, perhaps.\n</think>\n\nThere was a fox."}
    corpus, store, out = tmp_path / "talk.jsonl", tmp_path / "store", tmp_path / "clipped.jsonl"
    odd = {
        "id": "u",
        "prompt": "Hm?",
        "thinking": "\nA 🦊 naïvely  asked 一只猫 \u202e(why?) 🦊🦊.\n\tThen… it left. \n",
    }
    write_jsonl(corpus, [{"id": "t", "messages": [*messages, answer]}, odd])
    ok("extract", corpus, "--model", built.model, "--store", store, "--layers", "0")
    made = ok("clip", "make", store, "-o", out, "--keep", "100,50,0", "--json")
    assert made.json["by_words"] == 0
    assert "1 examples have no response" in made.stderr
    rows = [row for row in read_lines(out) if row["clipped_from"] == "t"]
    assert [row["messages"] for row in rows] == [messages] * 3
    assert [row["thinking"] for row in rows] == ["One about a fox, perhaps.", "One about a fox", None]
    whole, half, none = [row for row in read_lines(out) if row["clipped_from"] == "u"]
    assert (whole["thinking"], none["thinking"], "messages" in half) == (odd["thinking"], None, False)
    assert odd["thinking"].startswith(half["thinking"])
    again = ok("extract", out, "--append", "--model", built.model, "--store", store, "--layers", "0", "--json").json
    assert again["skipped"] == 0


def test_errors_are_one_line_and_leave_nothing(built: Built, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for arguments, message in (
        (("make", built.store, "-o", tmp_path / "out.csv"), ".jsonl or .parquet"),
        (("make", built.store, "-o", tmp_path / "out.jsonl", "--keep", "110"), "no percentage from 0 to 100"),
        (("make", built.store, "-o", tmp_path / "out.jsonl", "--where", "nothing = 1"), "nothing"),
        (("make", built.store, "-o", tmp_path / "out.jsonl", "--where", "thinking IS NULL"), "has thinking to clip"),
        (("make", built.store, "-o", tmp_path / "no" / "out.jsonl"), "cannot write"),
        (("make", tmp_path / "none", "-o", tmp_path / "out.jsonl"), "there is no store"),
        (("report", built.store, "--probe", PROBE), "has no clipped examples"),
        (("report", built.store, "--probe", "other"), "other"),
    ):
        result = run_cli("clip", *arguments)
        assert result.code == 2, arguments
        assert message in result.stderr
        assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == [
            result.stderr.splitlines()[-1]
        ]
        assert snapshot(tmp_path) == before


def test_the_report_asks_for_scores(clipped: tuple[Path, Path], tmp_path: Path) -> None:
    store = Path(shutil.copytree(clipped[0], tmp_path / "store"))
    shutil.rmtree(store / "scores")
    result = run_cli("clip", "report", store, "--probe", PROBE)
    assert (result.code, "run `cliffstore score" in result.stderr) == (2, True)
    result = run_cli("clip", "report", clipped[0], "--probe", PROBE, "--where", "label = 'none'")
    assert (result.code, "no clipped example satisfies label = 'none'" in result.stderr) == (2, True)
