"""A user's mistake is one line that names the thing, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ok, run_cli, snapshot, write_jsonl
from conftest import PROBE, SELECTION, Built
from quick import quick_runs

from cliffstore.corpus.template import TOO_LONG

FRESH = "fresh-store"
SITES = ("--sites", "resid_post,final_norm")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@dataclass(frozen=True)
class World:
    """A folder of one test with a copy of the finished store; `fresh` is a store that is not there."""

    folder: Path
    built: Built

    @property
    def store(self) -> Path:
        """A copy of the finished store."""
        copy = self.folder / "store"
        if not copy.exists():
            shutil.copytree(self.built.store, copy)
        return copy

    @property
    def fresh(self) -> Path:
        return self.folder / FRESH

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def rows(self, name: str, *rows: dict[str, object]) -> Path:
        return write_jsonl(self.folder / name, rows)

    def extract(self, *extra: str | Path, corpus: object = None, model: object = None, store: object = None):
        """Return the arguments of an extraction that is right but for what is given."""
        return [
            "extract", corpus or self.built.corpus, "--model", model or self.built.model, "--store",
            store or self.fresh, *extra,
        ]  # fmt: skip

    def other_tokenizer(self) -> Path:
        from transformers import AutoTokenizer

        model = self._model_copy()
        tokenizer = AutoTokenizer.from_pretrained(self.built.model)
        tokenizer.add_tokens(["<another-token>"])
        tokenizer.save_pretrained(model)
        return model

    def other_template(self) -> Path:
        from transformers import AutoTokenizer

        model = self._model_copy()
        tokenizer = AutoTokenizer.from_pretrained(self.built.model)
        tokenizer.chat_template = tokenizer.chat_template.replace("helpful", "thoughtful")
        tokenizer.save_pretrained(model)
        return model

    def _model_copy(self) -> Path:
        return Path(shutil.copytree(self.built.model, self.folder / "other-model"))

    def manifest(self, **changes: object) -> Path:
        text = json.dumps(json.loads((self.store / "manifest.json").read_text()) | changes)
        for path in (self.store / "manifest.json", self.store / "copies" / "manifest.json"):
            path.write_text(text, encoding="utf-8")
        return self.store

    def foreign(self) -> Path:
        folder = self.folder / "someone-elses"
        folder.mkdir()
        (folder / "manifest.json").write_text('{"name": "an app", "icons": []}', encoding="utf-8")
        return folder


Arguments = Sequence[object]
CASES: list[tuple[str, Callable[[World], Arguments], tuple[str, ...]]] = [
    # The corpus.
    ("no such file", lambda w: w.extract(corpus=w.folder / "nowhere.jsonl"), ("nowhere.jsonl",)),
    ("unknown suffix", lambda w: w.extract(corpus=w.file("prompts.docx", "x")), ("prompts.docx", ".jsonl")),
    ("empty corpus", lambda w: w.extract(corpus=w.file("empty.jsonl", "")), ("empty.jsonl", "empty")),
    ("empty csv", lambda w: w.extract(corpus=w.file("bare.csv", "prompt,label\n")), ("bare.csv", "empty")),
    (
        "no prompt column",
        lambda w: w.extract(corpus=w.rows("questions.jsonl", {"question": "why?", "topic": "sky"})),
        ("questions.jsonl", "question", "topic", "--map"),
    ),
    (
        "invalid JSON",
        lambda w: w.extract(corpus=w.file("broken.jsonl", '{"prompt": "fine"}\n{"prompt": \n')),
        ("broken.jsonl:2", "JSON"),
    ),
    (
        "duplicate ids",
        lambda w: w.extract(corpus=w.rows("twins.jsonl", *({"id": "same", "prompt": p} for p in "ab"))),
        ("'same'", "twins.jsonl:1", "twins.jsonl:2"),
    ),
    (
        "a prompt that is no text",
        lambda w: w.extract(corpus=w.rows("numbers.jsonl", {"prompt": "fine"}, {"prompt": 7})),
        ("numbers.jsonl:2", "prompt", "int"),
    ),
    ("every row empty", lambda w: w.extract(corpus=w.rows("blank.jsonl", {"prompt": ""})), ("empty prompt",)),
    ("--map without =", lambda w: w.extract("--map", "promptquestion"), ("--map", "promptquestion")),
    ("--map of an unknown name", lambda w: w.extract("--map", "promt=topic"), ("promt", "prompt")),
    ("--map to no column", lambda w: w.extract("--map", "prompt=question"), ("question", "topic")),
    ("--where of no column", lambda w: w.extract("--where", "colour = 'red'"), ("colour", "topic")),
    ("--where that keeps nothing", lambda w: w.extract("--where", "topic = 'none'"), ("--where", "none")),
    # The model.
    ("no such model folder", lambda w: w.extract(model=w.folder / "no-model"), ("no-model",)),
    ("unknown hub name, offline", lambda w: w.extract(model="nobody/no-such-model"), ("nobody/no-such-model",)),
    ("no such layer", lambda w: w.extract("--layers", "2,99"), ("99", "0-3")),
    ("malformed layers", lambda w: w.extract("--layers", "two"), ("'two'",)),
    ("unknown site", lambda w: w.extract("--sites", "resid_pst"), ("resid_pst", "resid_post")),
    ("unknown dtype", lambda w: w.extract("--dtype", "float8"), ("dtype", "float8")),
    # The store.
    (
        "another tokenizer",
        lambda w: w.extract(*SITES, model=w.other_tokenizer(), store=w.store),
        ("tokenizer", "--store"),
    ),
    ("another template", lambda w: w.extract(*SITES, model=w.other_template(), store=w.store), ("template", "--store")),
    (
        "another corpus on the same store",
        lambda w: w.extract(*SITES, corpus=w.rows("other.jsonl", {"prompt": "hi"}), store=w.store),
        ("another corpus", "requests", "--store"),
    ),
    (
        "extract into a newer format",
        lambda w: w.extract(*SITES, store=w.manifest(format_version=99)),
        ("format version 99", "newer cliffstore"),
    ),
    ("info on a newer format", lambda w: ["info", w.manifest(format_version=99)], ("99", "newer cliffstore")),
    ("extract into a foreign folder", lambda w: w.extract(store=w.foreign()), ("someone-elses", "manifest.json")),
    ("info on a foreign folder", lambda w: ["info", w.foreign()], ("someone-elses", "manifest.json")),
    ("a store at a file", lambda w: w.extract(store=w.file("a-file", "x")), ("a-file",)),
    ("a store of an unknown scheme", lambda w: w.extract(store="nosuch://bucket/x"), ("nosuch",)),
    ("info on no store", lambda w: ["info", w.fresh], (FRESH,)),
    ("sql on no store", lambda w: ["sql", w.fresh, "SELECT 1"], (FRESH,)),
    ("verify on no store", lambda w: ["verify", w.fresh], (FRESH,)),
    ("score on no store", lambda w: ["score", w.fresh, "--probe", PROBE], (FRESH,)),
    ("probe fit on no store", lambda w: ["probe", "fit", w.fresh, "--name", PROBE], (FRESH,)),
    # Probes, scores, cliffs.
    (
        "label with one class",
        lambda w: ["probe", "fit", w.store, "--name", "p", "--where", "label = '1'"],
        ("label", "one class"),
    ),
    (
        "fewer examples than a split needs",
        lambda w: ["probe", "fit", w.store, "--name", "p", "--where", "id IN ('r0-00', 'r0-01', 'r1-00', 'r1-01')"],
        ("5", "2 positive", "2 negative"),
    ),
    ("unknown label", lambda w: ["probe", "fit", w.store, "--name", "p", "--label", "mood"], ("mood",)),
    (
        "unknown positive class",
        lambda w: ["probe", "fit", w.store, "--name", "p", "--positive", "yes"],
        ("--positive", "'yes'", "'1'"),
    ),
    ("many classes", lambda w: ["probe", "fit", w.store, "--name", "p", "--label", "topic"], ("topic", "--positive")),
    ("probe of no such layer", lambda w: ["probe", "fit", w.store, "--name", "p", "--layers", "9"], ("9", "0-3")),
    ("probe of no such site", lambda w: ["probe", "fit", w.store, "--name", "p", "--site", "z"], ("'z'", "resid_post")),
    ("probe of no such model", lambda w: ["probe", "fit", w.store, "--name", "p", "--model", "tuned"], ("'tuned'",)),
    ("a probe name that is none", lambda w: ["probe", "fit", w.store, "--name", "../p"], ("../p",)),
    (
        "another probe of the same name",
        lambda w: ["probe", "fit", w.store, "--name", PROBE, "--c", "0.01"],
        (PROBE, "--replace"),
    ),
    ("probe show of no probe", lambda w: ["probe", "show", w.store, "--name", "nope"], ("'nope'", PROBE)),
    ("score with no such probe", lambda w: ["score", w.store, "--probe", "nope"], ("'nope'", PROBE)),
    ("cliff with no such probe", lambda w: ["cliff", w.store, "--probe", "nope"], ("'nope'", PROBE)),
    ("cliff --top 0", lambda w: ["cliff", w.store, "--probe", PROBE, "--top", "0"], ("top",)),
    # SQL.
    ("malformed SQL", lambda w: ["sql", w.store, "SELEC 1"], ("SELEC",)),
    ("SQL of no such view", lambda w: ["sql", w.store, "SELECT * FROM exmples"], ("exmples",)),
    ("SQL of no such column", lambda w: ["sql", w.store, "SELECT colour FROM examples"], ("colour",)),
    ("SQL of no such layer", lambda w: ["sql", w.store, "SELECT resid_post(0, 77)"], ("77", "0-3")),
    ("SQL of no such probe", lambda w: ["sql", w.store, "SELECT score('nope', 0)"], ("nope", PROBE)),
    ("SQL in no such format", lambda w: ["sql", w.store, "SELECT 1", "--format", "xml"], ("xml", "parquet")),
    (
        "SQL output in no such folder",
        lambda w: ["sql", w.store, "SELECT 1", "-o", w.folder / "no-folder" / "out.csv"],
        ("no-folder",),
    ),
    # Selections and exports.
    *(
        (
            f"--top {top}",
            lambda w, top=top: ["select", w.store, "--name", "s", f"--top={top}"],
            ("--top", top),
        )
        for top in ("many", "0", "-3", "150%", "1.5")
    ),
    ("unknown strategy", lambda w: ["select", w.store, "--name", "s", "--top", "3", "--strategy", "dice"], ("dice",)),
    *(
        (
            f"select {' '.join(options)}",
            lambda w, options=options: ["select", w.store, "--name", "s", "--top", "3", *options],
            named,
        )
        for options, named in (
            (("--strategy", "column:colour"), ("'colour'", "topic")),
            (("--strategy", "column:topic"), ("'topic'", "no number")),
            (("--strategy", "sql:colour + 1"), ("colour",)),
            (("--strategy", "sql:1) FROM examples --"), ("Error",)),
            (("--strategy", "random", "--ascending"), ("--ascending",)),
            (("--strategy", "rules", "--rules", "nowhere.txt"), ("--rules", "nowhere.txt")),
            (("--strategy", "rules", "--where", "response IS NULL"), ("without response",)),
            (("--rules", "nowhere.txt"), ("nowhere.txt",)),
            (("--min-plateau", "high"), ("--min-plateau",)),
            (("--min-plateau", "1e9"), ("below min plateau",)),
            (("--quota", "colour=5"), ("'colour'", "topic")),
            (("--quota", "label=many"), ("--quota", "COLUMN:VALUE=500")),
            (("--quota", "label:yes=5"), ("'yes'", "0, 1")),
            (("--quota", "label=0"), ("over quota",)),
            (("--dedupe", "words"), ("--dedupe", "prompt:0.8")),
            (("--dedupe", "prompt", "--dedupe", "prompt:0.5"), ("twice",)),
            (("--seed", "-1"), ("--seed",)),
        )
    ),
    (
        "compare with no such selection",
        lambda w: ["selections", "compare", w.store, SELECTION, "nope"],
        ("'nope'", SELECTION),
    ),
    (
        "select with no such probe",
        lambda w: ["select", w.store, "--name", "s", "--top", "3", "--probe", "nope"],
        ("'nope'",),
    ),
    (
        "select --where of no column",
        lambda w: ["select", w.store, "--name", "s", "--top", "3", "--where", "colour = 1"],
        ("colour",),
    ),
    (
        "another selection of the same name",
        lambda w: ["select", w.store, "--name", SELECTION, "--top", "3"],
        (SELECTION, "--replace"),
    ),
    (
        "export of no such selection",
        lambda w: ["export", w.store, "--selection", "nope", "-o", w.folder / "out"],
        ("'nope'", SELECTION),
    ),
    (
        "export of no such column",
        lambda w: ["export", w.store, "--selection", SELECTION, "--target-column", "answer", "-o", w.folder / "out"],
        ("'answer'", "response"),
    ),
    (
        "export in no such format",
        lambda w: ["export", w.store, "--selection", SELECTION, "--format", "pairs", "-o", w.folder / "out"],
        ("'pairs'", "messages"),
    ),
    # Options.
    ("malformed YAML", lambda w: w.extract("--config", w.file("bad.yaml", "layers: [1, 2")), ("bad.yaml",)),
    ("YAML that is a list", lambda w: w.extract("--config", w.file("list.yaml", "- a\n- b\n")), ("list.yaml",)),
    ("unknown option in YAML", lambda w: w.extract("--config", w.file("c.yaml", "modle: x\n")), ("modle",)),
    ("wrong value in YAML", lambda w: w.extract("--config", w.file("c.yaml", "limit: many\n")), ("limit", "many")),
    ("no such YAML", lambda w: w.extract("--config", w.folder / "none.yaml"), ("none.yaml",)),
    ("unknown option", lambda w: w.extract("--modle", "x"), ("--modle",)),
    ("unknown command", lambda w: ["extrac", w.built.corpus], ("extrac",)),
    ("a number that is none", lambda w: w.extract("--limit", "many"), ("--limit", "integer")),
    ("no --model", lambda w: ["extract", w.built.corpus, "--store", w.fresh], ("model",)),
    ("no --store", lambda w: ["extract", w.built.corpus, "--model", w.built.model], ("store",)),
    ("no corpus", lambda w: ["extract", "--model", w.built.model, "--store", w.fresh], ("corpus",)),
    ("unknown executor", lambda w: w.extract("--executor", "slurm"), ("slurm", "ray")),
    ("half of the markers", lambda w: w.extract("--think-open", "<t>"), ("--think-open", "--think-close")),
    ("a date that is none", lambda w: w.extract("--template-date", "2024-02-31"), ("date", "2024-02-31")),
]


@pytest.mark.parametrize(("make", "named"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_mistake(
    make: Callable[[World], Arguments],
    named: tuple[str, ...],
    built: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = make(World(tmp_path, built))
    before = snapshot(tmp_path)

    result = run_cli(*arguments)

    assert result.code == 2, result.stderr
    lines = result.stderr.strip("\n").split("\n")
    assert lines[-1].startswith("error: "), result.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in result.stderr
    for name in named:
        assert name in lines[-1]
    assert len(lines[-1]) < 1000
    assert not result.stdout
    assert snapshot(tmp_path) == before


def test_newer_format_is_refused_by_every_reader(built: Built, tmp_path: Path) -> None:
    store = World(tmp_path, built).manifest(format_version=99)
    for command in (
        ["verify", store],
        ["sql", store, "SELECT 1"],
        ["score", store, "--probe", PROBE],
        ["export", store, "--selection", SELECTION, "-o", tmp_path / "out"],
    ):
        result = run_cli(*command)
        assert (result.code, "format version 99" in result.stderr) == (2, True)


def test_bad_rows_are_skipped_with_reasons(built: Built, tmp_path: Path) -> None:
    """Single bad rows do not stop a run; each ends in `skipped`, with reason and place."""
    corpus = write_jsonl(
        tmp_path / "mixed.jsonl",
        [
            {"id": "good", "prompt": "Say hello."},
            {"id": "empty", "prompt": ""},
            {"id": "blank", "prompt": " \n"},
            {"id": "null", "prompt": None},
            {"id": "long", "prompt": "word " * 100},
            {"id": "roles", "messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        ],
    )
    store = tmp_path / "store"
    report = ok("extract", corpus, "--model", built.model, "--store", store, "--max-tokens", "64", "--json").json
    assert (report["examples"], report["skipped"]) == (1, 5)
    counts = ok("sql", store, "SELECT reason, count(*) AS n FROM skipped GROUP BY 1 ORDER BY 1", "--json").json
    assert counts == [
        {"reason": "bad row", "n": 1},
        {"reason": "empty prompt", "n": 3},
        {"reason": TOO_LONG, "n": 1},
    ]
    rows = {row["id"]: row for row in ok("sql", store, "SELECT * FROM skipped", "--json").json}
    assert rows["long"]["location"] == "mixed.jsonl:5"
    assert "> 64" in rows["long"]["detail"]
    assert rows["roles"]["location"] == "mixed.jsonl:6"
    assert all(row["source"] == "mixed" for row in rows.values())
