"""`extract --intervene`: vectors and scores of a changed model, beside those of the model as it is, and never mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import Result, ok, run_cli, snapshot, write_jsonl
from conftest import PROBE, Built
from made_up import add_probe, make_probe
from quick import quick_runs
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM
from whole_store import Silent

from cliffstore import Store
from cliffstore.run.origins import Origins
from cliffstore.run.repair import repair_store
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe, write_probe

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")
LAYERS = range(4)
RANDOM = np.random.default_rng(0)
VECTOR = RANDOM.normal(size=32).astype(np.float32)
CHANNELS = RANDOM.normal(size=8).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interventions")
    save_file({"w": VECTOR}, folder / "direction.safetensors")
    save_file({"L2H3": CHANNELS}, folder / "scales.safetensors")
    return folder


def steps_of(folder: Path) -> list[dict[str, object]]:
    return [
        {"kind": "scale_heads", "heads": [[1, 0], [1, 2, 0.5]], "positions": "think", "keep-norm": True},
        {"kind": "scale_channels", "file": str(folder / "scales.safetensors"), "positions": "decision"},
        {"kind": "ablate", "direction": str(folder / "direction.safetensors"), "layers": "1-2", "positions": "-3..0"},
        {
            "kind": "steer", "direction": str(folder / "direction.safetensors"), "site": "mlp_out", "layers": 0,
            "factor": -2, "unit": True, "positions": "think,header",
        },
    ]  # fmt: skip


def write(path: Path, steps: list[dict[str, object]]) -> Path:
    text = yaml.safe_dump({"steps": steps}) if path.suffix == ".yaml" else json.dumps({"steps": steps})
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write(folder / "steps.yaml", steps_of(folder))


def extract(built: Built, store: Path, *more: str | Path) -> Result:
    sites = ("--sites", ",".join(SITES), "--dtype", "float32", "--unit-rows", "256")
    return run_cli("extract", built.corpus, "--model", built.model, "--store", store, *sites, *more)


@pytest.fixture(scope="module")
def store(built: Built, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it is, and under the same interventions in two kinds of passes. Tests copy it."""
    store = tmp_path_factory.mktemp("changed") / "store"
    assert extract(built, store).code == 0
    for passes in ("tree", "padded"):
        result = extract(built, store, "--intervene", file, "--model-alias", passes, "--passes", passes, "--json")
        assert result.code == 0, result.stderr
        assert result.json["units_done_now"] == result.json["units"] >= 3
        assert result.json["passes"]["kind"] == passes
    return store


class _Hooked:
    """The steps of the file once more, by hooks on the modules of a Llama, for one example."""

    def __init__(self, model: torch.nn.Module, where: Mapping[str, np.ndarray]) -> None:
        self.model, self.found = model, {}
        self.where = {name: torch.from_numpy(mask)[None, :, None] for name, mask in where.items()}
        self.unit = torch.from_numpy(VECTOR / np.linalg.norm(VECTOR))

    def run(self, token_ids: list[int]) -> dict[str, torch.Tensor]:
        handles = []
        for layer, block in enumerate(self.model.model.layers):
            handles += [
                block.register_forward_pre_hook(self.on_input(f"resid_pre/{layer}")),
                block.self_attn.o_proj.register_forward_pre_hook(self.on_input(f"z/{layer}")),
                block.self_attn.register_forward_hook(self.on_output(f"attn_out/{layer}")),
                block.mlp.register_forward_hook(self.on_output(f"mlp_out/{layer}")),
                block.register_forward_hook(self.on_output(f"resid_post/{layer}")),
            ]
        with torch.inference_mode():
            self.model(torch.tensor([token_ids]))
        for handle in handles:
            handle.remove()
        return self.found

    def on_input(self, name: str):
        def hook(_module, inputs):
            self.found[name] = self.changed(name, inputs[0])
            return (self.found[name], *inputs[1:])

        return hook

    def on_output(self, name: str):
        def hook(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            self.found[name] = self.changed(name, first)
            return (self.found[name], *output[1:]) if isinstance(output, tuple) else self.found[name]

        return hook

    def changed(self, name: str, h: torch.Tensor) -> torch.Tensor:
        site, layer = name.split("/")
        new = h.clone()
        if name == "z/1":
            new[..., 0:8] = 0
            new[..., 16:24] *= 0.5
            new *= h.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)
            return torch.where(self.where["think"], new, h)
        if name == "z/2":
            new[..., 24:32] *= torch.from_numpy(CHANNELS)
            return torch.where(self.where["decision"], new, h)
        if name == "mlp_out/0":
            return torch.where(self.where["think,header"], h - 2 * self.unit, h)
        if site in ("resid_pre", "attn_out", "mlp_out") and layer in "12":
            new = h - (h @ self.unit)[..., None] * self.unit
            return torch.where(self.where["-3..0"], new, h)
        return h


