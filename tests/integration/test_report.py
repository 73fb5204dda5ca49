"""The report of a store: what is on the page is what is in the store, and nothing else is needed to read it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import ok, run_cli
from conftest import PROBE, SELECTION, Built
from quick import quick_runs
from report_page import ReportPage
from score_store import PlantedUnit, ScoreStore
from wordy_store import HOSTILE, WordyStore

from cliffstore.run.heads.results import write_heads
from cliffstore.run.store import Store
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

ADDRESS = re.compile(r"(?i)\bhttps?:|//\w|@import|\burl\((?!#)|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(")
FIGURES = ("cliff", "plateau", "final", "n_think", "steepest_position", "n_steep")


@pytest.fixture
def plain_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of the time; where they are not looked at, they are not drawn."""
    monkeypatch.setattr("cliffstore.publish.report.figures.picture", lambda spec, kind: b"<svg></svg>")


@pytest.fixture(scope="module")
def page_path(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    printed = ok("report", built.store, "-o", path).text
    assert printed.startswith(f"{path}: ")
    assert "40 of 40 examples" in printed
    return path


@pytest.fixture(scope="module")
def page(page_path: Path) -> ReportPage:
    return ReportPage.read(page_path)


def scored_store(folder: Path, made: ScoreStore, *, top: str | None = None) -> str:
    """Return a store with cliffs of the probe `planted`, and a selection of the largest."""
    url = str(folder / "store")
    made.make(ObjectStore(url))
    ok("cliff", url, "--probe", "planted")
    if top:
        ok("select", url, "--name", "worst", "--top", top)
    return url


# What is on the page is what is in the store.


def test_counts_are_those_of_the_store(built: Built, page: ReportPage) -> None:
    counted = re.findall(r"([a-z ]+)\s+([\d,]+)\s+(SELECT [^\n]+)", page.texts["store"])
    assert [name.strip() for name, _, _ in counted if name.strip()] == [
        "examples", "tokens", "each stored once", "units of work", "corpus rows that were skipped",
    ]  # fmt: skip
    with Store(str(built.store)) as store:
        for name, value, statement in counted:
            assert store.sql(statement).fetchall()[0][0] == int(value.replace(",", "")), name
        n_bytes = sum(
            receipt.bytes for one in store.reader.captures() for receipt in store.reader.receipts(one.capture)
        )
        assert f"{n_bytes:,}" in page.texts["store"]
        (capture,) = store.reader.captures()
        for said in (capture.capture, "resid_post 0-3", "final_norm 3", store.reader.manifest.created):
            assert said in page.texts["store"]


def test_rows_have_every_figure_to_the_last_bit(built: Built, page: ReportPage) -> None:
    rows = page.table["rows"]
    with Store(str(built.store)) as store:
        expected = store.sql("SELECT * FROM examples ORDER BY example").fetchall()
        names = store.sql("SELECT * FROM examples LIMIT 0").columns
        known = {name: [row[at] for row in expected] for at, name in enumerate(names)}
        assert {name: values for name, values in rows["known"].items() if name != "plan"} == {
            name: values for name, values in known.items() if name != "topic"
        }
        assert rows["further"] == [{"name": "topic", "number": False, "values": known["topic"]}]
        cliffs = store.sql(f"SELECT {', '.join(FIGURES)} FROM cliffs ORDER BY example").fetchall()
        assert list(zip(*(rows["cliffs"][PROBE][name] for name in FIGURES), strict=True)) == cliffs


def test_tokens_and_scores_are_those_of_the_tables(built: Built, page: ReportPage) -> None:
    with Store(str(built.store)) as store:
        for index in (0, 7, 39):
            expected = store.sql(
                "SELECT t.position, t.token_id, t.token, t.segment, s.score FROM tokens t LEFT JOIN scores s "
                f"USING (example, position) WHERE t.example = {index} ORDER BY 1"
            ).fetchall()
            found = page.tokens_of(index, PROBE)
            assert [tuple(one.values())[:4] for one in found] == [row[:4] for row in expected]
            for one, (*_, score) in zip(found, expected, strict=True):
                assert one["score"] == pytest.approx(score, abs=0.000_501)


def test_curves_and_probes_are_those_of_the_store(built: Built, page: ReportPage) -> None:
    with Store(str(built.store)) as store:
        curves = store.curves(PROBE, group_by="label").to_pylist()
        probe = next(one for one in store.sql("SELECT * FROM probe_metrics ORDER BY layer").pl().to_dicts())
    rows = page.tables[f"figure-curves-{PROBE}"][1:]
    assert len(rows) == len(curves)
    for row, expected in zip(rows, curves, strict=True):
        assert row[0] == expected["group"]
        assert [float(cell.replace("\u2212", "-")) for cell in row[1:]] == pytest.approx(
            [expected[name] for name in ("to_decision", "n", "mean", "low", "high")], abs=0.000_501
        )
    cells = page.tables[f"figure-layers-{PROBE}"][1:]
    assert len(cells) == 4
    assert float(cells[0][2]) == pytest.approx(probe["auroc"], abs=0.000_501)
    assert "bag of tokens" in page.texts["probes"]


def test_selection_says_why_each_is_in_it(built: Built, page: ReportPage) -> None:
    (selection,) = page.table["selections"]
    with Store(str(built.store)) as store:
        expected = store.sql(
            "SELECT s.rank, s.example, s.id, s.value, c.cliff, c.plateau, c.final FROM selections s "
            "JOIN cliffs c USING (example, probe) ORDER BY rank"
        ).fetchall()
    rows = selection["rows"]
    names = ("rank", "example", "id", "value", "cliff", "plateau", "final")
    assert list(zip(*(rows[name] for name in names), strict=True)) == expected
    assert selection["name"] == SELECTION
    assert "8 of 20 candidates" in page.texts["selections"]
    left_out = re.sub(r"\s+", " ", page.texts["selections"])
    assert "without value" in left_out
    assert "ranked behind the last that was chosen12" in left_out


@pytest.mark.usefixtures("plain_charts")
def test_quotas_and_near_duplicates_are_told(tmp_path: Path) -> None:
    url = scored_store(tmp_path, WordyStore(8))
    ok(
        "select",
        url,
        "--name",
        "mixed",
        "--top",
        "12",
        "--quota",
        "source=50%",
        "--dedupe",
        "prompt",
        "--min-plateau",
        "2",
    )
    ok("report", url, "-o", tmp_path / "page.html")
    page = ReportPage.read(tmp_path / "page.html")
    with Store(url) as store:
        sources = dict(
            store.sql("SELECT s.rank, e.source FROM selections s JOIN examples e USING (example)").fetchall()
        )
    rows = page.table["selections"][0]["rows"]
    taken: dict[str, int] = {}
    for rank, quotas in zip(rows["rank"], rows["quotas"], strict=True):
        taken[sources[rank]] = taken.get(sources[rank], 0) + 1
        assert quotas == [f"source = {sources[rank]}: {taken[sources[rank]]} of at most 6"]
    text = page.texts["selections"]
    for said in ("source=50%", "prompt", "below min plateau", "over quota", "as many examples of its kind"):
        assert said in text


# What the file needs: nothing.


def test_file_names_no_address_and_runs_one_script_alone(page_path: Path, page: ReportPage) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "action", "background", "data"), (tag, name)
            if name in ("href", "xlink:href"):
                assert str(value).startswith("#"), (tag, value)
            assert not ADDRESS.search(str(value)), (tag, name, value)
    assert not ADDRESS.search(page.style)
    assert not ADDRESS.search(page.scripts["module"])
    assert "innerHTML" not in page.scripts["module"]
    assert set(page.scripts) == {"module", "table-data", "token-data"}
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_five_hundred_examples_fit_into_eight_megabytes(tmp_path: Path) -> None:
    url = scored_store(tmp_path, WordyStore(63, mean_think=100), top="20")
    printed = ok("report", url, "-o", tmp_path / "page.html", "--examples", "500", "--json").json
    assert printed["examples"] == 500
    assert printed["tokens"] > 60_000
    assert printed["bytes"] == (tmp_path / "page.html").stat().st_size < 8_000_000
    again = ok("report", url, "-o", tmp_path / "again.html", "--examples", "500")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert "240 with the largest cliffs, 240 drawn by chance; 4 of 504 are left out" in again.stderr


