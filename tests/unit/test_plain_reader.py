"""The reader in `examples/` knows nothing of cliffstore, and reads the same vectors."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vector_store import VectorStore

from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import capture_specs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "read_store.py"
GOLDEN = sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/*/store/manifest.json"))

sys.path.insert(0, str(SCRIPT.parent))
from read_store import read_vectors  # noqa: E402


def assert_same(store: Path) -> int:
    """Compare every vector of some examples with those that cliffstore reads; return how many there are."""
    reader, compared = StoreReader(str(store)), 0
    for unit in reader.plan_tables.units:
        tokens = reader.plan_tables.tokens(unit, ["example", "position", "row"])
        examples_N, positions_N, rows_N = (tokens[name].to_numpy(zero_copy_only=False) for name in tokens.column_names)
        for example in np.unique(examples_N)[::3]:
            mine_N = (examples_N == example) & ~np.isnan(rows_N.astype(np.float64))
            wanted_N = rows_N[mine_N].astype(np.int64)
            for capture in reader.captures():
                for spec in capture_specs(capture):
                    positions, vectors = read_vectors(store, int(example), spec.layer, spec.site, spec.alias)
                    expected = reader.vectors(spec.site, spec.layer, wanted_N, spec.alias)
                    assert positions.tolist() == positions_N[mine_N].tolist()
                    assert vectors.dtype == np.float32
                    np.testing.assert_array_equal(vectors, expected, err_msg=f"{spec.key} of example {example}")
                    compared += len(vectors)
    return compared


def test_it_is_short_and_uses_no_cliffstore() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.name for node in nodes for name in node.names} | {getattr(node, "module", None) for node in nodes}
    assert not any(name and name.startswith("cliffstore") for name in names)


@pytest.mark.parametrize("store", GOLDEN, ids=lambda store: "-".join(store.parts[-3:-1]))
def test_golden_stores(store: Path) -> None:
    assert assert_same(store) > 100


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fresh_store(dtype: str, tmp_path: Path) -> None:
    store = VectorStore(n_units=2, unit_rows=256, tokens=4, dtype=dtype)
    store.make(ObjectStore(str(tmp_path)))
    assert assert_same(tmp_path) > 100
    first = store.examples_per_unit
    positions, vectors = read_vectors(tmp_path, first, 1)
    assert positions.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(vectors, store.vectors_of(1, 1)[:4])


def test_rows_without_a_receipt_are_not_there(tmp_path: Path) -> None:
    store = VectorStore(n_units=2, unit_rows=256, tokens=4)
    store.make(ObjectStore(str(tmp_path)))
    example = store.examples_per_unit
    (receipt,) = tmp_path.glob("receipts/*/unit-000001.json")
    shutil.move(receipt, receipt.with_name("unit-000001.error.json"))
    positions, vectors = read_vectors(tmp_path, example, 0)
    assert len(positions) == len(vectors) == 0
    assert len(read_vectors(tmp_path, 0, 0)[0]) == 4


def test_newer_format_is_refused(tmp_path: Path) -> None:
    VectorStore(n_units=1, unit_rows=256, tokens=4).make(ObjectStore(str(tmp_path)))
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 2}))
    with pytest.raises(ValueError, match="another format version"):
        read_vectors(tmp_path, 0, 0)


def test_as_a_script(tmp_path: Path) -> None:
    VectorStore(n_units=1, unit_rows=256, tokens=4).make(ObjectStore(str(tmp_path)))
    code = (
        f"import runpy, sys; sys.argv = ['read_store.py', {str(tmp_path)!r}, '0', '1']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); assert 'cliffstore' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[0 1 2 3]\n[[")
