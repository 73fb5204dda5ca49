"""Stores that earlier versions wrote are read by this one, whole and to the same values.

`tests/golden/make.py` made them; `schemas/compatibility.md` says what they are held to.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from commands import ok, run_cli, snapshot
from jsonschema import Draft202012Validator

from cliffstore import Store, __version__
from cliffstore.schema import DOCUMENTS, FORMAT_VERSION, SEAL, canonical, seal_of
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

ROOT = Path(__file__).parents[2]
GOLDEN, SCHEMAS = ROOT / "tests" / "golden", ROOT / "schemas"
CASES = sorted(path.parent.parent for path in GOLDEN.glob("*/*/store/manifest.json"))
WITH_TRAINING_SET = [case for case in CASES if (case / "training-set").is_dir()]
MOST_BYTES = 300_000

sys.path.insert(0, str(GOLDEN))
import make  # noqa: E402


def _name(case: Path) -> str:
    return "-".join(case.parts[-2:])


each_case = pytest.mark.parametrize("case", CASES, ids=_name)
each_training_set = pytest.mark.parametrize("case", WITH_TRAINING_SET, ids=_name)


@pytest.fixture
def store(case: Path) -> Iterator[Store]:
    with Store(str(case / "store")) as opened:
        yield opened


def documents_of(store: Path) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield key, kind and content of every JSON document."""
    objects = ObjectStore(str(store))
    for key in objects.list(""):
        kind = layout.kind_of(layout.original_of(key) or key)
        if kind in DOCUMENTS:
            yield key, kind, json.loads(objects.get(key))


def tables_of(store: Path) -> Iterator[tuple[str, str]]:
    """Yield key and name of every table."""
    for key in ObjectStore(str(store)).list(""):
        if key.endswith(".parquet"):
            kind = key.split("/")[2].removesuffix(".parquet") if key.startswith("plans/") else key.split("/")[0]
            yield key, kind


def test_there_are_cases_of_what_matters() -> None:
    arrays = {(_name(case), key) for case in CASES for key in np.load(case / "vectors.npz").files}
    assert {name for name, _ in arrays} >= {"0.1.0-bfloat16", "0.1.0-float32"}
    assert {key for name, key in arrays if name == "0.1.0-bfloat16"} >= {
        f"activations/{alias}/{site}/1" for alias in ("main", "tuned") for site in ("resid_post", "z")
    }
    kinds = {kind for case in CASES for _, kind, _ in documents_of(case / "store")}
    elsewhere = {"unit_error", "generation", "generation_receipt"}  # of failures, and beside corpora
    assert kinds == set(DOCUMENTS) - elsewhere - {"experiment"}  # younger than the cases
    assert WITH_TRAINING_SET


def test_they_stay_small() -> None:
    sizes = {
        str(path.relative_to(GOLDEN)): path.stat().st_size
        for case in CASES
        for path in case.rglob("*")
        if path.is_file()
    }
    for version in {case.parent.name for case in CASES}:
        assert sum(size for path, size in sizes.items() if path.startswith(f"{version}/")) < MOST_BYTES


@each_case
def test_verify_finds_nothing_wrong_and_changes_nothing(case: Path) -> None:
    before = snapshot(case)
    result = run_cli("verify", case / "store", "--json")
    assert (result.code, result.json["findings"]) == (0, [])
    assert snapshot(case) == before


@each_case
def test_every_view_has_what_it_had(case: Path, store: Store) -> None:
    recorded = {path.stem: pq.read_table(path) for path in sorted((case / "views").iterdir())}
    assert set(recorded) <= set(store.catalog.names())
    for view, expected in recorded.items():
        columns = ", ".join(f'"{name}"' for name in expected.column_names)
        found = store.catalog.arrow(f"SELECT {columns} FROM {view} ORDER BY ALL")
        assert found.to_pylist() == expected.to_pylist(), view
    for view in ("examples", "tokens", "units", "skipped", "captures"):
        assert recorded[view].num_rows > 0


@each_case
def test_every_view_of_today_answers(store: Store) -> None:
    for view in store.catalog.names():
        assert store.catalog.arrow(f"SELECT count(*) AS n FROM {view}")["n"][0].as_py() >= 0


@each_case
def test_vectors_are_what_they_were(case: Path, store: Store) -> None:
    recorded = np.load(case / "vectors.npz", allow_pickle=False)
    rows_N = recorded["rows"]
    for key in set(recorded.files) - {"rows"}:
        _, alias, site, layer = key.split("/")
        found = store.reader.vectors(site, int(layer), rows_N, alias)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, recorded[key], err_msg=key)
        statement = (
            f"SELECT {site}(row, {layer}, '{alias}') AS h FROM (SELECT unnest($1::BIGINT[]) AS row) ORDER BY row"
        )
        table = store.catalog.arrow(statement, [rows_N.tolist()])
        assert np.array_equal(np.array(table["h"].to_pylist(), dtype=np.float32), found.reshape(len(found), -1)), key


@each_case
def test_zarr_opens_the_arrays(case: Path) -> None:
    group = zarr.open_group(str(case / "store" / "activations"), mode="r")
    arrays = [array for _, model in group.groups() for _, site in model.groups() for _, array in site.arrays()]
    assert arrays
    for array in arrays:
        assert array.metadata.dimension_names[0] == "row"
        dtype = array.attrs["cliffstore"]["dtype"]
        assert str(array.dtype) == ("uint16" if dtype == "bfloat16" else dtype)