@pytest.mark.usefixtures("plain_charts")
def test_selected_come_first_then_the_largest_and_a_sample(tmp_path: Path) -> None:
    url = scored_store(tmp_path, WordyStore(8), top="10")
    with Store(url) as store:
        chosen = [row[0] for row in store.sql("SELECT example FROM selections ORDER BY rank").fetchall()]
        largest = [
            row[0] for row in store.sql("SELECT example FROM cliffs ORDER BY cliff DESC NULLS LAST, example").fetchall()
        ]
        summary = store.report(str(tmp_path / "page.html"), examples=20, seed=1)
        store.report(str(tmp_path / "other.html"), examples=20, seed=2)
        few = store.report(str(tmp_path / "few.html"), examples=4, seed=1)
    shown = ReportPage.read(tmp_path / "page.html").table["rows"]["known"]["example"]
    other = ReportPage.read(tmp_path / "other.html").table["rows"]["known"]["example"]
    assert (summary.selected, summary.largest, summary.sampled, summary.left_out) == (10, 5, 5, 44)
    assert shown == sorted(shown)
    assert set(chosen) | set(largest[:15]) <= set(shown)
    assert shown != other
    assert len(shown) == len(other) == 20
    assert set(ReportPage.read(tmp_path / "few.html").table["rows"]["known"]["example"]) == set(chosen[:4])
    assert (few.selected, few.selected_left_out, few.left_out) == (4, 6, 60)
    text = re.sub(r"\s+", " ", ReportPage.read(tmp_path / "few.html").texts["examples"])
    assert "60 are left out, of which 6 are in a selection" in text
    # Curves are over all examples, however few are shown.
    tables_of = [ReportPage.read(tmp_path / name).tables for name in ("few.html", "page.html")]
    assert tables_of[0] == tables_of[1]


