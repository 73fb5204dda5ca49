"""SQL over a store: the views, the vector functions, the output formats, and what SQL must not reach."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ok, run_cli, snapshot
from conftest import PROBE, SELECTION, Built

from cliffstore.run.store import Store

VIEWS = {
    "examples": 40, "tokens": None, "units": None, "skipped": 0, "captures": 5, "scores": None, "cliffs": 40,
    "heads": 0, "experiments": 0, "probes": 1, "probe_metrics": 4, "selections": 8,
}  # fmt: skip


def query(store: Path, statement: str) -> list[dict[str, object]]:
    return ok("sql", store, statement, "--json").json


def test_statement_of_the_design(built: Built) -> None:
    """Section 7 of the design, with a layer that the tiny model has."""
    found = query(
        built.store,
        "SELECT e.label, avg(array_inner_product(resid_post(t.row, 2), probe_weight('refusal'))) FROM tokens t "
        "JOIN examples e USING (example) WHERE t.to_decision = 0 GROUP BY 1",
    )
    means = {row["label"]: next(value for name, value in row.items() if name != "label") for row in found}
    assert means.keys() == {"0", "1"}
    with Store(str(built.store)) as store:
        places = store.sql(
            "SELECT e.label, t.row FROM tokens t JOIN examples e USING (example) WHERE t.to_decision = 0"
        ).fetchall()
        w_D = np.array(store.sql("SELECT probe_weight('refusal')").fetchall()[0][0])
        h_ND = store.vectors("resid_post", 2, np.array([row for _, row in places]))
    for label, mean in means.items():
        chosen = [index for index, (one, _) in enumerate(places) if one == label]
        assert mean == pytest.approx(float((h_ND[chosen] @ w_D).mean()), abs=1e-4)


@pytest.mark.parametrize(("view", "rows"), VIEWS.items())
def test_every_view_can_be_read(view: str, rows: int | None, built: Built) -> None:
    found = query(built.store, f"SELECT * FROM {view}")
    assert len(found) == rows if rows is not None else found


def test_counts_agree_with_the_report(built: Built) -> None:
    counts = query(
        built.store,
        "SELECT (SELECT count(*) FROM tokens) AS tokens, (SELECT count(DISTINCT row) FROM tokens) AS rows, "
        "(SELECT count(*) FROM scores) AS scores, (SELECT count(*) FROM units WHERE extracted) AS units, "
        "(SELECT sum(n_rows) FROM units) AS unit_rows, (SELECT sum(n_tokens) FROM examples) AS example_tokens",
    )[0]
    report = built.report
    assert counts["tokens"] == counts["scores"] == counts["example_tokens"] == report["tokens"]
    assert counts["rows"] == counts["unit_rows"] == report["rows"]
    assert counts["units"] == report["units"]


def test_functions_give_the_vectors_of_the_store(built: Built) -> None:
    with Store(str(built.store)) as store:
        rows_N = np.array([5, 0, 5, 17, 3])
        listed = ", ".join(f"({index}, {row})" for index, row in enumerate(rows_N))
        for call, site, layer in (
            ("resid_post(r, 0)", "resid_post", 0),
            ("resid_post(r, 3)", "resid_post", 3),
            ("resid_post(r, 3, 'main')", "resid_post", 3),
            ("final_norm(r, 3)", "final_norm", 3),
            ("final_norm(r)", "final_norm", 3),
        ):
            relation = store.sql(f"SELECT {call} FROM (VALUES {listed}) v(i, r) ORDER BY i")
            assert str(relation.types[0]) == "FLOAT[32]"
            found_ND = np.array([row[0] for row in relation.fetchall()], dtype=np.float32)
            np.testing.assert_array_equal(found_ND, store.vectors(site, layer, rows_N))


def test_layer_may_come_from_a_column(built: Built) -> None:
    with Store(str(built.store)) as store:
        found = store.sql(
            "SELECT resid_post(7, layer) FROM captures WHERE site = 'resid_post' ORDER BY layer"
        ).fetchall()
        expected = [store.vectors("resid_post", layer, np.array([7]))[0] for layer in range(4)]
    np.testing.assert_array_equal(np.array([row[0] for row in found], dtype=np.float32), np.array(expected))


def test_null_gives_null(built: Built) -> None:
    found = query(
        built.store,
        f"SELECT resid_post(NULL, 0) AS a, resid_post(0, NULL) AS b, score('{PROBE}', NULL) AS c, "
        "score(NULL, 0) AS d, probe_weight(NULL) AS e, resid_post(100000000, 0) AS f, resid_post(-1, 0) AS g",
    )
    assert found == [dict.fromkeys("abcdefg")]


def test_scores_agree_on_every_way(built: Built) -> None:
    """Stored scores, `score()`, and the inner product with the weights plus b are one and the same."""
    from cliffstore.store.probes import read_probe

    with Store(str(built.store)) as store:
        document, weights = read_probe(store.reader.objects, PROBE)
        found = store.sql(
            f"SELECT s.score, score('{PROBE}', t.row), "
            f"array_inner_product(resid_post(t.row, {document.layer}), probe_weight('{PROBE}')) "
            "FROM scores s JOIN tokens t USING (example, position)"
        ).fetchall()
    stored_N, called_N, product_N = np.array(found, dtype=np.float64).T
    assert len(stored_N) == built.report["tokens"]
    np.testing.assert_allclose(called_N, stored_N, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(product_N + weights.b, stored_N, atol=1e-4, rtol=1e-5)


def test_output_formats(built: Built, tmp_path: Path) -> None:
    statement = (
        "SELECT e.id, e.label, t.segment, t.to_decision, e.thinking, resid_post(t.row, 1) AS h "
        "FROM tokens t JOIN examples e USING (example) WHERE t.to_decision = 0 ORDER BY e.id LIMIT 5"
    )
    expected = query(built.store, statement)
    assert len(expected) == 5
    assert len(expected[0]["h"]) == 32

    as_csv = list(csv.DictReader(io.StringIO(ok("sql", built.store, statement, "--format", "csv").text)))
    assert [row["id"] for row in as_csv] == [row["id"] for row in expected]
    assert [json.loads(row["h"]) for row in as_csv] == [pytest.approx(row["h"]) for row in expected]
    as_parquet = pq.read_table(io.BytesIO(ok("sql", built.store, statement, "--format", "parquet").stdout))
    assert as_parquet.to_pylist() == expected
    as_table = ok("sql", built.store, statement).text
    assert as_table.splitlines()[0].split()[:3] == ["id", "label", "segment"]
    assert len(as_table.splitlines()) == 6

    for form in ("csv", "json", "parquet", "table"):
        path = tmp_path / f"out.{form}"
        printed = ok("sql", built.store, statement, "--format", form, "-o", path)
        assert "5 rows" in printed.text
        content = path.read_bytes()
        if form == "json":
            assert json.loads(content) == expected
        elif form == "parquet":
            assert pq.read_table(path).to_pylist() == expected
        else:
            assert str(expected[4]["id"]) in content.decode()


def test_unit_without_receipt_is_not_there(built: Built, tmp_path: Path) -> None:
    """Guarantee 1: vectors are visible if and only if the receipt exists, whatever lies in the arrays."""
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    receipt = min(store.glob("receipts/*/unit-*.json"))
    unit = json.loads(receipt.read_text())
    receipt.unlink()
    inside = unit["row_start"]
    assert query(store, f"SELECT resid_post({inside}, 0) AS h, score('{PROBE}', {inside}) AS s") == [
        {"h": None, "s": None}
    ]
    states = {row["unit"]: row["extracted"] for row in query(store, "SELECT unit, extracted FROM units")}
    assert states == {number: number != unit["unit"] for number in range(built.report["units"])}
    with Store(str(store)) as opened, pytest.raises(ValueError, match="not extracted"):
        opened.vectors("resid_post", 0, np.array([inside]))
    # The other units, if any, are as visible as before.
    n_missing = query(
        store, "SELECT count(*) AS n FROM (SELECT DISTINCT row FROM tokens) WHERE resid_post(row, 0) IS NULL"
    )
    assert n_missing == [{"n": unit["n_rows"]}]
    verified = run_cli("verify", store, "--json")
    assert (verified.code, verified.json["units_missing"]) == (1, 1)
    assert [(one["kind"], store / one["key"]) for one in verified.json["findings"]] == [("orphan", receipt)]
    # The same command brings them back.
    again = ok(
        "extract", built.corpus, "--model", built.model, "--store", store, "--sites", "resid_post,final_norm", "--json"
    ).json
    assert again["units_done_now"] == 1
    found = json.loads(receipt.read_text())
    assert found["digests"] == unit["digests"]
    ok("verify", store)


def test_sql_cannot_change_the_store(built: Built) -> None:
    before = snapshot(built.store)
    for statement in ("DELETE FROM examples", "DROP VIEW tokens", "INSERT INTO selections SELECT * FROM selections"):
        run_cli("sql", built.store, statement)
    assert snapshot(built.store) == before
    assert query(built.store, f"SELECT count(*) AS n FROM selections WHERE selection = '{SELECTION}'") == [{"n": 8}]
