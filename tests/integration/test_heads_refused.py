"""Heads that cannot be measured as asked, and figures that a user could misread: told in a line, never guessed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ok, run_cli
from integration.conftest import Built
from quick import quick_runs
from told import Told

from cliffstore import Store
from cliffstore.errors import CliffstoreError, ConfigError, ExtractionError, ProbeError
from cliffstore.model import attention_mass, knockout, loader
from cliffstore.model.planted.model import Planted, PlantSettings, plant
from cliffstore.run.heads import prompts as heads_prompts
from cliffstore.run.heads import shares as heads_shares
from cliffstore.run.lent_probes import lend
from cliffstore.run.stages import extract
from cliffstore.store.objects import ObjectStore

EXAMPLES = 6
STEER = {"steps": [{"kind": "scale_heads", "heads": [[1, 0, 0.5]]}]}


@dataclass(frozen=True)
class Twins:
    """A store of one corpus with two planted models, `main` and `tuned`, and `main` once more with a head scaled."""

    store: Path
    models: dict[str, Planted]
    folders: dict[str, Path]

    def open(self) -> Store:
        return Store(str(self.store), reporter=Told())


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    place = tmp_path_factory.mktemp("twins")
    models = {alias: plant(PlantSettings(seed=seed, layers=4, heads=6, suppressors=1)) for alias, seed in
              (("main", 3), ("tuned", 8))}  # fmt: skip
    folders, store = {alias: place / alias for alias in models}, place / "store"
    for alias, planted in models.items():
        planted.save(folders[alias], examples=EXAMPLES)
    corpus = str(folders["main"] / "corpus.jsonl")
    (place / "steer.yaml").write_text(json.dumps(STEER))
    with quick_runs():
        for alias, more in (("main", {}), ("tuned", {}), ("changed", {"intervene": str(place / "steer.yaml")})):
            folder = folders.get(alias, folders["main"])
            given = {"sites": "resid_post" if more else "z,resid_post", "model_alias": alias, **more}
            extract(() if alias != "main" else corpus, model=str(folder), store=str(store), yes=True, **given)
    twins = Twins(store, models, folders)
    with twins.open() as opened:
        for alias, planted in models.items():
            truth = planted.truth
            opened.import_probe(alias, truth.w_D, layer=truth.layer, bias=float(truth.b), model=alias)
        lend(opened.reader, "main", "changed")
    return twins


def _trace(twins: Twins, probe: str, alias: str = "main", **more: object) -> None:
    with twins.open() as opened:
        opened.trace_heads(probe, model=str(twins.folders[alias]), replace=True, resamples=0, **more)


def _refusal(twins: Twins, kind: type[CliffstoreError], probe: str, **more: object) -> str:
    """The one line that a knock-out is refused with; nothing is kept."""
    with twins.open() as opened, pytest.raises(kind) as caught:
        opened.ablate_heads(probe, name="refused", model=str(twins.folders["main"]), resamples=0, **more)
    assert not ObjectStore(str(twins.store)).exists("heads/refused.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", ["z", "model"])
def test_a_second_model_is_traced_by_its_own_vectors_and_weights(twins: Twins, source: str) -> None:
    truth = twins.models["tuned"].truth
    _trace(twins, "tuned", "tuned", name="second", source=source)
    with twins.open() as opened:
        rows = opened.sql("SELECT layer, head, mean FROM heads WHERE name = 'second'").fetchall()
        prompts = opened.sql(
            "SELECT list(token_id ORDER BY position) FROM tokens WHERE to_decision <= 0 GROUP BY example"
        ).fetchall()
    expected = np.mean([truth.contributions(ids)[:, :, -1] for (ids,) in prompts], axis=0)
    assert len(rows) == (truth.layer + 1) * 6
    assert max(abs(mean - expected[layer, head]) for layer, head, mean in rows) <= 1e-5
    assert np.nanmin(expected) < -0.01


def test_models_that_were_changed_are_refused(twins: Twins) -> None:
    assert "which was changed while it ran" in _refusal(twins, ProbeError, "main.changed")
    for source in ("z", "model"):
        with pytest.raises(ProbeError, match="which was changed while it ran"):
            _trace(twins, "main.changed", source=source)


def test_shortlists_are_of_the_probe_as_it_is_and_of_the_decision(twins: Twins) -> None:
    truth = twins.models["main"].truth
    _trace(twins, "main", positions="-3..-1")
    assert "has no figures at the decision" in _refusal(twins, ConfigError, "main", shortlist=1)
    _trace(twins, "main", positions="-1..2")
    with twins.open() as opened:
        opened.ablate_heads(
            "main", name="list", shortlist=1, controls=0, replace=True, model=str(twins.folders["main"]), resamples=0
        )
        assert opened.heads("list")[0].heads == [f"{layer}:{head}" for layer, head in truth.suppressors]
        opened.import_probe("main", -truth.w_D, layer=truth.layer, model="main", replace=True)
        try:
            assert "trace again" in _refusal(twins, ConfigError, "main", shortlist=1)
        finally:
            opened.import_probe("main", truth.w_D, layer=truth.layer, bias=float(truth.b), model="main", replace=True)


def test_shortlists_longer_than_the_trace_and_crowded_layers_are_told(twins: Twins) -> None:
    _trace(twins, "main")
    told = Told()
    with Store(str(twins.store), reporter=told) as opened:
        opened.ablate_heads(
            "main", name="long", shortlist=99, controls=1, replace=True, model=str(twins.folders["main"]), resamples=0
        )
    n_heads = (twins.models["main"].truth.layer + 1) * 6
    assert any(f"99 is asked for, the trace has {n_heads} heads" in one for one in told.notices)
    assert any("random sets have heads of the shortlist in them" in one for one in told.notices)
    assert any(f"of {n_heads} heads of the shortlist have no negative share" in one for one in told.notices)


def test_more_groups_than_can_be_resampled_are_refused(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_prompts, "MOST_RESAMPLED", EXAMPLES * 2)
    told = _refusal(twins, ConfigError, "main", group_by="id", heads="2:1", controls=1)
    assert f"{EXAMPLES * 4} figures with 0 resamples are more than {EXAMPLES * 2} numbers to hold" in told


def test_nan_names_example_and_layer(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that one prompt alone has gives NaN from block 2 on."""
    with twins.open() as opened:
        token, name = opened.sql(
            "SELECT token_id, any_value(id) FROM tokens t JOIN examples e USING (example) WHERE "
            "to_decision <= 0 GROUP BY 1 HAVING count(DISTINCT example) = 1 AND min(example) > 0 ORDER BY 1 LIMIT 1"
        ).fetchall()[0]
    load = loader.load_model

    def poisoned(*given: object, **options: object) -> torch.nn.Module:
        model = load(*given, **options)
        seen: list[torch.Tensor] = []
        model.get_input_embeddings().register_forward_hook(
            lambda _module, inputs, _output: seen.append((inputs[0] == token).any())
        )

        def break_block(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            return torch.where(seen[-1], output * float("nan"), output)

        model.layers[2].mlp.register_forward_hook(break_block)
        return model

    monkeypatch.setattr("cliffstore.run.heads.knocking.load_model", poisoned)
    monkeypatch.setattr("cliffstore.extract.runner.load_model", poisoned)
    told = _refusal(twins, ExtractionError, "main", heads="2:1", controls=0)
    assert f"NaN or Inf at layer 2 in example {name!r}" in told
    # here several examples share a pass, which this kind of NaN spoils as a whole
    with pytest.raises(ExtractionError, match=r"NaN or Inf at site (z|resid_post), layer [23] in example"):
        _trace(twins, "main", name="nan", source="model")
    assert not ObjectStore(str(twins.store)).exists("heads/nan.json")


def test_examples_beyond_where_positions_depend_on_length_are_refused(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (knockout, heads_shares, attention_mass):
        monkeypatch.setattr(module, "length_dependent_above", lambda _config: 40)
    assert "positions of this model depend on the whole length" in _refusal(twins, ConfigError, "main")
    with pytest.raises(ConfigError, match="leave them out with --where 'n_tokens <= 40'"):
        _trace(twins, "main", name="longer", source="model")
    _trace(twins, "main", name="longer", source="z")  # nothing is computed again
    with twins.open() as opened, pytest.raises(ConfigError, match="positions of this model depend on the whole length"):
        opened.attention("1:0", model="main", models=(str(twins.folders["main"]),))


def test_groups_that_end_early_and_odd_names_are_shown(twins: Twins) -> None:
    _trace(
        twins, "main", name="grouped", positions="0..12",
        group_by="CASE WHEN kind = 'harmful' THEN 'a' || chr(27) || '[31mred' ELSE kind END",
    )  # fmt: skip
    with twins.open() as opened:
        ends = opened.sql("SELECT max(to_decision) FROM heads WHERE name = 'grouped' GROUP BY \"group\"").fetchall()
    assert len(set(ends)) > 1, "responses of one length show nothing"
    shown = ok("heads", "show", twins.store, "grouped").text
    assert "\x1b[31m" not in shown
    assert "jailbroken" in shown


def test_figures_are_drawn_to_a_file(twins: Twins, tmp_path: Path) -> None:
    _trace(twins, "main", name="drawn")
    for ending, begin in ((".png", b"\x89PNG"), (".svg", b"<svg")):
        path = tmp_path / f"map{ending}"
        shown = ok("heads", "show", twins.store, "drawn", "--heatmap", path)
        assert path.read_bytes().startswith(begin)
        assert "layer" in shown.text, "the map on the terminal stays as it is"
    with twins.open() as opened:
        plot = opened.draw_heads("drawn", str(tmp_path / "map.json"))
        rows = opened.sql("SELECT layer, head, mean FROM heads WHERE name = 'drawn'").fetchall()
    spec = json.loads((tmp_path / "map.json").read_text())
    cells = next(value for value in spec["datasets"].values() if len(value) == len(rows))
    assert {(one["layer"], one["head"]): one["value"] for one in cells} == {row[:2]: row[2] for row in rows}
    assert "score of main" in str(plot.spec["title"])
    _trace(twins, "main", name="by-kind", group_by="kind")
    for more, message in (((), "say which with --group"), (("--group", "none"), "have no group 'none'")):
        result = run_cli("heads", "show", twins.store, "by-kind", "--heatmap", tmp_path / "x.svg", *more)
        assert (result.code, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "x.svg").exists()
    ok("heads", "show", twins.store, "by-kind", "--heatmap", tmp_path / "one.svg", "--group", "benign")
    assert b"benign" in (tmp_path / "one.svg").read_bytes()


def test_mistakes_are_one_line_and_nothing_is_written(built: Built, tmp_path: Path) -> None:
    store = str(shutil.copytree(built.store, tmp_path / "store"))
    for arguments, message in (
        (["trace", "--probe", "none"], "has no probe 'none'"),
        (["trace", "--probe", "refusal", "--from", "cache"], "choose z or model"),
        (["trace", "--probe", "refusal", "--positions", "near"], "write a range of distances"),
        (["trace", "--probe", "refusal", "--where", "label = 'x'"], "no example is left"),
        (["trace", "--probe", "refusal"], "say where it is with --model"),
        (["ablate", "--probe", "refusal", "--heads", "3.1"], "write layer:head"),
        (["ablate", "--probe", "refusal", "--heads", "9:9"], "cannot change what probe"),
        (["ablate", "--probe", "refusal", "--shortlist", "3"], "has no figures of heads 'refusal-direct'"),
        (["ablate", "--probe", "refusal", "--trace", "some"], "say --shortlist too"),
        (["ablate", "--probe", "refusal", "--positions", "some"], "choose one of template, all, decision"),
        (["show", "none"], "has no figures of heads 'none'"),
    ):
        given = [arguments[0], store, *arguments[1:]]
        result = run_cli("heads", *given)
        assert result.code == 2, result.stderr
        assert message in result.stderr
        assert result.stderr.strip().count("\n") == 0, result.stderr
    assert not ObjectStore(store).list("heads")


def test_figures_are_kept_sealed_and_damage_is_told(built: Built, tmp_path: Path) -> None:
    store = str(shutil.copytree(built.store, tmp_path / "store"))
    command = ["heads", "trace", store, "--probe", "refusal", "--model", built.model, "--resamples", "20"]
    printed = ok(*command).text
    assert "layer" in printed
    again = run_cli(*command)
    assert again.code == 2
    assert "--replace" in again.stderr
    assert ok("verify", store).code == 0
    table = Path(store) / "heads" / "refusal-direct.parquet"
    table.write_bytes(table.read_bytes()[:-9] + b"x" * 9)
    result = run_cli("verify", store)
    assert result.code == 1
    assert "heads/refusal-direct.parquet" in result.text + result.stderr
    assert "heads trace" in result.text + result.stderr
