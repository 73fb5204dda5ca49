"""The prompt of `cliffstore sql`, on a real pseudo-terminal."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest
from terminal import END, INTERRUPT, Terminal
from vector_store import VectorStore

from cliffstore.cli.shell import Shell
from cliffstore.errors import QueryError
from cliffstore.run.store import Store
from cliffstore.store.objects import ObjectStore
from cliffstore.store.session import is_complete

PROMPT, MORE = "cliffstore> ", "...> "
LONG = "SELECT count(*) FROM range(1000000000) a(i), range(1000) b(j) WHERE i * j % 7 = 3;\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt") / "store"
    VectorStore(n_units=2, unit_rows=256, tokens=2).make(ObjectStore(str(folder)))
    return folder


def opened(store: Path, history: Path, *options: str) -> Terminal:
    environment = {**os.environ, "CLIFFSTORE_HISTORY": str(history), "PYTHONPATH": str(Path(__file__).parents[2])}
    return Terminal([sys.executable, "-m", "cliffstore.cli.main", "sql", str(store), *options], environment)


def test_a_session(store: Path, tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    script = tmp_path / "script.sql"
    script.write_text("SELECT 'from a file' AS x;\nSELECT count(*) AS n FROM examples;", encoding="utf-8")
    with opened(store, history) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("SELECT count(*) AS n\n")
        terminal.wait_for(MORE)
        terminal.type("FROM tokens WHERE token <> ';';\n")
        shown = terminal.wait_for(PROMPT)
        assert "512" in shown

        terminal.type("SELEC 1;\n")
        shown = terminal.wait_for(PROMPT)
        assert "error: Parser Error" in shown
        assert "Traceback" not in shown
        terminal.type("SELECT resid_post(row, 77) FROM tokens;\n")
        assert "has no layer 77" in terminal.wait_for(PROMPT)

        terminal.type("SELECT * FROM tokens;\n")
        assert "(412 more rows" in terminal.wait_for(PROMPT)
        terminal.type(".tables\n")
        assert "probe_metrics" in terminal.wait_for(PROMPT)
        terminal.type(".schema tokens\n")
        assert "to_decision" in terminal.wait_for(PROMPT)
        terminal.type(".schema resid_post\n")
        assert "row_number, layer, model" in terminal.wait_for(PROMPT)
        terminal.type(".format json\nSELECT 5 AS five;\n")
        assert '[{"five": 5}]' in terminal.wait_for(PROMPT) + terminal.wait_for(PROMPT)
        terminal.type(".format table\n.timing on\n")
        terminal.wait_for(PROMPT)
        terminal.wait_for(PROMPT)
        terminal.type(f".read {script}\n")
        shown = terminal.wait_for(PROMPT)
        assert "from a file" in shown
        assert "256" in shown
        assert " s)" in shown
        terminal.type(".explain on\nSELECT row FROM tokens WHERE to_decision = 0;\n")
        terminal.wait_for(PROMPT)
        assert "to_decision" in terminal.wait_for(PROMPT).partition(";")[2]
        terminal.type(".nonsense\n")
        assert "error: .nonsense is not known" in terminal.wait_for(PROMPT)
        terminal.type(".quit\n")
        code, _ = terminal.wait()
    assert code == 0
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    lines = history.read_text(encoding="utf-8")
    assert "FROM tokens WHERE token <> ';';" in lines

    with opened(store, history) as terminal:  # the line that was typed last is there, and Ctrl-D leaves
        terminal.wait_for(PROMPT)
        terminal.type("\x10")
        terminal.wait_for(".quit")
        terminal.type("\x15")
        terminal.type(END)
        assert terminal.wait()[0] == 0


def test_ctrl_c_stops_a_statement_and_what_is_typed(store: Path, tmp_path: Path) -> None:
    with opened(store, tmp_path / "history") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type(LONG)
        terminal.wait_for("= 3;")
        terminal.type(INTERRUPT)
        assert "interrupted" in terminal.wait_for(PROMPT)
        terminal.type("SELECT this is not ended\n")
        terminal.wait_for(MORE)
        # Python's readline overlooks a signal that comes just before it waits for a key.
        terminal.type(INTERRUPT)
        terminal.wait_for(PROMPT, nudge=INTERRUPT)
        terminal.type("SELECT 40 + 2 AS still_here;\n")
        assert "42" in terminal.wait_for(PROMPT)
        terminal.type(LONG)
        terminal.wait_for("= 3;")
        os.kill(terminal.process_id, signal.SIGTERM)
        code, shown = terminal.wait()
    assert code == 130
    assert "Traceback" not in shown


def test_time_limit_at_the_prompt(store: Path, tmp_path: Path) -> None:
    with opened(store, tmp_path / "history", "--timeout", "0.5") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type(LONG)
        assert "error: the statement was stopped after 0.5 s (--timeout)" in terminal.wait_for(PROMPT)
        terminal.type("SELECT 40 + 2;\n")
        assert "42" in terminal.wait_for(PROMPT)


def test_tabulator_completes(store: Path, tmp_path: Path) -> None:
    with opened(store, tmp_path / "history") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("SELECT max(to_dec\t) FROM exa\t WHERE resid_p\tt IS NULL;\n")
        shown = terminal.wait_for(PROMPT)
        assert "to_decision" in shown
        assert "examples" in shown
        assert "resid_post" in shown


def test_words_and_refusals(store: Path) -> None:
    with Store(str(store)) as found:
        found.attach("base", found)
        words = Shell(found, "table", 10)._words()
        assert {"SELECT", "base.tokens", "base.resid_post", "to_decision", "score", ".quit"} <= set(words)
        with pytest.raises(QueryError, match="Parquet goes to a file"):
            Shell(found, "parquet", 10)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1; -- done", True),
        ("SELECT 'é';", True),
        ("SELECT 1", False),
        ("SELECT 'a;", False),
        ("SELECT $$ a;", False),
        ("SELECT 1 -- ;", False),
        ("SELECT /* ;", False),
        ("SELECT 1; SELECT 2", False),
        ("-- nothing;", False),
        ("", False),
    ],
)
def test_where_a_statement_ends(text: str, complete: bool) -> None:
    assert is_complete(text) == complete