def test_vectors_are_those_of_hooks_on_a_plain_forward(store: Path, built: Built) -> None:
    """Every site and layer, tree passes and padded ones, examples with thinking and without."""
    model = AutoModelForCausalLM.from_pretrained(built.model, dtype=torch.float32).eval()
    worst, moved = 0.0, 0.0
    with Store(str(store)) as opened:
        for example in (0, 3, 17, 38):
            rows = opened.sql(
                f"SELECT token_id, segment, to_decision, row FROM tokens WHERE example = {example} ORDER BY position"
            ).fetchall()
            ids, segments, distances, places = (list(column) for column in zip(*rows, strict=True))
            segment, distance = np.array(segments), np.array(distances)
            where = {
                "think": segment == "think",
                "decision": distance == 0,
                "-3..0": (distance >= -3) & (distance <= 0),
                "think,header": np.isin(segment, ["think", "header"]),
            }
            expected = _Hooked(model, where).run(ids)
            for name, right in expected.items():
                site, layer = name.split("/")
                for alias in ("tree", "padded", "main"):
                    found = torch.from_numpy(opened.vectors(site, int(layer), np.array(places), alias)).flatten(1)
                    error = float(((found - right[0]).norm(dim=1) / right[0].norm(dim=1)).max())
                    if alias == "main":
                        moved = max(moved, error)
                    else:
                        worst = max(worst, error)
    print(f"largest relative difference {worst:.1e}; the model as it is differs by {moved:.1e}")
    assert worst <= 1e-5
    assert moved > 0.1


def test_the_store_says_what_was_changed(store: Path) -> None:
    table = ok("sql", store, "SELECT DISTINCT model, interventions FROM captures ORDER BY 1", "--json").json
    said = {row["model"]: row["interventions"] for row in table}
    assert said["main"] is None
    assert (
        said["tree"]
        == said["padded"]
        == (
            "scale 2 heads, layers 1, positions think, norm kept; scale 1 heads, layers 2, positions decision; "
            "ablate file direction.safetensors at resid_pre,attn_out,mlp_out, layers 1-2, positions -3..0; "
            "steer -2 x file direction.safetensors at mlp_out, layers 0, positions header,think"
        )
    )
    with Store(str(store)) as opened:
        captures = {one.alias: one for one in opened.reader.captures()}
    assert captures["tree"].changes == captures["padded"].changes is not None
    assert b"interventions" not in captures["main"].to_bytes()  # as before there were any
    told = {one["model"]: one["interventions"] for one in ok("info", store, "--json").json["captures"]}
    assert told == said
    assert run_cli("verify", store).code == 0


