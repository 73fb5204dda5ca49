"""Settings from YAML and options: names, lists, sections, and what a message must not repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from cliffstore.analyze.aligned import Distances
from cliffstore.analyze.curves import CurveSettings
from cliffstore.config import CliffConfig, ExportConfig, ExtractConfig, PipelineConfig, ProbeConfig
from cliffstore.errors import ConfigError
from cliffstore.run.experiment.settings import ExperimentSettings
from cliffstore.run.heads.ablate import AblateSettings
from cliffstore.run.heads.trace import TraceSettings
from cliffstore.settings import Kind, parse_overrides, read_config

PIPELINE = """
store: s3://bucket/acts
storage-options: {endpoint_url: "http://127.0.0.1:9000"}
extract: {corpus: a.jsonl, model: m, pass-tokens: 64}
probe: {name: refusal}
select: {name: worst, top: 7}
export: {output: ./train}
"""


def read(kind: type[Kind], text: str, folder: Path, **overrides: object) -> Kind:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(kind, str(path), overrides)


def test_yaml_may_be_written_as_people_do(tmp_path: Path) -> None:
    text = "corpus: a.jsonl\nmodel: m\nstore: s\nlayers: 8\nsites: resid_post, z\nmap: {a-b: c-d}\n"
    found = read(ExtractConfig, text, tmp_path)
    assert (found.corpus, found.layers, found.sites) == (("a.jsonl",), "8", ("resid_post", "z"))
    assert found.map == {"a-b": "c-d"}
    assert read(ExtractConfig, "model: m\nstore: s\nprobe: refusal\n", tmp_path).probe == ("refusal",)
    assert read(ExtractConfig, "model: m\nstore: s\nyes: true\n", tmp_path).yes, "a key that YAML takes for true"
    assert (
        read(ExtractConfig, "model: m\nstore: s\ntemplate-date: 2026-01-02\n", tmp_path).template_date == "2026-01-02"
    )


def test_a_file_that_is_not_utf8_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not UTF-8"):
        read_config(ExtractConfig, str(tmp_path / "latin.yaml"), {})


def test_sections_share_store_and_names(tmp_path: Path) -> None:
    found = read(PipelineConfig, PIPELINE, tmp_path)
    sections = (found.extract, found.probe, found.score, found.cliff, found.select, found.export)
    for section in sections:
        assert section.store == "s3://bucket/acts"
        assert section.storage_options == {"endpoint_url": "http://127.0.0.1:9000"}
    assert {*found.score.probe, *found.cliff.probe, found.select.probe, found.probe.name} == {"refusal"}
    assert (found.export.selection, found.select.top, found.extract.pass_tokens) == ("worst", "7", 64)


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    pairs = ["extract.pass-tokens=32", "extract.layers=8-20", "probe.name=other", "storage_options.region=eu-west-1"]
    found = read(PipelineConfig, PIPELINE, tmp_path, **parse_overrides(pairs))
    assert (found.extract.pass_tokens, found.extract.layers, found.extract.model) == (32, "8-20", "m")
    assert found.score.probe == ("other",)
    assert found.export.storage_options == {"endpoint_url": "http://127.0.0.1:9000", "region": "eu-west-1"}


def test_selection_of_a_ranking_takes_its_store_and_probe(tmp_path: Path) -> None:
    found = read(CliffConfig, "store: s\nprobe: p\nselect: {name: worst, top: 1.7%}\n", tmp_path)
    assert found.select is not None
    assert (found.select.store, found.select.probe, found.select.top) == ("s", "p", "1.7%")
    assert (found.probe, found.plateau, found.window) == (("p",), "mean", "all")
    several = read(CliffConfig, "store: s\nprobe: [p, q]\nselect: {name: worst, top: 1.7%}\n", tmp_path)
    assert several.probe == ("p", "q")
    assert several.select is not None
    assert several.select.probe is None  # which of them is not for us to say


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (ProbeConfig, "store: s\nnme: p\n", "option nme is not known"),
        (ProbeConfig, "name: p\n", "store is not given: say STORE"),
        (ExportConfig, "store: s\nselection: x\n", "output is not given: say --output"),
        (ExtractConfig, "model: m\n", "store is not given: say --store"),
        (
            ProbeConfig,
            "store: s\nname: p\nseed: -1\n",
            "option seed: Input should be greater than or equal to 0 (got -1)",
        ),
        (PipelineConfig, "store: s\n", "extract is not given: add a section `extract`"),
        (PipelineConfig, PIPELINE + "score: {store: t}\n", "score.store: say it once, outside the section"),
        (
            PipelineConfig,
            PIPELINE.replace("name: worst, ", ""),
            "select.name is not given: add it to the section `select`",
        ),
    ],
)
def test_mistake_names_the_option(kind: type[Kind], text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(kind, text, tmp_path)
    assert str(error.value) == told


@pytest.mark.parametrize(
    "text",
    [
        "store: s\nname: p\nsecret: hush\n",
        "store: s\nname: p\nstorage_options: {secret: [hush]}\n",
        "store: s\nname: p\nstorage_options: hush\n",
        "store: s\nname: p\nstorage_options: {secret: hush\n",
        "store: s\nname: p\nsecret: hush: hush\n",
    ],
)
def test_message_does_not_repeat_what_may_be_secret(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(ProbeConfig, text, tmp_path)
    assert "hush" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        parse_overrides(["storage_options.secret={hush"])
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0])
def test_levels_of_intervals_lie_between_nothing_and_all(level: float) -> None:
    for settings in (
        lambda: AblateSettings("refusal", "effects", level=level),
        lambda: TraceSettings("refusal", "shares", level=level),
        lambda: ExperimentSettings("refusal", "experiment", level=level),
        lambda: CurveSettings(Distances(-8, 0), level=level),
    ):
        with pytest.raises(ConfigError, match="say a share between 0 and 1"):
            settings()
