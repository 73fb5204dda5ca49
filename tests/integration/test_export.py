"""Exports through the command line: formats, targets, mixing, splitting, lineage, cards; equal bytes each time."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from commands import ok, run_cli, snapshot, write_jsonl
from conftest import PROBE, SELECTION, Built, corpus_rows

from cliffstore.errors import ConfigError
from cliffstore.publish.export import _places
from cliffstore.run.store import Store
from cliffstore.schema import TRAINING_SETS, SelectionDocument
from cliffstore.store import documents, layout

FORMATS = tuple(TRAINING_SETS)
MIXED = ("--mix", "50%", "--mix-where", "label = '0'", "--validation", "25%")
REFUSAL = ("--target-text", "Sorry, no.")


@pytest.fixture(scope="module")
def store(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with a selection of requests to decline alone, so that those to answer can be mixed in."""
    path = Path(shutil.copytree(built.store, tmp_path_factory.mktemp("exports") / "store"))
    ok("select", path, "--name", "declined", "--top", "6", "--where", "label = '1'")
    return path


def export(store: Path, out: Path, *options: str | Path, selection: str = "declined"):
    return ok("export", store, "--selection", selection, "-o", out, *options, "--json").json


def rows_of(*files: Path) -> list[dict[str, object]]:
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def blocks(card: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("format", FORMATS)
def test_two_exports_are_the_same_bytes(format: str, store: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(store, tmp_path / name, "--format", format, *MIXED, *REFUSAL)
    first = snapshot(tmp_path / "one")
    assert sorted(first) == ["README.md", "train.parquet", "validation.parquet"]
    assert snapshot(tmp_path / "two") == first


@pytest.mark.parametrize("format", FORMATS)
def test_datasets_duckdb_polars_and_arrow_read_it(
    format: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    report = export(store, out, "--format", format, *MIXED, *REFUSAL)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    sizes = {split: len(rows) for split, rows in loaded.items()}
    assert sizes == {"train": report["rows"] - report["validation"], "validation": report["validation"]}
    assert sizes["train"] + sizes["validation"] == 12
    found = duckdb.connect().sql(f"SELECT id, part FROM read_parquet('{out}/*.parquet')").fetchall()
    assert sorted(found) == sorted((row["id"], row["part"]) for rows in loaded.values() for row in rows)
    frame = pytest.importorskip("polars").read_parquet(f"{out}/*.parquet")
    assert sorted(frame.select("id", "part").rows()) == sorted(found)
    assert frame.select(TRAINING_SETS[format].names).shape == (12, len(TRAINING_SETS[format]))
    parts = [part for _, part in found]
    assert (parts.count("selected"), parts.count("mixed")) == (6, 6)
    for file in report["files"]:
        with pq.ParquetFile(out / file["name"]) as parquet:
            assert parquet.schema_arrow.names[: len(TRAINING_SETS[format])] == TRAINING_SETS[format].names
            group = parquet.metadata.row_group(0)
            assert {group.column(column).compression for column in range(group.num_columns)} == {"ZSTD"}
            assert (parquet.metadata.num_row_groups, parquet.metadata.num_rows) == (1, file["rows"])


@pytest.mark.parametrize("format", FORMATS)
def test_one_statement_leads_each_row_back(
    format: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(store, out, "--format", format, *MIXED, *REFUSAL)
    monkeypatch.chdir(out)
    (command,) = blocks(out / "README.md", "bash")
    program, *arguments = shlex.split(command)
    assert program == "cliffstore"
    found = ok(*arguments, "--format", "json").json
    exported = {row["id"]: row for row in rows_of(out / "train.parquet", out / "validation.parquet")}
    assert {row["id"] for row in found} == exported.keys()
    assert len(found) == 12
    given = {row["id"]: row for row in corpus_rows()}
    for row in found:
        assert (row["same_example"], row["same_probe"]) == (True, True)
        assert row["prompt"] == given[row["id"]]["prompt"]
        assert row["cliff"] == exported[row["id"]]["cliff"]
        assert row["final"] == pytest.approx(row["score_before_answer"], abs=1e-5)
    assert [row["rank"] for row in found[:6]] == [1, 2, 3, 4, 5, 6]


def test_what_is_mixed_in_teaches_its_own_answers(store: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "out", *MIXED, *REFUSAL)
    given = {row["id"]: row for row in corpus_rows()}
    rows = rows_of(tmp_path / "out" / "train.parquet", tmp_path / "out" / "validation.parquet")
    for row in rows:
        answer = row["messages"][-1]["content"]
        source = given[row["id"]]
        assert answer.startswith(f"<think>\n{source['thinking']}\n</think>\n\n")
        if row["part"] == "mixed":
            assert (row["label"], row["rank"], row["strategy"], row["value"]) == ("0", None, None, None)
            assert answer.endswith(f"\n\n{source['response']}")
        else:
            assert (row["label"], row["strategy"]) == ("1", "cliff")
            assert answer.endswith("\n\nSorry, no.")
        assert row["cliff"] is not None


def test_what_is_mixed_in_is_no_concern_of_the_target(store: Path, tmp_path: Path) -> None:
    template = tmp_path / "answer.jinja"
    template.write_text("{{ 1 / 0 if label == '0' else 'No.' }}")
    assert export(store, tmp_path / "out", "--target-template", template, *MIXED)["mixed"] == 6


def test_seed_chooses_what_is_mixed_in(store: Path, tmp_path: Path) -> None:
    found = []
    for seed in ("0", "1"):
        export(store, tmp_path / seed, "--mix", "0.25", "--mix-where", "label = '0'", "--seed", seed)
        rows = rows_of(tmp_path / seed / "train.parquet")
        assert [row["part"] for row in rows].count("mixed") == 2
        assert [row["part"] for row in rows] != ["selected"] * 6 + ["mixed"] * 2
        found.append({row["id"] for row in rows if row["part"] == "mixed"})
    assert found[0] != found[1]


def test_seed_chooses_what_validates(store: Path, tmp_path: Path) -> None:
    held_out = []
    for seed in ("0", "1", "2"):
        export(store, tmp_path / seed, "--validation", "50%", "--seed", seed)
        held_out.append({row["id"] for row in rows_of(tmp_path / seed / "validation.parquet")})
    assert {len(one) for one in held_out} == {3}
    assert len(set(map(frozenset, held_out))) > 1


def test_nothing_that_is_selected_is_mixed_in_too(store: Path, tmp_path: Path) -> None:
    """Whatever mix-where allows, and whatever other probes' cliffs there are."""
    path = Path(shutil.copytree(store, tmp_path / "store"))
    options = ("--mix", "75%", "--mix-where", "e.label IS NOT NULL -- all")
    export(path, tmp_path / "one", *options)
    rows = rows_of(tmp_path / "one" / "train.parquet")
    assert [row["part"] for row in rows].count("selected") == 6
    assert len(rows) == len({row["id"] for row in rows}) == 20
    ok("probe", "random", path, "--like", PROBE, "--n", "1")
    ok("score", path, "--probe", f"{PROBE}-random-0-0")
    ok("cliff", path, "--probe", f"{PROBE}-random-0-0")
    export(path, tmp_path / "two", *options)
    assert (tmp_path / "two" / "train.parquet").read_bytes() == (tmp_path / "one" / "train.parquet").read_bytes()


def test_too_few_to_mix_in_are_all_taken_and_counted(store: Path, tmp_path: Path) -> None:
    two = "e.label = '0' AND topic IN ('a chess club', 'a wooden chair') -- two"
    few = ("--mix", "50%", "--mix-where", two)
    result = ok("export", store, "--selection", "declined", "-o", tmp_path / "out", *few, "--json")
    assert (result.json["mixed"], result.json["rows"]) == (2, 8)
    assert "2 examples are mixed in, not the 6" in result.stderr


def test_groups_do_not_part(store: Path, tmp_path: Path) -> None:
    """Both requests about a topic stay together; by prompts alone they do not."""
    sides = {}
    for name, more in (("prompts", ()), ("topics", ("--group-by", "topic"))):
        out = tmp_path / name
        options = ("--mix", "60%", "--mix-where", "label = '0'", "--validation", "40%", "--format", "raw", *more)
        export(store, out, *options)
        train, held_out = ({row["topic"] for row in rows_of(out / f"{split}.parquet")}
                           for split in ("train", "validation"))  # fmt: skip
        sides[name] = train & held_out
    assert sides["prompts"]
    assert not sides["topics"]


def test_equal_prompts_do_not_part(built: Built, tmp_path: Path) -> None:
    rows = [
        {**row, "id": f"{row['id']}-{copy}", "prompt": f"{row['prompt']}{' ' * copy}"}
        for row in corpus_rows()
        if "thinking" in row
        for copy in range(3)
    ]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    path = tmp_path / "store"
    ok("extract", corpus, "--model", built.model, "--store", path, "--layers", "1")
    ok("probe", "fit", path, "--name", PROBE)
    ok("score", path, "--probe", PROBE)
    ok("cliff", path, "--probe", PROBE)
    ok("select", path, "--name", "all", "--top", "100%")
    report = export(path, tmp_path / "out", "--validation", "20%", selection="all")
    assert (report["rows"], report["validation"]) == (60, 12)
    train, held_out = (
        {row["messages"][0]["content"].strip() for row in rows_of(tmp_path / "out" / f"{split}.parquet")}
        for split in ("train", "validation")
    )
    assert (len(train), len(held_out)) == (16, 4)


@pytest.mark.parametrize("format", FORMATS)
def test_card_has_what_each_trainer_reads(format: str, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export(store, out, "--format", format, *MIXED, *REFUSAL)
    card = out / "README.md"
    text = card.read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert [one["split"] for one in header["configs"][0]["data_files"]] == ["train", "validation"]
    for block in blocks(card, "python"):
        ast.parse(block)
    axolotl, factory = [yaml.safe_load(block) for block in blocks(card, "yaml")]
    assert factory["stage"] == "sft"
    entries = json.loads(blocks(card, "json")[-1])
    assert {factory["dataset"], factory["eval_dataset"]} == set(entries)
    expected = "train.parquet" if format in ("messages", "alpaca") else "messages-train.parquet"
    assert axolotl["datasets"][0]["path"] == entries[factory["dataset"]]["file_name"] == expected
    assert "&id" not in text
    columns = set(TRAINING_SETS["messages" if format != "alpaca" else "alpaca"].names)
    assert set(entries[factory["dataset"]]["columns"].values()) <= columns
    with Store(str(store)) as opened:
        (plan,) = opened.reader.plans()
        probe = opened.sql("SELECT digest FROM probes").fetchall()[0][0]
        selection = documents.read(opened.reader.objects, SelectionDocument, layout.selection_document("declined"))
    digests = [file["digest"] for file in report["files"]]
    assert re.search(r"rows with thinking\W+12\W", text)
    for said in (*digests, plan.digest, probe, selection.digest, "`cliff`", "12: 6 selected, 6 mixed in"):
        assert said in text


@pytest.mark.parametrize("format", ["prompt-completion", "raw"])
def test_card_makes_messages_for_those_who_read_nothing_else(
    format: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("messages", format):
        export(store, tmp_path / name, "--format", name, *MIXED, *REFUSAL)
    monkeypatch.chdir(tmp_path / format)
    (snippet,) = [block for block in blocks(Path("README.md"), "python") if "to_parquet" in block]
    exec(compile(snippet, "snippet", "exec"), {})
    for split in ("train", "validation"):
        made = pq.read_table(f"messages-{split}.parquet")["messages"].to_pylist()
        assert made == pq.read_table(tmp_path / "messages" / f"{split}.parquet")["messages"].to_pylist()


def test_template_is_over_columns_of_the_example(store: Path, tmp_path: Path) -> None:
    template = tmp_path / "answer.jinja"
    template.write_text("I will not write about {{ topic }}{% if label == '1' %}, {{ id }}{% endif %}{{ system }}.\n")
    export(store, tmp_path / "out", "--target-template", template, "--thinking", "drop")
    for row in rows_of(tmp_path / "out" / "train.parquet"):
        topic = next(one["topic"] for one in corpus_rows() if one["id"] == row["id"])
        assert row["messages"][-1]["content"] == f"I will not write about {topic}, {row['id']}."
    assert "answer.jinja" in (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"rows with thinking\W+0\W", (tmp_path / "out" / "README.md").read_text())
    assert str(tmp_path / "answer.jinja") not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{ colour }}", "'colour' is undefined"),
        ("{{ topic", "line 1"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10000000) %}x{% endfor %}", "OverflowError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ '' }}", "has a target"),
    ],
)
def test_template_that_cannot_be_used_is_one_line(text: str, told: str, store: Path, tmp_path: Path) -> None:
    template = tmp_path / "answer.jinja"
    template.write_text(text)
    mistaken(
        "export", store, "--selection", "declined", "-o", tmp_path / "out", "--target-template", template, told=told
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--thinking", "cut"), "keep:40%"),
        (("--mix", "30%"), "mix-where"),
        (("--mix-where", "true"), "mix"),
        (("--mix", "100%", "--mix-where", "true"), "mix"),
        (("--mix", "many", "--mix-where", "true"), "many"),
        (("--mix", "30%", "--mix-where", "colour = 1"), "colour"),
        (("--mix", "30%", "--mix-where", "label = '7'"), "label = '7'"),
        (("--mix", "30%", "--mix-where", "true", "--mix-target-column", "colour"), "colour"),
        (("--validation", "0"), "validation"),
        (("--validation", "10%", "--group-by", "colour"), "colour"),
        (("--validation", "10%", "--group-by", "source"), "two groups"),
        (("--group-by", "topic"), "--validation"),
        (("--target-text", "No.", "--target-column", "topic"), "leave one out"),
        (("--target-text", "No.", "--target-template", "x.jinja"), "leave one out"),
        (("--target-template", "nowhere.jinja"), "nowhere.jinja"),
        (("--target-text", ""), "target"),
        (("--target-text", " \n"), "has a target"),
        (("--target-max-tokens", "9"), "--target-endpoint"),
        (("--mix-target-column", "topic"), "--mix"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(
    options: tuple[str, ...], told: str, store: Path, tmp_path: Path
) -> None:
    mistaken("export", store, "--selection", "declined", "-o", tmp_path / "out", *options, told=told)
    assert not (tmp_path / "out").exists()


def mistaken(*arguments: str | Path, told: str) -> None:
    result = run_cli(*arguments)
    assert result.code == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last


def test_a_file_takes_no_validation_part(store: Path, tmp_path: Path) -> None:
    mistaken("export", store, "--selection", "declined", "-o", tmp_path / "x.parquet", "--validation", "20%",
             told="must be a folder")  # fmt: skip


def test_several_files_load_and_lead_back_like_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    export(store, tmp_path / "one", *MIXED, *REFUSAL)
    monkeypatch.setattr("cliffstore.publish.shards.GROUP_ROWS", 2)
    monkeypatch.setattr("cliffstore.publish.export.BATCH", 2)
    monkeypatch.setattr("cliffstore.publish.export.FILE_BYTES", 1)
    out = tmp_path / "out"
    names = [file["name"] for file in export(store, out, *MIXED, *REFUSAL)["files"]]
    assert len(names) > 4
    assert names[0].startswith("train-00000-of-")
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    for split, rows in loaded.items():
        assert list(rows) == pq.read_table(tmp_path / "one" / f"{split}.parquet").to_pylist()
    monkeypatch.chdir(out)
    (command,) = blocks(Path("README.md"), "bash")
    assert len(ok(*shlex.split(command)[1:], "--format", "json").json) == 12
    axolotl, factory = [yaml.safe_load(block) for block in blocks(Path("README.md"), "yaml")]
    assert axolotl["datasets"][0]["data_files"] == [name for name in names if name.startswith("train")]
    assert {entry["file_name"] for entry in json.loads(blocks(Path("README.md"), "json")[-1]).values()} == set(names)
    assert len(factory["dataset"].split(",")) == len(axolotl["datasets"][0]["data_files"])


def test_from_python(store: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "cli", "--format", "alpaca", *MIXED, *REFUSAL)
    with Store(str(store)) as opened:
        asked = {"mix": 0.5, "mix_where": "label = '0'", "validation": 0.25, "target_text": REFUSAL[1]}
        report = opened.export("declined", str(tmp_path / "python"), format="alpaca", **asked)
        with pytest.raises(ConfigError, match="option colour is not known"):
            opened.export("declined", str(tmp_path / "python"), colour="blue")
    assert (report.rows, report.mixed, report.validation) == (12, 6, 4)
    assert snapshot(tmp_path / "python") == snapshot(tmp_path / "cli")


def test_a_store_by_a_relative_path_is_found_from_elsewhere(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(store, tmp_path / "absolute")
    monkeypatch.chdir(store.parent)
    export(Path(store.name), tmp_path / "relative")
    assert snapshot(tmp_path / "relative") == snapshot(tmp_path / "absolute")


def test_files_of_another_export_are_told_of(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(store, out, "--validation", "25%")
    again = ok("export", store, "--selection", "declined", "-o", out)
    assert "validation.parquet" in again.stderr
    header = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert [one["split"] for one in header["configs"][0]["data_files"]] == ["train"]


def test_files_that_no_export_has_made_are_kept(store: Path, tmp_path: Path) -> None:
    """Such as the README of the folder that somebody works in."""
    (tmp_path / "README.md").write_text("# My project")
    (tmp_path / "x.md").write_text("# Notes")
    (tmp_path / "data").mkdir()
    shutil.copy(store / "cliffs" / f"{PROBE}.parquet", tmp_path / "data" / "train.parquet")
    before = snapshot(tmp_path)
    for out, told in (("", "README.md"), ("x.parquet", "x.md"), ("data", "train.parquet"), ("x.md", "is a file")):
        mistaken("export", store, "--selection", "declined", "-o", tmp_path / out, told=told)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("below", ["", "selections", "selections/declined.parquet"])
def test_a_store_is_not_written_to(below: str, store: Path) -> None:
    before = sorted(snapshot(store))
    mistaken("export", store, "--selection", "declined", "-o", store / below, told="is in the store")
    assert sorted(snapshot(store)) == before


def test_a_file_below_the_root_stays_there() -> None:
    assert _places("/x.parquet") == ("/", "x", "x.md")
    assert _places("x.parquet") == (".", "x", "x.md")


def test_selection_of_another_probe_or_other_cliffs_is_told(store: Path, tmp_path: Path) -> None:
    """Lineage names the probe and the cliffs of now: they must be those that chose."""
    path = Path(shutil.copytree(store, tmp_path / "store"))
    ok("cliff", path, "--probe", PROBE, "--plateau", "max")
    told = ok("export", path, "--selection", "declined", "-o", tmp_path / "out").stderr
    assert "other cliffs now than selection 'declined'" in told
    assert "Cliffs were ranked anew" in (tmp_path / "out" / "README.md").read_text()
    ok("probe", "fit", path, "--name", PROBE, "--kind", "mean_difference", "--replace")
    mistaken("export", path, "--selection", "declined", "-o", tmp_path / "other", told="other weights now")
    assert not (tmp_path / "other").exists()


def test_selection_without_a_probe(store: Path, tmp_path: Path) -> None:
    """What was chosen by chance or by rule leads back to its examples, and says that there is no probe."""
    path = Path(shutil.copytree(store, tmp_path / "store"))
    where = ("--where", "e.response IS NOT NULL")
    ok("select", path, "--name", "chance", "--strategy", "random", "--top", "6", *where)
    out = tmp_path / "out"
    assert export(path, out, selection="chance")["rows"] == 6
    for row in rows_of(out / "train.parquet"):
        assert {row[name] for name in ("probe", "probe_digest", "capture", "plateau", "final", "cliff")} == {None}
        assert row["plan"] is not None
    assert "none: the selection was made without one" in (out / "README.md").read_text()


def test_hostile_text_breaks_no_card(built: Built, tmp_path: Path) -> None:
    hostile = "| a `b` <script>alert(1)</script>\n```\n# x \u202e\x07"
    rows = [{**row, "label": row["label"], "source": hostile} for row in corpus_rows()]
    path = tmp_path / "store"
    ok("extract", write_jsonl(tmp_path / "c.jsonl", rows), "--model", built.model, "--store", path, "--layers", "1")
    ok("probe", "fit", path, "--name", PROBE)
    ok("score", path, "--probe", PROBE)
    ok("cliff", path, "--probe", PROBE)
    ok("select", path, "--name", SELECTION, "--top", "8")
    export(path, tmp_path / "out", "--target-text", hostile, selection=SELECTION)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    outside = re.sub(r"```\w+\n.*?\n```\n", "", text, flags=re.DOTALL)
    assert "<script>" not in outside
    assert "```" not in outside
    assert "\u202e" not in text
    assert "\x07" not in text
    (line,) = [line for line in outside.splitlines() if line.startswith("| sources")]
    assert line.count("|") - line.count("\\|") == 3
