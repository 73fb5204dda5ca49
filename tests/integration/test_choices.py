"""The probe's layer is the best on validation; a shard in another's place is found although its checksums agree."""

from __future__ import annotations

import shutil
from pathlib import Path

from commands import ok, run_cli
from conftest import PROBE, Built


def test_layer_is_the_best_on_validation(built: Built) -> None:
    probe = ok("probe", "show", str(built.store), "--name", PROBE, "--json").json
    ranked = [(one["auroc"], -one["log_loss"], -one["layer"]) for one in probe["cells"]]
    assert len(ranked) > 1
    assert -max(ranked)[2] == probe["layer"]


def test_verify_finds_swapped_shard(built: Built, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(built.store, store)
    layers = store / "activations" / "main" / "resid_post"
    shutil.copy(layers / "0" / "c" / "0" / "0", layers / "1" / "c" / "0" / "0")
    result = run_cli("verify", str(store), "--json")
    assert result.code == 1
    assert [one["key"] for one in result.json["findings"]] == ["activations/main/resid_post/1/c/0/0"]