def test_a_run_resumes_and_other_interventions_are_no_resumption(
    store: Path, built: Built, file: Path, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    before = snapshot(copy)
    as_json = write(tmp_path / "same.json", steps_of(folder))
    again = extract(built, copy, "--intervene", as_json, "--model-alias", "tree", "--json")
    assert again.code == 0
    assert again.json["units_done_now"] == 0
    other = write(tmp_path / "other.yaml", steps_of(folder)[:1])
    for given, alias, said in (
        (("--intervene", other), "tree", "belongs to other interventions"),
        ((), "tree", "belongs to other interventions"),
        (("--intervene", other, "--layers", "0"), "tree", "belongs to other interventions"),
        (("--intervene", file), None, "--model-alias"),
    ):
        named = ("--model-alias", alias) if alias else ()
        result = extract(built, copy, *given, *named)
        assert (result.code, len(result.stderr.strip().splitlines()[-1:])) == (2, 1)
        assert said in result.stderr.splitlines()[-1], result.stderr
    result = extract(built, copy, "--intervene", file, "--model-alias", "third", "--adapter", "nowhere")
    assert result.code == 2
    assert snapshot(copy) == before


def test_an_alias_of_the_bare_model_is_not_continued(store: Path, built: Built, file: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    assert extract(built, copy, "--model-alias", "plain", "--layers", "0").code == 0
    before = snapshot(copy)
    result = extract(built, copy, "--model-alias", "plain", "--layers", "1", "--intervene", file)
    assert result.code == 2
    assert "belongs to the model without interventions" in result.stderr.splitlines()[-1]
    assert snapshot(copy) == before


def test_lost_units_are_extracted_again_with_the_interventions_of_the_store(
    store: Path, built: Built, tmp_path: Path
) -> None:
    """The file is not needed: the capture's document has the steps."""
    copy = shutil.copytree(store, tmp_path / "store")
    shard = next((copy / "activations" / "tree" / "attn_out" / "2").rglob("c/1/0"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert run_cli("verify", copy).code == 1
    report = repair_store(ObjectStore(str(copy)), Origins(models=(built.model,)), Silent())
    assert not report.after.findings, report.failed
    with Store(str(store)) as one, Store(str(copy)) as other:
        rows = np.arange(256, 400)
        found, expected = (opened.vectors("attn_out", 2, rows, "tree") for opened in (other, one))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("passes", ["tree", "padded"])
def test_scores_under_interventions_have_a_name_of_their_own(
    store: Path, built: Built, file: Path, passes: str, tmp_path: Path
) -> None:
    """They are w·h + b of the vectors that the same interventions give, and stand beside the scores of the model."""
    copy = shutil.copytree(store, tmp_path / "store")
    capture = next(one for one in Store(str(copy)).reader.captures() if one.alias == "main")
    write_probe(ObjectStore(str(copy)), *make_probe(capture, "rude", "resid_post", 2), replace=False)
    ok("score", copy, "--probe", "rude")
    of_the_model = "SELECT * FROM scores WHERE probe = 'rude' ORDER BY example, position"
    plain = ok("sql", copy, of_the_model, "--json").json
    result = run_cli(
        "extract", "--model", built.model, "--store", copy, "--dtype", "float32", "--probe", "rude",
        "--intervene", file, "--model-alias", "live", "--passes", passes,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    document, weights = read_probe(ObjectStore(str(copy)), "rude.live")
    assert (document.alias, document.changes) == (
        "live",
        next(one.changes for one in Store(str(copy)).reader.captures() if one.alias == "tree"),
    )
    joined = ok(
        "sql", copy, "SELECT row, score FROM scores JOIN tokens USING (example, position) "
        "WHERE probe = 'rude.live' ORDER BY example, position", "--json",
    ).json  # fmt: skip
    with Store(str(copy)) as opened:
        h = opened.vectors("resid_post", 2, np.array([row["row"] for row in joined]), "tree")
    found = np.array([row["score"] for row in joined])
    np.testing.assert_allclose(found, h @ weights.w_D + weights.b, rtol=1e-4, atol=1e-5)
    assert len(joined) == len(plain)
    assert np.abs(found - np.array([row["score"] for row in plain])).max() > 0.01
    assert ok("sql", copy, of_the_model, "--json").json == plain
    if passes == "padded":
        return
    ok("score", copy, "--probe", "rude", "--model", "tree")  # the same from stored vectors, with no model
    stored = ok(
        "sql", copy, "SELECT score FROM scores WHERE probe = 'rude.tree' ORDER BY example, position", "--json"
    ).json
    np.testing.assert_allclose([row["score"] for row in stored], found, rtol=1e-4, atol=1e-5)
    assert ok("sql", copy, of_the_model, "--json").json == plain
    assert run_cli("score", copy, "--probe", "all", "--model", "tree").code == 2
    ok("cliff", copy, "--probe", "rude.live")
    assert run_cli("verify", copy).code == 0
    receipt = next((copy / "scores" / "rude.live").glob("*.parquet"))
    receipt.write_bytes(receipt.read_bytes()[:-9])
    report = repair_store(ObjectStore(str(copy)), Origins(models=(built.model,)), Silent())
    assert not report.after.findings, report.failed


def test_scores_of_other_changes_are_refused(
    store: Path, built: Built, file: Path, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    shutil.copytree(built.store / "probes" / PROBE, copy / "probes" / PROBE)
    live = ("extract", "--model", built.model, "--store", copy, "--dtype", "float32")
    ok(*live, "--probe", PROBE, "--intervene", file, "--model-alias", "live")
    other = write(tmp_path / "other.yaml", steps_of(folder)[:1])
    before = snapshot(copy)
    for given, said in (
        (("--probe", PROBE, "--intervene", other, "--model-alias", "live"), "of other interventions"),
        (("--probe", f"{PROBE}.live", "--intervene", other, "--model-alias", "live"), "other interventions"),
        (("--probe", f"{PROBE}.live"), "--intervene"),
        (("--probe", PROBE, "--intervene", other, "--model-alias", "tree"), "belongs to other interventions"),
    ):
        result = run_cli(*live, *given)
        assert result.code == 2, given
        assert said in result.stderr.splitlines()[-1], result.stderr
    assert snapshot(copy) == before
    again = ok(*live, "--probe", PROBE, "--intervene", file, "--model-alias", "live", "--json")
    assert again.json["units_done_now"] == 0


def test_examples_that_cannot_share_a_row_are_refused_before_anything_is_written(
    tiny_model: str, tmp_path: Path, folder: Path
) -> None:
    """One prompt with thinking of two lengths: the last tokens before the answer are thinking of the longer one."""
    thought = "The user asks about bread, and this is friendly, so I can help."
    rows = [
        {"id": "short", "prompt": "Tell me about bread.", "thinking": thought},
        {"id": "long", "prompt": "Tell me about bread.", "thinking": f"{thought} I will be brief."},
    ]
    corpus = write_jsonl(tmp_path / "two.jsonl", rows)
    direction = str(folder / "direction.safetensors")
    command = ("extract", corpus, "--model", tiny_model, "--store", tmp_path / "s", "--model-alias", "changed")
    refused = write(tmp_path / "last.yaml", [{"kind": "ablate", "direction": direction, "positions": "last:12"}])
    for probe in ((), ("--probe", f"{_probe_of(tiny_model, corpus, tmp_path)}")):
        result = run_cli(*command, "--intervene", refused, *probe)
        assert result.code == 2
        (line,) = result.stderr.strip().splitlines()[-1:]
        assert "interventions at 'last:12': examples 0 and 1" in line
        assert not (tmp_path / "s").exists()
    fine = write(tmp_path / "think.yaml", [{"kind": "ablate", "direction": direction, "positions": "think"}])
    ok(*command, "--intervene", fine)
    # the decision alone: then no row before it is shared, and each example is changed as it should be
    alone = ("extract", corpus, "--model", tiny_model, "--positions", "decision", "--layers", "3")
    ok(*alone, "--store", tmp_path / "d", "--model-alias", "changed", "--intervene", refused, "--passes", "tree")
    ok(*alone, "--store", tmp_path / "d", "--model-alias", "padded", "--intervene", refused, "--passes", "padded")
    with Store(str(tmp_path / "d")) as opened:
        one, other = (opened.vectors("resid_post", 3, np.arange(2), alias) for alias in ("changed", "padded"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def _probe_of(model: str, corpus: Path, folder: Path) -> str:
    store = folder / "probed"
    if not store.exists():
        ok("extract", corpus, "--model", model, "--store", store, "--layers", "1")
    return add_probe(store, "any", layer=1)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"kind": "scale_heads", "heads": [[1, 0]], "factor": 3}, "less than or equal to 2"),
        ({"kind": "scale_heads", "heads": [[9, 0]]}, "layer 9 is not in the model"),
        ({"kind": "scale_heads", "heads": [[0, 7]]}, "head 7 is not in the model"),
        ({"kind": "scale_heads", "heads": [[0, 1], [0, 1]]}, "there twice"),
        ({"kind": "scale_heads", "heads": []}, "list heads, or name a table"),
        ({"kind": "scale_heads", "heads": "1-0"}, "write layer:head"),
        ({"kind": "scale_heads", "table": "traced"}, "table and top go together"),
        ({"kind": "scale_heads", "table": "traced", "top": 2}, "'traced'"),
        ({"kind": "ablate", "direction": "nobody"}, "has no probe 'nobody'"),
        ({"kind": "ablate", "direction": "direction.pt"}, "unpickles nothing"),
        ({"kind": "ablate", "direction": "gone.safetensors"}, "gone.safetensors cannot be read"),
        ({"kind": "ablate"}, "direction is not given"),
        ({"kind": "ablate", "direction": "D", "positions": "somewhere"}, "'somewhere' is none of"),
        ({"kind": "ablate", "direction": "D", "sites": ["resid_mid"]}, "resid_mid cannot be changed"),
        ({"kind": "steer", "direction": "D", "layers": "12"}, "layer 12 is not in the model"),
        ({"kind": "steer", "direction": "D", "layers": 1, "factor": float("nan")}, "finite number"),
        ({"kind": "melt", "direction": "D"}, "melt"),
        ({"kind": "ablate", "direction": "D", "strength": 1}, "strength is not known"),
    ],
)
def test_mistakes_in_a_file_are_one_line(
    step: dict[str, object], said: str, built: Built, folder: Path, tmp_path: Path
) -> None:
    given = {key: str(folder / "direction.safetensors") if value == "D" else value for key, value in step.items()}
    file = write(tmp_path / "wrong.yaml", [given])
    command = ("extract", built.corpus, "--model", built.model, "--store", tmp_path / "s", "--model-alias", "changed")
    result = run_cli(*command, "--intervene", file)
    assert result.code == 2
    (line,) = result.stderr.strip().splitlines()
    assert said in line
    assert not (tmp_path / "s").exists()


def test_what_changes_nothing_or_means_little_is_told(built: Built, tmp_path: Path) -> None:
    store = shutil.copytree(built.store, tmp_path / "store")
    with Store(str(store)) as opened:
        capture = next(one for one in opened.reader.captures() if one.alias == "main")
    write_probe(ObjectStore(str(store)), *make_probe(capture, "behind", "final_norm", 3), replace=False)
    file = write(tmp_path / "above.yaml", [{"kind": "ablate", "direction": "behind", "layers": "2-3"}])
    command = ("extract", "--model", built.model, "--store", store, "--layers", "0-1", "--model-alias", "changed")
    result = ok(*command, "--intervene", file)
    assert "acts above layer 1, the last one captured: no effect" in result.stderr
    assert "behind the final norm" in result.stderr
