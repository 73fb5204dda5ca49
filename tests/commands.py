"""Calling the command line in this process, and looking at what a run left on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from cliffstore.cli.main import main


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()

    @property
    def json(self):
        return json.loads(self.stdout)


def run_cli(*arguments: str | Path) -> Result:
    """Run one command in this process."""
    return captured(lambda: main([str(argument) for argument in arguments]))


def captured(act: Callable[[], int]) -> Result:
    """Do something that prints and returns an exit code."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = act()
    return Result(code, out.buffer.getvalue(), err.getvalue())


def ok(*arguments: str | Path) -> Result:
    """Run one command that must succeed."""
    result = run_cli(*arguments)
    assert result.code == 0, result.stderr
    return result


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file below a folder (None for a folder)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