@each_training_set
def test_selection_is_exported_as_it_was(case: Path, tmp_path: Path) -> None:
    make.export(case / "store", tmp_path / "again")
    for path in sorted((case / "training-set").glob("*.parquet")):
        old, new = pq.ParquetFile(path), pq.ParquetFile(tmp_path / "again" / path.name)
        expected, found = old.read(), new.read()
        kept = found.select(expected.column_names)
        assert kept.schema.remove_metadata() == expected.schema.remove_metadata()
        assert kept.to_pylist() == expected.to_pylist()
        writers = [(one.schema_arrow.metadata[b"cliffstore.version"], one.metadata.created_by) for one in (old, new)]
        if writers[0] == writers[1]:  # the version is in the file
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        else:
            assert writers[1][0].decode() == __version__


@each_case
def test_documents_are_as_published(case: Path) -> None:
    found = list(documents_of(case / "store"))
    assert any(key.startswith("copies/") for key, _, _ in found)
    for key, kind, content in found:
        schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
        assert not [error.message for error in Draft202012Validator(schema).iter_errors(content)], key
        assert set(content) <= set(schema["properties"]), key
        assert content["seal"] == seal_of({name: value for name, value in content.items() if name != SEAL})


@each_case
def test_tables_are_as_published(case: Path) -> None:
    found = list(tables_of(case / "store"))
    training = [
        (f"../training-set/{path.name}", "training_set_messages") for path in case.glob("training-set/*.parquet")
    ]
    assert found
    for key, name in [*found, *training]:
        schema = pq.read_schema(case / "store" / key)
        columns = json.loads((SCHEMAS / f"{name}.table.json").read_text(encoding="utf-8"))["columns"]
        known = {column["name"]: column["type"] for column in columns}
        # Parquet has a name of its own for what a list holds
        held = {one.name: str(one.type).replace("<element:", "<item:") for one in schema if one.name in known}
        assert held == {column: type for column, type in known.items() if column in held}, key
        further = [column for column in schema.names if column not in known]
        assert not further or name == "examples", (key, further)
        assert schema.metadata[b"cliffstore.version"], key


def test_document_that_is_not_as_published_is_seen() -> None:
    _, kind, content = next(one for one in documents_of(CASES[0] / "store") if one[1] == "receipt")
    validator = Draft202012Validator(json.loads((SCHEMAS / f"{kind}.schema.json").read_text(encoding="utf-8")))
    assert validator.is_valid(content)
    assert not validator.is_valid(content | {"n_rows": "many"})
    assert not validator.is_valid({name: value for name, value in content.items() if name != "digests"})


@each_training_set
def test_what_may_be_added_within_a_version_is_not_looked_at(case: Path, tmp_path: Path) -> None:
    """A later version of the same format adds properties, a column and an object; all else is read as before."""
    folder = Path(shutil.copytree(case / "store", tmp_path / "store"))
    probe = make.PROBE
    for table in sorted((folder / "scores" / probe).glob("*.parquet")):
        held = pq.read_table(table)
        pq.write_table(held.append_column("surprise", pa.repeat(pa.scalar(0.5), held.num_rows)), table)
        _rewrite(table.with_suffix(".json"), digest=hashlib.sha256(table.read_bytes()).hexdigest(), later=1)
    for key in ("manifest.json", f"probes/{probe}/probe.json", *_keys(folder, "captures"), *_keys(folder, "receipts")):
        _rewrite(folder / key, later={"nested": [1, None]})
        if (folder / "copies" / key).exists():
            shutil.copy(folder / key, folder / "copies" / key)
    assert ok("verify", folder, "--json").json["findings"] == []
    (folder / "footnotes").mkdir()
    (folder / "footnotes" / "a.json").write_text("{}")
    with Store(str(folder)) as opened:
        for path in (case / "views").iterdir():
            assert make.rows_of(opened, path.stem).num_rows == pq.read_metadata(path).num_rows, path.stem
        scores = pq.read_table(case / "views" / "scores.parquet")
        assert make.rows_of(opened, "scores").to_pylist() == scores.to_pylist()
    unknown = run_cli("verify", folder, "--json")
    assert [finding["key"] for finding in unknown.json["findings"]] == ["footnotes/a.json"]


def test_seal_is_over_what_is_added_too(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CASES[0] / "store", tmp_path / "store"))
    (key, *_) = _keys(folder, "receipts")
    body = json.loads((folder / key).read_text())
    (folder / key).write_bytes(canonical(body | {"later": 1}))
    result = run_cli("verify", folder, "--json")
    assert result.code == 1
    assert [finding["key"] for finding in result.json["findings"]] == [key]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_people_read_words(case: Path) -> None:
    """Not the way that Python writes lists, dictionaries and nothing."""
    probes = run_cli("info", case / "store", "--json").json["probes"]
    commands = [("info", case / "store"), *(("probe", "show", case / "store", "--name", name) for name in probes)]
    for said in (run_cli(*command).text for command in commands):
        assert "llama" in said or "resid_post" in said
        assert not any(sign in said for sign in ("{", "['", "None"))


def test_store_of_a_newer_format_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CASES[0] / "store", tmp_path / "store"))
    _rewrite(folder / "manifest.json", format_version=FORMAT_VERSION + 1)
    shutil.copy(folder / "manifest.json", folder / "copies" / "manifest.json")
    result = run_cli("info", folder)
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert f"format version {FORMAT_VERSION + 1}" in result.stderr


def _keys(folder: Path, below: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted((folder / below).rglob("*.json"))]


def _rewrite(path: Path, **changes: object) -> None:
    """Change properties of a document, and seal it again."""
    body = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL} | changes
    path.write_bytes(canonical({**body, SEAL: seal_of(body)}))