# Parts that are missing, and further ones.


@pytest.mark.usefixtures("plain_charts")
@pytest.mark.parametrize(
    ("removed", "section", "commands"),
    [
        ((layout.SELECTIONS,), "selections", ["cliffstore select"]),
        ((layout.SELECTIONS, layout.CLIFFS), "cliffs", ["cliffstore cliff"]),
        ((layout.SELECTIONS, layout.CLIFFS, layout.SCORES), "curves", ["cliffstore score"]),
        ((layout.SELECTIONS, layout.CLIFFS, layout.SCORES, layout.PROBES), "probes", ["cliffstore probe fit"]),
    ],
    ids=["selections", "cliffs", "scores", "probes"],
)
def test_missing_parts_name_the_command(
    built: Built, tmp_path: Path, removed: tuple[str, ...], section: str, commands: list[str]
) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    for folder in removed:
        shutil.rmtree(store / folder)
        shutil.rmtree(store / layout.COPIES / folder, ignore_errors=True)
    printed = ok("report", store, "-o", tmp_path / "page.html", "--json").json
    page = ReportPage.read(tmp_path / "page.html")
    assert section in printed["missing"]
    for command in commands:
        assert f"{command} {store}" in page.texts[section]
    assert len(page.table["rows"]["known"]["id"]) == 40
    assert {"heads", "clipping"} <= set(printed["missing"])


@pytest.mark.usefixtures("plain_charts")
def test_store_without_thinking_labels_or_vectors(tmp_path: Path) -> None:
    url = scored_store(tmp_path, ScoreStore(2, without_thinking=0.5))
    made = ScoreStore(2, without_thinking=1.0)
    made.make(ObjectStore(str(tmp_path / "silent")))
    ok("report", tmp_path / "silent", "-o", tmp_path / "page.html")
    page = ReportPage.read(tmp_path / "page.html")
    assert "none of 16 examples has scores of its thinking" in page.texts["curves"]
    ok("report", url, "-o", tmp_path / "page.html", "--group-by", "NULL")
    assert "no value" in ReportPage.read(tmp_path / "page.html").tables["figure-cliffs-planted"][1][0]


class LoudStore(ScoreStore):
    """A `ScoreStore` in which every seventh score is no number, and every fifth is infinite."""

    def planted(self, unit: int) -> PlantedUnit:
        made = super().planted(unit)
        score_N = made.score_N.copy()
        score_N[::7], score_N[::5] = np.nan, -np.inf
        return replace(made, score_N=score_N)


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    url = scored_store(tmp_path, LoudStore(4, mean_think=3))
    ok("report", url, "-o", tmp_path / "page.html")
    page = ReportPage.read(tmp_path / "page.html")
    with Store(url) as store:
        counts = "SELECT count(*) FILTER (isfinite(cliff)), count(*) FILTER (NOT isfinite(cliff)) FROM cliffs"
        n, n_others = store.sql(counts).fetchall()[0]
    assert n
    assert n_others
    assert f"{n} examples have a cliff, {32 - n} have none" in re.sub(r"\s+", " ", page.texts["cliffs"])
    assert page.tables["figure-cliffs-planted"][-1][1:3] == ["32", str(n)]
    assert sum(value is not None for value in page.table["rows"]["cliffs"]["planted"]["cliff"]) == n
    assert not re.search(r"\b(nan|inf)\b", page.texts[""])
    # The largest cliffs come first, and those that are no numbers last.
    listed = ok("cliff", url, "--probe", "planted", "--top", "32", "--json").json["top"]
    assert [one["cliff"] is not None for one in listed] == [True] * n + [False] * n_others


