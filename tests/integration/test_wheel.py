"""The wheel has everything that the code reads, its metadata is right, and what it holds runs without the checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from cliffstore import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ("cliffstore", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: setuptools leaves its workings beside the sources, and would pack what it finds there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_file_of_the_package_is_in_it_and_nothing_else(names: set[str]) -> None:
    held = {name for name in names if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "cliffstore").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted, "package-data of pyproject.toml says what goes in beside Python files"


def test_metadata(wheel: Path) -> None:
    assert wheel.name == f"cliffstore-{__version__}-py3-none-any.whl"
    folder = f"cliffstore-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        facts = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE")
    assert (facts["Name"], facts["Version"], facts["License-Expression"]) == ("cliffstore", __version__, "Apache-2.0")
    assert facts["Requires-Python"] == ">=3.11"
    assert facts.get_payload().startswith("# cliffstore")
    assert "cliffstore = cliffstore.cli.main:run" in scripts
    assert licence == (ROOT / "LICENSE").read_bytes()
    needed = [Requirement(text) for text in facts.get_all("Requires-Dist")]
    extras = {extra for one in needed for extra in re.findall(r'extra == "(\w+)"', str(one.marker))}
    assert extras == set(facts.get_all("Provides-Extra")) >= {"s3", "gs", "azure", "demo", "adapters"}
    assert "pytest" not in {one.name for one in needed if one.marker is None}


def test_it_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, cliffstore; from cliffstore.cli.main import main; from cliffstore.run.demo import corpus_path;"
        "assert sys.argv[1] in cliffstore.__file__; assert corpus_path().stat().st_size > 1000;"
        "sys.exit(main(['info', sys.argv[2]]))"
    )
    store = ROOT / "tests" / "golden" / "0.1.0" / "float32" / "store"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code, str(tmp_path / "site"), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "unkind" in done.stdout


def test_licence_and_citation() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # What version 1.2.0 of the format asks for.
    assert set(citation) >= {"cff-version", "message", "title", "authors"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert all(set(author) & {"name", "family-names"} for author in citation["authors"])
    assert (str(citation["version"]), citation["license"]) == (__version__, "Apache-2.0")


def test_what_the_contribution_guide_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|/))`", text)
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "cliffstore" / path).exists(), path
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
