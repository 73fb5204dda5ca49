"""The whole way through the command line: extract, probe, score, cliff, select, export; what comes out is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from commands import ok, run_cli, snapshot
from conftest import PROBE, SELECTION, Built, corpus_rows
from quick import quick_runs

from cliffstore.run.store import Store

N_LAYERS, WIDTH = 4, 32


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def plain(tiny_model: str):
    """The model as transformers loads it, for forward passes of one sequence."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    return AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()


def plain_forward(model, token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return resid_post float32 [layers, T, D] and the final norm's output [T, D] of one sequence.

    The last entry of `hidden_states` is normed, so the last block's raw output comes from a hook.
    """
    import torch

    caught = []
    hook = model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: caught.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        with torch.inference_mode():
            done = model(input_ids=torch.tensor([token_ids]), output_hidden_states=True, use_cache=False)
    finally:
        hook.remove()
    blocks = [*done.hidden_states[1:N_LAYERS], caught[0]]
    return (
        np.stack([block.float().reshape(len(token_ids), -1).numpy() for block in blocks]),
        done.last_hidden_state[0].float().numpy(),
    )


def sampled_positions(store: Store, n: int) -> list[tuple[int, int, int, list[int]]]:
    """Return (example, position, row, token ids of the example) of `n` positions all over the store."""
    found = store.sql(
        "SELECT example, position, row FROM tokens WHERE row IS NOT NULL ORDER BY hash(example * 1000 + position)"
        f" LIMIT {n}"
    ).fetchall()
    ids = dict(store.sql("SELECT example, list(token_id ORDER BY position) FROM tokens GROUP BY example").fetchall())
    return [(example, position, row, ids[example]) for example, position, row in found]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_reports(built: Built) -> None:
    report = built.report
    assert (report["examples"], report["skipped"], report["units_failed"]) == (40, 0, 0)
    assert report["rows"] < report["tokens"]
    assert report["units_done_before"] == 0
    assert report["units_done_now"] == report["units"]
    assert report["bytes"] == report["rows"] * (N_LAYERS + 1) * WIDTH * 4


def test_tokens_are_those_of_the_chat_template(built: Built) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built.model)
    prompts = {str(row["id"]): str(row["prompt"]) for row in corpus_rows() if "thinking" not in row}
    with Store(str(built.store)) as store:
        found = dict(
            store.sql(
                "SELECT e.id, list(t.token_id ORDER BY t.position) FROM tokens t JOIN examples e USING (example) "
                "WHERE e.thinking IS NULL GROUP BY e.id"
            ).fetchall()
        )
        total = store.sql("SELECT count(*) FROM tokens").fetchall()[0]
    assert found.keys() == prompts.keys()
    for id_, prompt in prompts.items():
        turns = [{"role": "user", "content": prompt}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert found[id_] == expected
    assert total == (built.report["tokens"],)


def test_thinking_stands_between_its_markers(built: Built) -> None:
    rows = {str(row["id"]): row for row in corpus_rows() if "thinking" in row}
    with Store(str(built.store)) as store:
        found = store.sql(
            "SELECT e.id, t.segment, string_agg(t.token, '' ORDER BY t.position) FROM tokens t "
            "JOIN examples e USING (example) WHERE e.thinking IS NOT NULL GROUP BY ALL"
        ).fetchall()
        decisions = store.sql(
            "SELECT DISTINCT t.segment, e.thinking IS NULL FROM tokens t JOIN examples e USING (example) "
            "WHERE to_decision = 0"
        ).fetchall()
    text = {(id_, segment): value for id_, segment, value in found}
    for id_, row in rows.items():
        assert text[id_, "think"].strip() == row["thinking"]
        assert "<think>" in text[id_, "think_open"]
        assert "</think>" in text[id_, "think_close"]
        assert text[id_, "response"].strip() == row["response"]
    assert set(decisions) == {("think_close", False), ("header", True)}


def test_vectors_equal_a_plain_forward(built: Built, plain) -> None:
    with Store(str(built.store)) as store:
        for _, position, row, token_ids in sampled_positions(store, 10):
            resid_LTD, final_TD = plain_forward(plain, token_ids)
            rows = np.array([row])
            for layer in range(N_LAYERS):
                found_D = store.vectors("resid_post", layer, rows)[0]
                assert relative_error(found_D, resid_LTD[layer, position]) < 1e-5
            found_D = store.vectors("final_norm", N_LAYERS - 1, rows)[0]
            assert relative_error(found_D, final_TD[position]) < 1e-5


def test_shared_prefixes_share_rows(built: Built) -> None:
    """Within a unit, two positions have one row if and only if their token prefixes are equal."""
    with Store(str(built.store)) as store:
        tokens = store.sql(
            "SELECT t.example, e.unit, t.token_id, t.row FROM tokens t JOIN examples e USING (example) "
            "ORDER BY t.example, t.position"
        ).fetchall()
    prefix: dict[int, tuple[int, ...]] = {}
    rows: dict[tuple[int, tuple[int, ...]], set[int]] = {}
    for example, unit, token, row in tokens:
        prefix[example] = (*prefix.get(example, ()), token)
        rows.setdefault((unit, prefix[example]), set()).add(row)
    assert all(len(found) == 1 for found in rows.values())
    assert len({row for found in rows.values() for row in found}) == len(rows) == built.report["rows"]


def test_bfloat16_is_stored_bit_for_bit(built: Built, plain, tmp_path: Path) -> None:
    path = tmp_path / "store"
    ok("extract", built.corpus, "--model", built.model, "--store", path, "--dtype", "bfloat16", "--limit", "8")
    with Store(str(path)) as store:
        for layer in range(N_LAYERS):
            raw = zarr.open_array(path / "activations/main/resid_post" / str(layer), mode="r")
            assert raw.dtype == np.uint16
            assert raw.attrs["cliffstore"] == {"dtype": "bfloat16"}
            sample = sampled_positions(store, 10)
            rows_N = np.array([row for _, _, row, _ in sample])
            found_ND = store.vectors("resid_post", layer, rows_N)
            bits_ND = np.asarray(raw[:])[rows_N]
            np.testing.assert_array_equal(found_ND.view(np.uint32), bits_ND.astype(np.uint32) << 16)
            for found_D, (_, position, _, token_ids) in zip(found_ND, sample, strict=True):
                expected_D = plain_forward(plain, token_ids)[0][layer, position]
                cosine = found_D @ expected_D / np.linalg.norm(found_D) / np.linalg.norm(expected_D)
                assert cosine >= 0.9995


def test_other_zarr_readers_open_the_arrays(built: Built) -> None:
    xarray = pytest.importorskip("xarray")
    site = built.store / "activations/main/resid_post"
    group = zarr.open_group(site, mode="r")
    assert sorted(group.array_keys()) == ["0", "1", "2", "3"]
    array = zarr.open_array(site / "2", mode="r")
    assert array.metadata.dimension_names == ("row", "d_model")
    dataset = xarray.open_zarr(site, consolidated=False)
    assert dataset["2"].dims == ("row", "d_model")
    n_rows = int(str(built.report["rows"]))
    with Store(str(built.store)) as store:
        rows_N = np.array([row[0] for row in store.sql("SELECT DISTINCT row FROM tokens ORDER BY 1").fetchall()])
        found_ND = store.vectors("resid_post", 2, rows_N)
    assert len(rows_N) == n_rows
    for read in (array[:], group["2"][:], dataset["2"].values):
        np.testing.assert_array_equal(np.asarray(read)[rows_N], found_ND)


def test_cliffs_are_plateau_minus_final(built: Built) -> None:
    with Store(str(built.store)) as store:
        cliffs = store.sql("SELECT example, plateau, final, cliff, n_think FROM cliffs ORDER BY example").fetchall()
        scores = store.sql("SELECT example, segment, to_decision, score FROM scores").fetchall()
    assert len(cliffs) == 40
    for example, plateau, final, cliff, n_think in cliffs:
        think = [score for e, segment, _, score in scores if (e, segment) == (example, "think")]
        assert n_think == len(think)
        assert final == pytest.approx(next(s for e, _, d, s in scores if (e, d) == (example, 0)), abs=1e-5)
        if think:
            assert plateau == pytest.approx(np.mean(think), abs=1e-5)
            assert cliff == pytest.approx(plateau - final, abs=1e-6)
        else:
            assert (plateau, cliff) == (None, None)
    assert sum(cliff is not None for *_, cliff, _ in cliffs) == 20


def test_training_set_loads_and_leads_back(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    report = ok("export", built.store, "--selection", SELECTION, "-o", out, "--json").json
    assert (report["rows"], report["without_target"]) == (8, 0)
    train = datasets.load_dataset(
        "parquet", data_files=str(out / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(train) == 8
    given = {row["id"]: row for row in corpus_rows()}
    with Store(str(built.store)) as store:
        examples = dict(store.sql("SELECT example, id FROM examples").fetchall())
        digests = dict(store.sql("SELECT example, digest FROM examples").fetchall())
        cliffs = dict(store.sql(f"SELECT example, cliff FROM cliffs WHERE probe = '{PROBE}'").fetchall())
        probe = store.sql("SELECT digest FROM probes").fetchall()[0][0]
        plan = store.sql("SELECT DISTINCT plan FROM units").fetchall()[0][0]
        capture = store.sql("SELECT DISTINCT capture FROM captures").fetchall()[0][0]
    largest = sorted((value for value in cliffs.values() if value is not None), reverse=True)[:8]
    assert train["cliff"] == pytest.approx(largest)
    for row in train:
        source = given[row["id"]]
        assert row["messages"] == [
            {"role": "user", "content": source["prompt"]},
            {
                "role": "assistant",
                "content": f"<think>\n{source['thinking']}\n</think>\n\n{source['response']}",
            },
        ]
        assert examples[row["example"]] == row["id"]
        assert digests[row["example"]] == row["example_digest"]
        assert cliffs[row["example"]] == pytest.approx(row["cliff"])
        assert (row["probe_digest"], row["plan"], row["capture"]) == (probe, plan, capture)
        assert (row["label"], row["selection"], row["probe"]) == (str(source["label"]), SELECTION, PROBE)
    card = (out / "README.md").read_text()
    assert report["files"][0]["digest"] in card
    assert probe in card
    metadata = pq.read_schema(out / "train.parquet").metadata
    assert metadata[b"cliffstore.probe_digest"].decode() == probe


def test_exporting_twice_gives_the_same_bytes(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ok("export", built.store, "--selection", SELECTION, "-o", out)
    first = snapshot(out)
    ok("export", built.store, "--selection", SELECTION, "-o", out)
    assert snapshot(out) == first
    assert sorted(first) == ["README.md", "train.parquet"]


def test_export_with_one_answer_for_all(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "refusals.parquet"
    ok("export", built.store, "--selection", SELECTION, "-o", out, "--target-text", "Sorry, no.")
    turns = [row[-1]["content"] for row in pq.read_table(out)["messages"].to_pylist()]
    assert all(turn.endswith("</think>\n\nSorry, no.") for turn in turns)
    assert (tmp_path / "refusals.md").exists()


def test_running_everything_again_changes_nothing(built: Built) -> None:
    before = snapshot(built.store)
    report = ok(
        "extract", built.corpus, "--model", built.model, "--store", built.store,
        "--sites", "resid_post,final_norm", "--json",
    ).json  # fmt: skip
    assert (report["units_done_before"], report["units_done_now"]) == (report["units"], 0)
    ok("probe", "fit", built.store, "--name", PROBE)
    scored = ok("score", built.store, "--probe", PROBE, "--json").json
    assert (scored["units"], scored["tokens"]) == (0, 0)
    ok("cliff", built.store, "--probe", PROBE)
    ok("select", built.store, "--name", SELECTION, "--top", "8")
    assert snapshot(built.store) == before


def test_another_probe_of_the_name_needs_replace(built: Built, tmp_path: Path) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    refused = run_cli("probe", "fit", store, "--name", PROBE, "--layers", "0", "--c", "0.01")
    assert refused.code == 2
    assert "--replace" in refused.stderr
    replaced = ok("probe", "fit", store, "--name", PROBE, "--layers", "0", "--c", "0.01", "--replace", "--json").json
    assert (replaced["layer"], replaced["c"]) == (0, 0.01)
    with Store(str(store)) as opened:
        assert opened.sql("SELECT count(*) FROM scores").fetchall()[0] == (0,), "scores of the probe before must go"
        assert opened.sql("SELECT count(*) FROM cliffs").fetchall()[0] == (0,)


def test_layers_and_models_can_be_added_later(built: Built, tmp_path: Path) -> None:
    """Rows stay where they are: a second capture stands beside the first, row for row."""
    path = tmp_path / "store"
    some = ["extract", built.corpus, "--model", built.model, "--store", path, "--limit", "8", "--json"]
    first = ok(*some, "--layers", "1").json
    second = ok(*some, "--layers", "0,2-3").json
    twin = ok(*some, "--layers", "1", "--model-alias", "twin").json
    assert first["plan"] == second["plan"] == twin["plan"]
    info = ok("info", path, "--json").json
    assert len(info["captures"]) == 3
    with Store(str(path)) as store:
        rows_N = np.arange(first["rows"])
        np.testing.assert_array_equal(
            store.vectors("resid_post", 1, rows_N, "main"), store.vectors("resid_post", 1, rows_N, "twin")
        )
    assert ok("verify", path, "--json").json["findings"] == []


def test_verify_finds_a_changed_byte(built: Built, tmp_path: Path) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    assert ok("verify", store, "--json").json["findings"] == []
    shard = next(path for path in (store / "activations/main/resid_post/1").rglob("*") if path.is_file() and
                 path.name != "zarr.json")  # fmt: skip
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    result = run_cli("verify", store, "--json")
    assert result.code == 1
    findings = json.loads(result.stdout)["findings"]
    assert len(findings) == 1
    assert "resid_post/1" in findings[0]["key"]
