"""`probe fit` with a memory budget: what it finds is what it finds in memory, and it tells what it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import ok
from vector_store import VectorStore

from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights, read_probe

MADE = VectorStore(
    n_units=4, unit_rows=2_048, width=48, n_layers=2, tokens=2, dtype="bfloat16", distinct_prompts=3_000, strength=1.0
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    MADE.make(ObjectStore(str(folder)))
    return folder


def weights_of(store: Path, name: str) -> ProbeWeights:
    return read_probe(ObjectStore(str(store)), name)[1]


@pytest.mark.parametrize("kind", ["logistic", "mean_difference", "lda"])
def test_forced(store: Path, kind: str) -> None:
    common = (
        "probe", "fit", store, "--kind", kind, "--layers", "1", "--c", "0.5", "--shrinkage", "0.1",
        "--test-where", "source = 'odd'", "--where", "source = 'even'",
    )  # fmt: skip
    if kind != "logistic":
        common = tuple(word for word in common if word not in ("--c", "0.5"))
    if kind != "lda":
        common = tuple(word for word in common if word not in ("--shrinkage", "0.1"))
    inside = ok(*common, "--name", f"inside-{kind}", "--json").json
    outside = ok(*common, "--name", f"outside-{kind}", "--json", "--out-of-core", "--workers", "2").json
    one, other = (weights_of(store, f"{where}-{kind}") for where in ("inside", "outside"))
    np.testing.assert_allclose(other.w_D, one.w_D, rtol=1e-4, atol=1e-4 * np.abs(one.w_D).max())
    assert other.b == pytest.approx(one.b, rel=1e-3, abs=1e-4)
    assert outside["cells"][0].keys() == inside["cells"][0].keys()
    for figure, value in inside["cells"][0].items():
        found = outside["cells"][0][figure]
        assert found == (pytest.approx(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value), figure


def test_by_itself_above_the_budget(store: Path) -> None:
    """Half of the samples fit: C is chosen on these, and the probe is fitted on all."""
    budget = str(MADE.n_examples * MADE.width * 28 // 2)
    result = ok(
        "probe", "fit", store, "--name", "large", "--layers", "1", "--memory-budget", budget, "--workers", "1", "--json"
    )
    found = result.json
    cell = found["cells"][0]
    assert "C of layer 1 is found on" in result.stderr
    assert "layer 1 was fitted out of core: " in result.stderr
    assert f"passes over {cell['n_train']:,} samples" in result.stderr
    assert cell["c"] in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    whole = ok("probe", "fit", store, "--name", "whole", "--layers", "1", "--c", str(cell["c"]), "--json").json
    assert whole["cells"][0]["n_train"] == cell["n_train"]
    large, in_memory = weights_of(store, "large"), weights_of(store, "whole")
    np.testing.assert_allclose(large.w_D, in_memory.w_D, rtol=1e-4, atol=1e-4 * np.abs(in_memory.w_D).max())
