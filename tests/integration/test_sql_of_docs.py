"""Every SQL statement that the README, the docs and the design show runs, on a store that has what they speak of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ok
from conftest import PROBE, Built
from quick import quick_runs

from cliffstore.run.store import Store

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

DESIGN = (
    # Section 7.
    "SELECT e.label, avg(array_inner_product(resid_post(t.row, 20), probe_weight('refusal'))) FROM tokens t "
    "JOIN examples e USING (example) WHERE t.to_decision = 0 GROUP BY 1",
    # Joins across models of one store, as its issue writes them.
    "SELECT resid_post(row, 20, 'tuned') - resid_post(row, 20, 'main') AS moved FROM tokens WHERE to_decision = 0",
)
MAY_BE_EMPTY = ("FROM skipped", "NOT extracted", "error IS NOT NULL", "FROM heads", "FROM experiments", "'steepest'")
"""Of what a finished store of a clean corpus has none. The last three are looked at in `test_docs.py`."""

_BLOCK = re.compile(r"```sql\n(.*?)```", re.DOTALL)
_INLINE = (
    re.compile(r"`((?:SELECT|FROM|WITH) [^`]+)`"),
    re.compile(r'cliffstore sql [^"\n]*"([^"]+)"'),
    re.compile(r'\.(?:sql|batches)\(\s*"([^"]+)"'),
)
_LAYER = re.compile(r"(\b(?:resid_pre|resid_mid|resid_post|attn_out|mlp_out|z)\([^()]*?,\s*)(\d+)")
_EXAMPLES_ONLY = ("SELECT ...", "...")
"""What stands for a statement."""


def _statements(text: str) -> Iterator[str]:
    """Yield the statements that a Markdown text shows."""
    for block in _BLOCK.findall(text):
        yield from (one.strip() for one in re.sub(r"--[^\n]*", "", block).split(";") if one.strip())
    outside = _BLOCK.sub("", text)
    for pattern in _INLINE:
        yield from (found for found in pattern.findall(outside) if found not in _EXAMPLES_ONLY)


def _with_layers_of_the_tiny_model(statement: str) -> str:
    """Layers are those of a model with some thirty blocks. The one of the tests has four: n stands for n mod 4."""
    return _LAYER.sub(lambda found: f"{found[1]}{int(found[2]) % 4}", statement)


FOUND = [(path.name, statement) for path in DOCS for statement in _statements(path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def store(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The finished store with a second model, `tuned`, controls, and another store attached as `base`."""
    folder = Path(shutil.copytree(built.store, tmp_path_factory.mktemp("docs") / "store"))
    with quick_runs():
        ok("extract", "--model", built.model, "--model-alias", "tuned", "--store", folder, "--json")
    ok("probe", "random", folder, "--like", PROBE, "--n", "2")
    ok("score", folder, "--probe", "all")
    ok("score", folder, "--probe", PROBE, "--model", "tuned")
    for probe in (f"{PROBE}-random-0-1", f"{PROBE}.tuned"):
        ok("cliff", folder, "--probe", probe)
    with Store(str(folder)) as opened:
        opened.attach("base", str(built.store))
        yield opened


def test_statements_are_found() -> None:
    """Should the way that docs write statements change, these tests must not pass for want of any."""
    readme = [statement for name, statement in FOUND if name == "README.md"]
    assert len(readme) >= 8
    assert any(statement.startswith("SELECT e.label, avg(array_inner_product(") for statement in readme)
    assert list(_statements("a `SELECT 1` b\n```sql\n-- x; y\nSELECT 2;\nSELECT 3\n```\n")) == [
        "SELECT 2",
        "SELECT 3",
        "SELECT 1",
    ]


@pytest.mark.parametrize(("source", "statement"), [*FOUND, *(("DESIGN.md", statement) for statement in DESIGN)])
def test_statement(source: str, statement: str, store: Store) -> None:
    rows = store.sql(_with_layers_of_the_tiny_model(statement)).fetchall()
    assert rows or any(words in statement for words in MAY_BE_EMPTY), f"{source}: no row"


ANSWERED = re.findall(
    r"```sql\n([^`]*?)```\n\n```text\n([^\n]*)\n", (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("statement", "header"), ANSWERED)
def test_answers_that_are_shown_have_the_columns_of_their_statements(statement: str, header: str, store: Store) -> None:
    assert store.sql(_with_layers_of_the_tiny_model(statement)).columns == header.split()


def test_there_are_twenty_statements_for_analysts() -> None:
    text = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    assert [int(one) for one in re.findall(r"^(\d+)\. ", text, re.M)] == list(range(1, 21))
    assert len(_BLOCK.findall(text)) == 20
    assert len(ANSWERED) >= 5


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM base.tokens",
        "SELECT label, avg(base.score('refusal', row)) FROM base.tokens JOIN base.examples USING (example) GROUP BY 1",
        "SELECT avg(array_distance(resid_post(t.row, 20, 'tuned'), base.resid_post(b.row, 20))) AS moved FROM tokens t "
        "JOIN base.tokens b USING (example, position) WHERE t.to_decision = 0",
    ],
)
def test_statements_over_two_stores(statement: str, store: Store) -> None:
    assert store.sql(_with_layers_of_the_tiny_model(statement)).fetchall()[0] is not None


def test_equal_models_do_not_differ(store: Store) -> None:
    """`tuned` is the same model here: every vector moved by nothing, in this store and against the other."""
    found = store.sql(
        "SELECT max(list_max(list_transform((resid_post(t.row, 2, 'tuned') - resid_post(t.row, 2, 'main'))::FLOAT[], "
        "lambda x: abs(x)))), max(array_distance(resid_post(t.row, 2, 'tuned'), base.resid_post(b.row, 2))), count(*) "
        "FROM tokens t JOIN base.tokens b USING (example, position)"
    ).fetchall()
    (moved, apart, n_tokens) = found[0]
    assert n_tokens > 1_000
    assert moved == pytest.approx(0, abs=1e-5)
    assert apart == pytest.approx(0, abs=1e-4)