def write_figures(url: str, probe: str, name: str, rows: list[dict[str, object]]) -> None:
    facts: dict[str, object] = {"name": name, "kind": rows[0]["kind"], "probe": probe, "probe_digest": "0"}
    facts |= {"capture": "capture-0", "site": "resid_post", "layer": 3, "source": "z", "where": None, "positions": "0"}
    facts |= {"resamples": 0, "level": 0.95, "seed": 0, "examples": 1, "score": 0.0, "cliffstore_version": "0"}
    write_heads(ObjectStore(url), rows, facts)


def test_heads_and_clipped_thinking(built: Built, tmp_path: Path) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    rows = [
        {"probe": PROBE, "kind": "direct", "layer": layer, "head": head, "mean": (layer - 1.5) * (head + 1) / 8}
        for layer in range(4)
        for head in range(4)
    ]
    write_figures(str(store), PROBE, "traced", rows)
    ok("clip", "make", store, "-o", tmp_path / "clipped.jsonl", "--keep", "100,50")
    sites = ("--sites", "resid_post,final_norm")
    with quick_runs():
        ok("extract", tmp_path / "clipped.jsonl", "--append", "--model", built.model, "--store", store, *sites)
    ok("score", store, "--probe", PROBE)
    ok("report", store, "-o", tmp_path / "page.html")
    page = ReportPage.read(tmp_path / "page.html")
    kept = page.tables[f"figure-clipping-{PROBE}"]
    with Store(str(store)) as opened:
        figures = opened.clip_report(PROBE)
    assert [float(row[2].replace("\u2212", "-")) for row in kept[1:]] == pytest.approx(
        [one.logit for one in figures], abs=0.000_501
    )
    assert len(page.tables["figure-heads-traced"]) == 17
    lowest = re.sub(r"\s+", " ", page.texts["heads"].partition("Lowest")[2])
    assert lowest.strip().startswith("by mean layerheadmean 03\u22120.750")
    further = {one["name"]: one for one in page.table["rows"]["further"]}
    assert further["kept"]["number"] is True
    assert further["kept"]["values"].count(None) == 40


def test_heads_of_groups_distances_and_sets(tmp_path: Path) -> None:
    url = scored_store(tmp_path, ScoreStore(2))
    one_by_one = [
        {"kind": "direct", "group": group, "to_decision": distance, "layer": layer, "head": head, "mean": mean}
        for group, sign in (("benign", 1), ("harmful", -1), (None, 0))
        for distance, larger in ((-1, 100), (0, 1))
        for layer, head, mean in ((0, 0, sign * larger * 0.25), (2, 1, sign * larger * 0.5))
    ]
    off = {"kind": "knockout", "to_decision": 0, "ablation": "mean", "positions": "template", "control_mean": -0.125}
    together = [
        {**off, "layer": 1, "head": 3, "heads": "1:3", "mean": float("nan")},
        {**off, "heads": "1:3,2:1", "mean": 3.5, "n_controls": 4},
    ]
    sets_alone = [{**off, "heads": "0:0,0:1", "mean": 1.5}]
    for name, rows in (("by-kind", one_by_one), ("short", together), ("sets", sets_alone)):
        write_figures(url, "planted", name, [{"probe": "planted", **row} for row in rows])
    ok("report", url, "-o", tmp_path / "page.html")
    page = ReportPage.read(tmp_path / "page.html")
    for number, mean in enumerate(("0.500", "\u22120.500", "0.000")):
        found = page.tables[f"figure-heads-by-kind:{number}"]
        assert (len(found), found[2]) == (3, ["2", "1", mean])
    text = re.sub(r"\s+", " ", page.texts["heads"])
    assert "by-kind · harmful · probe planted" in text
    assert "by-kind · no value · probe planted" in text
    assert "at the decision position, mean ablation of template positions" in text
    assert "1:3,2:13.500\u22120.1254" in text
    assert "0:0,0:11.500" in text
    assert "none of 1 heads has a value of mean" in text
    assert "figure-heads-sets" not in page.tables


