"""A disk that fills up: one clear line, and the same command goes on once there is room.

The disk is a small tmpfs in a mount namespace of its own, which needs no rights where the system lets users make one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disturbed import plain_environment, prepare
from stores import assert_equal_stores

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
SCRIPT = """
import io, json, shutil, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from cliffstore.cli.main import main
disk, kept, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
def run():
    out, err = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return [code, out.buffer.getvalue().decode(), err.getvalue()]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
ballast = disk / "ballast"
ballast.write_bytes(bytes(int(20.5 * 2**20)))
first = run()
done = len(list(disk.glob("store/receipts/*/unit-*[0-9].json")))
temporary = [str(path) for path in disk.rglob(".tmp-*")]
ballast.unlink()
second = run()
shutil.copytree(disk / "store", kept)
print(json.dumps({"first": first, "done": done, "temporary": temporary, "second": second}))
"""


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    attempt = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this system lets no user mount a small disk in a namespace of his own")
def test_full_disk_is_told_and_resumed_after_space_is_freed(tiny_model: str, tmp_path: Path) -> None:
    case = prepare(tmp_path, tiny_model, n_prompts=150)
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", SCRIPT, str(disk), str(kept), *case.arguments(disk / "store")],
        env=plain_environment(), cwd=ROOT, text=True, capture_output=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    code, _, err = told["first"]
    assert code == 1, err
    last = err.splitlines()[-1]
    assert last.startswith("error: store ")
    assert "no space left: free some" in last
    assert "Traceback" not in err
    assert 0 < told["done"] < case.units, f"{told['done']} of {case.units} units were stored before the disk was full"
    assert told["temporary"] == []
    code, out, err = told["second"]
    assert code == 0, err
    report = json.loads(out)
    assert report["units_done_before"] == told["done"]
    assert_equal_stores(str(kept), case.reference)
