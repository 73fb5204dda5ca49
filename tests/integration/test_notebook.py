"""The notebook of `examples/` runs on any store with a probe, and a visitor sees its plot without running it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "store_to_plot.ipynb"
STORE = ROOT / "tests" / "golden" / "0.1.0" / "float32" / "store"
MOST_BYTES = 150_000


def outputs_of(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def plots_of(notebook: nbformat.NotebookNode) -> list[bytes]:
    found = [output.get("data", {}).get("image/png") for output in outputs_of(notebook)]
    return [base64.b64decode(image) for image in found if image is not None]


def test_it_runs_from_store_to_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIFFSTORE_STORE", str(STORE))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    (plot,) = plots_of(notebook)
    assert plot.startswith(b"\x89PNG")
    text = "\n".join(str(output.get("data", output)) for output in outputs_of(notebook))
    assert "unkind" in text
    assert "(16, 8)" in text  # vectors of 16 examples at the decision, of width 8


def test_it_is_committed_with_its_outputs_and_they_are_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run all cells, in their order, before it is committed"
    assert len(plots_of(notebook)) == 1
    assert not [output for output in outputs_of(notebook) if output.output_type == "error"]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"\\?\"/(home|root|tmp|Users|work)/", text)
