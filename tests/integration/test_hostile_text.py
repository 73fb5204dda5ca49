"""Hostile text in prompts, ids, labels and tokens is shown as text and breaks nothing: terminal, CSV, page, picture."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
from browser import chromium, visit
from commands import ok, run_cli, write_jsonl
from hostile import HOSTILE, OBEYED
from made_up import make_probe
from quick import quick_runs
from terminal import Terminal

from cliffstore.run.store import Store
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import write_probe
from cliffstore.store.reader import StoreReader
from cliffstore.text import printable

PROBE = "refusal"
EXTRA = "col<b>\x1b[31m"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each text as id, prompt, thinking, response, label and source of one row, and in a column with a hostile name."""
    rows = [
        {
            "id": f"{name} {text}"[:300], "prompt": text, "thinking": f"thinking {text}"[:600], "response": text[:300],
            "label": text[:80], "source": text[:80], EXTRA: text[:80],
        }
        for name, text in HOSTILE.items()
    ]  # fmt: skip
    return write_jsonl(tmp_path_factory.mktemp("hostile") / "corpus.jsonl", rows)


@pytest.fixture(scope="module")
def url(corpus: Path, tiny_model: str) -> str:
    path = corpus.parent / "store"
    with quick_runs():
        ok("extract", corpus, "--model", tiny_model, "--store", path, "--layers", "0", "--max-tokens", "20000")
    (capture,) = StoreReader(str(path)).captures()
    write_probe(ObjectStore(str(path)), *make_probe(capture, PROBE), replace=False)
    ok("score", path, "--probe", PROBE)
    ok("cliff", path, "--probe", PROBE)
    ok("select", path, "--name", "all", "--probe", PROBE, "--top", "100%")
    return str(path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as opened:
        yield opened


def test_the_store_has_each_text_as_it_was_given(store: Store) -> None:
    held = dict(store.sql("SELECT id, prompt FROM examples").fetchall())
    assert {name: held[f"{name} {text}"[:300]] for name, text in HOSTILE.items()} == HOSTILE
    tokens = store.sql("SELECT count(*) FROM tokens").fetchall()[0][0]
    assert tokens > 4_500


def test_half_a_surrogate_pair_is_a_bad_row_and_told(tmp_path: Path, tiny_model: str) -> None:
    """JSON can write one, UTF-8 cannot: a row that has it must not vanish, nor end the run with a traceback."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "good", "prompt": "a"}\n{"id": "half", "prompt": "a \\ud800 b"}\n', encoding="utf-8")
    with quick_runs():
        result = run_cli("extract", corpus, "--model", tiny_model, "--store", tmp_path / "store", "--layers", "0")
    assert "Traceback" not in result.stderr
    assert not OBEYED.search(result.text + result.stderr)
    assert result.code == 0, result.stderr
    with Store(str(tmp_path / "store")) as store:
        assert store.sql("SELECT id FROM examples").fetchall() == [("good",)]
        assert store.sql("SELECT location, reason FROM skipped").fetchall() == [("corpus.jsonl:2", "bad row")]


# --- the terminal


COMMANDS = [
    ["cliff", "{url}", "--probe", PROBE, "--top", "50"],
    ["curve", "{url}", "--probe", PROBE, "--group-by", "label", "--positions", "-4..0", "--resamples", "10"],
    ["curve", "{url}", "--probe", PROBE, "--group-by", "label", "--positions", "-4..0", "--resamples", "0", "--json"],
    ["sql", "{url}", "SELECT * FROM examples"],
    ["sql", "{url}", "SELECT * FROM examples", "--format", "json"],
    ["sql", "{url}", "SELECT * FROM examples", "--format", "jsonl"],
    ["sql", "{url}", "SELECT DISTINCT token FROM tokens", "--max-rows", "0"],
    ["sql", "{url}", 'SELECT id AS "\x1b[31m[bold]name" FROM examples'],
    ["sql", "{url}", 'SELECT nothing AS "\x1b[31m" FROM examples'],
    ["select", "{url}", "--name", "again", "--probe", PROBE, "--top", "3", "--replace", "--quota", "label=1"],
    ["selections", "compare", "{url}", "all", "again"],
    ["select", "{url}", "--name", "\x1b[31m", "--probe", PROBE, "--top", "3"],
    ["info", "{url}"],
    ["verify", "{url}"],
    ["probe", "show", "{url}", "--name", PROBE],
    ["probe", "show", "{url}", "--name", "\x1b[2J"],
    ["plot", "tokens", "{url}", "--probe", PROBE, "--example", "\x1b[31m\u202e", "-o", "x.png"],
    ["cliff", "{url}\x1b[31m", "--probe", PROBE],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: printable(" ".join(command), 60))
def test_nothing_that_a_terminal_obeys_is_printed(url: str, command: list[str]) -> None:
    result = run_cli(*(part.replace("{url}", url) for part in command))
    assert result.code in (0, 2)
    shown = result.text + result.stderr
    assert shown
    assert not OBEYED.search(shown), repr(OBEYED.search(shown))
    assert "Traceback" not in shown


def test_a_table_says_what_is_there(url: str) -> None:
    shown = ok("sql", url, "SELECT prompt AS \"[b]\x1b\" FROM examples WHERE id LIKE 'terminal%'").text.splitlines()
    assert [line.strip() for line in shown] == ["[b]\\x1b", printable(HOSTILE["terminal"])[:59] + "…"]
    markup = "SELECT substr(prompt, strpos(prompt, '[')) AS part FROM examples WHERE id LIKE 'template%'"
    assert ok("sql", url, markup).text.splitlines()[1].strip() == "[bold red]markup[/] :smile:"


def test_json_has_the_texts_themselves(url: str) -> None:
    rows = ok("sql", url, "SELECT id, prompt FROM examples", "--format", "json").json
    assert {row["id"].partition(" ")[0]: row["prompt"] for row in rows} == HOSTILE


def test_a_real_terminal_gets_only_what_the_command_colours_itself(url: str) -> None:
    """On a terminal that understands colours nothing of the corpus is an escape sequence."""
    import os
    import sys

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1"}
    with Terminal([sys.executable, "-m", "cliffstore.cli.main", "cliff", url, "--probe", PROBE], environment) as shown:
        code, text = shown.wait()
    assert code == 0
    assert "terminal" in text
    assert not OBEYED.search(text.replace("\r\n", "\n")), repr(OBEYED.search(text.replace("\r\n", "\n")))


# --- files


def test_csv_comes_back_as_it_was(url: str, tmp_path: Path) -> None:
    """CSV is exact: formulas are not quoted away, since what reads it next is mostly a program."""
    path = tmp_path / "all.csv"
    query = f"SELECT id, prompt, label, \"{EXTRA}\" AS extra, NULL AS none, '' AS empty FROM examples"
    ok("sql", url, query, "-o", path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"].partition(" ")[0]: row["prompt"] for row in rows} == HOSTILE
    assert {row["id"].partition(" ")[0]: row["extra"] for row in rows} == {n: text[:80] for n, text in HOSTILE.items()}
    assert all(row["label"] == row["extra"].strip() for row in rows)  # labels are taken without space around them
    same = duckdb.connect().execute(
        "SELECT id, prompt, none, empty FROM read_csv(?, header = true, all_varchar = true, quote = '\"', "
        "escape = '\"', delim = ',', strict_mode = true, max_line_size = 10000000, new_line = '\\n', "
        "allow_quoted_nulls = false)",
        [str(path)],
    )
    held = same.fetchall()
    assert {row[0].partition(" ")[0]: row[1] for row in held} == HOSTILE
    assert {(row[2], row[3]) for row in held} == {(None, "")}


def test_a_table_in_a_file_has_a_line_a_row(url: str, tmp_path: Path) -> None:
    path = tmp_path / "all.txt"
    ok("sql", url, "SELECT id, prompt FROM examples", "-o", path)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(HOSTILE) + 2
    assert {len(line.split("\t")) for line in lines[:-1]} == {2}
    assert not OBEYED.search(path.read_text().replace("\t", ""))


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_pictures_are_drawn(store: Store, url: str, tmp_path: Path, kind: str) -> None:
    names = ["terminal", "script", "direction"] if kind == "svg" else ["wide"]
    ids = "SELECT example FROM examples WHERE list_contains(?, split_part(id, ' ', 1))"
    for (number,) in store.sql(ids, [names]).fetchall():
        shown = store.plot("tokens", probe=PROBE, example=f"#{number}", positions="-60..20").picture(kind, scale=1)
        if kind == "svg":
            assert not OBEYED.search(shown.decode())
            assert "<script" not in shown.decode()
    if kind == "png":
        return
    grouped = store.plot("cliffs", str(tmp_path / f"x.{kind}"), probe=PROBE, group_by="label", selection="all")
    assert grouped.size
    assert store.plot("curve", str(tmp_path / f"x.{kind}"), probe=PROBE, group_by="label", resamples=5).size


# --- the page, as a parser reads it


class Page(HTMLParser):
    """What elements a page has, what is in its scripts, and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
            self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["script"]:
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data


@pytest.fixture(scope="module")
def page(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    ok("report", url, "--group-by", "label", "-o", path)
    return path.read_text(encoding="utf-8")


def test_a_parser_finds_the_pages_own_elements_only(page: str) -> None:
    parser = Page()
    parser.feed(page)
    scripts = [attributes for tag, attributes in parser.elements if tag == "script"]
    assert len(scripts) == 3
    assert not [tag for tag, _ in parser.elements if tag in ("img", "iframe", "object", "embed", "link", "b", "base")]
    assert not [name for _, attributes in parser.elements for name in attributes if name.startswith("on")]
    assert not [
        value for _, attributes in parser.elements for value in (attributes.get("href"),) if value and value[0] != "#"
    ]
    known = json.loads(parser.scripts[0])["rows"]["known"]
    assert dict(zip((one.partition(" ")[0] for one in known["id"]), known["prompt"], strict=True)) == HOSTILE
    assert not OBEYED.search(parser.text.replace("\t", ""))


def test_the_pages_source_has_nothing_that_turns_or_hides_it(page: str) -> None:
    assert not OBEYED.search(page.replace("\t", ""))
    assert page.count("<script") == page.count("</script>") == 3


def shown_as(text: str) -> str:
    """How the page shows a text of several lines: line feeds and tabs as they are, the rest printable."""
    return "".join(char if char in "\n\t" else printable(char) for char in text)


def test_a_browser_shows_each_text_and_runs_none(page: str, url: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with chromium() as browser, visit(browser, path, width=390) as opened:
        window = opened.page
        for name, text in HOSTILE.items():
            window.get_by_role("searchbox").fill(name)
            window.locator("#examples-table td[data-column='id']", has_text=re.compile(f"^{name} ")).click()
            prose = window.locator("dialog[open] .prose").nth(0)
            prose.wait_for()
            shown = window.evaluate(
                "[...document.querySelectorAll('dialog[open] .prose')].map((block) => block.textContent)"
            )
            assert shown_as(text).strip() in [one.strip() for one in shown], name
            assert opened.overflow() <= 0, name
            box = window.locator("dialog[open]").bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 390
            inside = (
                "(() => { const d = document.querySelector('dialog[open]'); return d.scrollWidth - d.clientWidth })()"
            )
            assert window.evaluate(inside) <= 0, name
            window.keyboard.press("Escape")
        assert window.evaluate("window.hacked") is None
        assert window.evaluate("document.title").startswith("cliffstore report")
        opened.assert_quiet(path)