@pytest.mark.usefixtures("plain_charts")
def test_several_probes_and_what_is_not_on_the_page(built: Built, tmp_path: Path) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    ok("probe", "random", store, "--like", PROBE, "--n", "2")
    ok("score", store, "--probe", "all")
    control = f"{PROBE}-random-0-1"
    result = ok("report", store, "-o", tmp_path / "page.html", "--probe", control, "--probe", PROBE)
    page = ReportPage.read(tmp_path / "page.html")
    assert [one["name"] for one in page.table["probes"]] == [control, PROBE]
    assert f"{PROBE}-random-0-0" in result.stderr
    assert f"{PROBE}-random-0-0" in page.texts["examples"]
    assert page.texts["probes"].count("a control") == 2
    with Store(str(store)) as opened:
        assert page.table["probes"][1]["digits"] >= 3
        for name in (control, PROBE):
            scores = opened.sql(f"SELECT score FROM scores WHERE probe = '{name}' AND example = 3 ORDER BY position")
            found = [one["score"] for one in page.tokens_of(3, name)]
            assert found == pytest.approx([row[0] for row in scores.fetchall()], abs=0.000_501)


# Mistakes, and files that stay whole.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--positions", "all"), "positions 'all': write a range"),
        (("--group-by", "nothing"), "nothing"),
        (("--probe", "nobody"), "nobody"),
        (("--examples", "0"), "examples"),
        (("-o", "FOLDER"), "is a folder"),
        (("-o", "FOLDER/none/page.html"), "there is no folder"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    built: Built, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    own = [option.replace("FOLDER", str(tmp_path)) for option in options]
    output = [] if "-o" in own else ["-o", str(tmp_path / "page.html")]
    result = run_cli("report", built.store, *output, *own)
    assert result.code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("plain_charts")
def test_failure_leaves_the_page_that_was_there(built: Built, tmp_path: Path) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "store"))
    ok("report", store, "-o", tmp_path / "page.html")
    before = (tmp_path / "page.html").read_bytes()
    table = sorted((store / layout.SCORES / PROBE).glob("*.parquet"))[0]
    table.write_bytes(table.read_bytes()[:200])
    result = run_cli("report", store, "-o", tmp_path / "page.html")
    assert result.code == 1
    assert "cliffstore verify" in result.stderr
    assert (tmp_path / "page.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "store"]


@pytest.mark.usefixtures("plain_charts")
def test_too_many_groups_are_drawn_as_one(built: Built, tmp_path: Path) -> None:
    ok("report", built.store, "-o", tmp_path / "page.html", "--group-by", "topic")
    page = ReportPage.read(tmp_path / "page.html")
    assert "--group-by topic has more than 12 values" in page.texts[""]
    assert [row[0] for row in page.tables[f"figure-cliffs-{PROBE}"][1:]] == ["no value", "all"]


# Hostile text.


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    url = scored_store(folder, WordyStore(3, hostile=True), top="5")
    ok("select", url, "--name", "conditioned", "--top", "3", "--where", "e.source <> '</script><b>' -- \u202e<i>")
    ok("report", url, "-o", folder / "page.html", "--group-by", "source")
    return folder


def test_hostile_text_is_data_and_nothing_else(hostile: Path, page: ReportPage) -> None:
    content = (hostile / "page.html").read_text(encoding="utf-8")
    found = ReportPage(content)
    tags = {tag for tag, _ in found.elements}
    assert tags <= {tag for tag, _ in page.elements}
    assert sum(tag == "script" for tag, _ in found.elements) == 3
    assert found.scripts["module"] == page.scripts["module"]
    # Nothing in the file drives a terminal, turns a line round, or ends one where an editor would not.
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe]", content)
    assert "<script>alert" not in content
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in content
    with Store(str(hostile / "store")) as store:
        for name in ("id", "prompt", "thinking", "response", "label", "source"):
            expected = store.sql(f"SELECT {name} FROM examples ORDER BY example").fetchall()
            assert found.table["rows"]["known"][name] == [row[0] for row in expected]
    assert set(HOSTILE) <= set(found.tokens["texts"])


def test_hostile_text_is_shown_where_it_is_drawn_by_the_page(hostile: Path) -> None:
    found = ReportPage.read(hostile / "page.html")
    assert "\\u202eright to left\\u202c" in found.texts["store"]
    assert "bell \\x07 escape \\x1b[31m" in found.texts["store"]
    assert "<script>alert(1)</script>" in found.texts["store"]
    assert "'</script><b>' -- \\u202e<i>" in found.texts["selections"]
    assert "{{ 7 * 7 }}" in found.texts["store"]
    assert json.dumps(HOSTILE[6])[1:-1] in found.scripts["token-data"]
