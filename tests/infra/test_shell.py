"""Shell scripts of `infra/` and of CI: they parse, and shellcheck has nothing to say, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import INFRA, ROOT

SCRIPTS = [ROOT / ".ci" / "run", *sorted(path for path in INFRA.rglob("*") if path.suffix in (".sh", ".sbatch"))]
PROGRAMS = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
"""A program that came as a Python package lies beside Python, which need not be in PATH."""


def shell_of(path: Path) -> str:
    first = path.read_text().splitlines()[0]
    assert first in ("#!/bin/sh", "#!/bin/bash", "#!/usr/bin/env bash"), first
    return first.replace(" ", "/").rsplit("/", 1)[1]


def test_there_are_scripts() -> None:
    assert [path.name for path in SCRIPTS] == ["run", "make-bucket.sh", "new-secrets.sh", "pipeline.sbatch"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_stops_at_errors(path: Path) -> None:
    done = subprocess.run([shell_of(path), "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    expected = "set -euo pipefail" if shell_of(path) == "bash" else "set -eu"
    assert expected in path.read_text().splitlines()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=PROGRAMS)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "--shell", shell_of(path), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
