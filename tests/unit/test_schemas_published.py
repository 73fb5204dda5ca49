"""The folder `schemas/` is what the code publishes, and what it says of configurations is what the code takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from cliffstore.columns import COLUMNS
from cliffstore.columns import TABLES as PURPOSES
from cliffstore.errors import ConfigError
from cliffstore.run.contracts import CONFIGS, config_schema, main, published
from cliffstore.schema import LINEAGE, TABLES, TRAINING_SETS
from cliffstore.settings import read_config

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas"
BY_HAND = {"compatibility.md", "training-set.md"}

COMPLETE: dict[str, dict[str, object]] = {
    "extract": {"model": "m", "store": "s"},
    "probe": {"store": "s", "name": "p"},
    "score": {"store": "s", "probe": "p"},
    "cliff": {"store": "s", "probe": "p"},
    "curve": {"store": "s", "probe": "p"},
    "select": {"store": "s", "name": "n", "top": "1.7%"},
    "export": {"store": "s", "selection": "n", "output": "o"},
    "pipeline": {
        "store": "s", "extract": {"model": "m"}, "probe": {"name": "p"}, "select": {"name": "n", "top": 5},
        "export": {"output": "o"},
    },
    "plot": {"store": "s", "kind": "curve", "probe": "p"},
    "report": {"store": "s"},
    "generate": {"corpus": "c.jsonl", "output": "o.jsonl", "model": "m"},
    "judge": {"corpus": "c.jsonl"},
    "interventions": {"steps": [{"kind": "ablate", "direction": "v.npy"}]},
}  # fmt: skip
"""The least that each command can be told."""

TAKEN = (
    ("extract", {"corpus": ["a.jsonl", "b.csv"], "layers": 8, "map": {"prompt": "x"}, "storage-options": {"key": 1}}),
    ("extract", {"corpus": "a.jsonl", "sites": "resid_post,z", "pass-tokens": 256, "yes": True}),
    ("extract", {"sites": ["resid_post", "z"], "pass_tokens": 256}),
    ("probe", {"c": "auto", "memory-budget": "2GB", "positions": "decision,-1"}),
    ("probe", {"c": 0.5, "memory_budget": 4_000_000_000}),
    ("score", {"probe": ["p", "q"]}),
    ("cliff", {"select": {"name": "n", "top": 3}}),
    ("export", {"mix": "30%", "mix-where": "label = '0'", "validation": 0.1}),
    ("pipeline", {"score": None, "cliff": {"top": 3}}),
    ("judge", {"corpus": ["a.jsonl", "b.jsonl"], "label": 1}),
    ("generate", {"max-new-tokens": 5, "temperature": 0.7, "samples": 2}),
)
REFUSED = (
    ("extract", {"layer": "8"}),
    ("extract", {"dtype": "int8"}),
    ("extract", {"actors": 0}),
    ("extract", {"yes": ["a"]}),
    ("probe", {"kind": "svm"}),
    ("probe", {"c": "much"}),
    ("cliff", {"select": {"name": "n", "top": 3, "store": "elsewhere"}}),
    ("curve", {"level": 2}),
    ("export", {"format": "csv"}),
    ("plot", {"kind": "pie"}),
    ("generate", {"top-k": -1}),
    ("interventions", {"steps": [{"kind": "ablate"}]}),
    ("interventions", {"steps": [{"kind": "melt", "direction": "v.npy"}]}),
    ("pipeline", {"select": {"name": "n", "top": 3, "tops": 4}}),
)


def held() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.iterdir() if path.name not in BY_HAND}


def test_folder_holds_the_published_contracts_and_nothing_else() -> None:
    assert held() == published(), "run `make schemas` and commit the result"


def test_writing_the_folder_gives_the_published_contracts(tmp_path: Path) -> None:
    main(str(tmp_path / "schemas"))
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "schemas").iterdir()} == published()


def test_every_table_and_column_has_a_meaning_and_no_other_has() -> None:
    assert set(PURPOSES) == set(COLUMNS) == set(TABLES)
    for name, schema in TABLES.items():
        assert set(COLUMNS[name]) == set(schema.names), name
        assert all(meaning and "|" not in meaning for meaning in COLUMNS[name].values()), name


def test_what_is_said_of_training_sets_holds() -> None:
    text = (SCHEMAS / "training-set.md").read_text(encoding="utf-8")
    assert f"the {len(LINEAGE)} columns of lineage" in text
    for schema in TRAINING_SETS.values():
        assert schema.names[-len(LINEAGE) :] == LINEAGE.names


def test_links_between_the_contracts_lead_somewhere() -> None:
    readme = (SCHEMAS / "README.md").read_text(encoding="utf-8")
    for name in BY_HAND:
        assert f"]({name})" in readme
    for schema in SCHEMAS.glob("*.schema.json"):
        assert f"]({schema.name})" in readme


@pytest.mark.parametrize("name", CONFIGS)
def test_schema_of_a_configuration_is_one_and_names_every_option(name: str) -> None:
    schema = config_schema(CONFIGS[name])
    Draft202012Validator.check_schema(schema)
    assert set(CONFIGS[name].model_fields) <= set(schema["properties"])
    assert Draft202012Validator(schema).is_valid(COMPLETE[name])
    assert Draft202012Validator(schema).is_valid({}) == (name != "interventions"), "options complete it"


@pytest.mark.parametrize(("name", "values"), TAKEN, ids=repr)
def test_configuration_that_is_taken_is_valid(name: str, values: dict[str, object], tmp_path: Path) -> None:
    given = COMPLETE[name] | values
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(given))
    read_config(CONFIGS[name], str(tmp_path / "job.yaml"), {})
    errors = [error.message for error in Draft202012Validator(config_schema(CONFIGS[name])).iter_errors(given)]
    assert not errors


@pytest.mark.parametrize(("name", "values"), REFUSED, ids=repr)
def test_configuration_that_is_refused_is_not_valid(name: str, values: dict[str, object], tmp_path: Path) -> None:
    given = COMPLETE[name] | values
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError):
        read_config(CONFIGS[name], str(tmp_path / "job.yaml"), {})
    assert not Draft202012Validator(config_schema(CONFIGS[name])).is_valid(given)


def test_configurations_of_the_project_are_valid() -> None:
    found = [*ROOT.glob("jobs/*.yaml"), *ROOT.glob("infra/**/pipeline.yaml")]
    assert len(found) >= 2
    for path in found:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if given.get("kind") == "ConfigMap":
            given = yaml.safe_load(next(iter(given["data"].values())))
        # the name `yes` is what YAML 1.1 calls true
        given = {
            name: {"yes" if key is True else key: value for key, value in section.items()}
            if isinstance(section, dict)
            else section
            for name, section in given.items()
        }
        Draft202012Validator(config_schema(CONFIGS["pipeline"])).validate(given)
