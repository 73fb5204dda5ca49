"""The fenced blocks of a Markdown text, and how each is run: shell lines in this process, Python in one namespace.

A block that cannot be run has a comment `<!-- not run: reason -->` on the line before it. What a reader's machine has
and a test's has not (a model of the hub, a bucket) is put in its place by `Scene.stands_for`.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Result, captured, ok
from manifests import check_command

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL, PYTHON, SQL = "sh", "python", "sql"
DATA = ("text", "yaml", "json")
"""Languages of blocks that are read, not run."""
_PROGRAMS = ("cliffstore", "python", "ray", "export", "make", "pip", "cat")

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_HEREDOC = re.compile(r"<<-? ?'?(\w+)'?")
_CHECKED = ("ray", "make", "pip", "kubectl", "sbatch", "docker")


@dataclass(frozen=True)
class Block:
    """One fenced block. `not_run` is why it is not run."""

    document: str
    heading: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file, in order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start("language")]
        headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", before[:-3], flags=re.M | re.S), re.M)
        language = match["language"] or (SHELL if match["text"].split(maxsplit=1)[0] in _PROGRAMS else "text")
        language = SHELL if language == "bash" else language
        heading = headings[-1] if headings else ""
        found.append(Block(path.name, heading, before.count("\n") + 1, language, match["text"], match["reason"]))
    return found


def shell_commands(script: str) -> Iterator[str]:
    """Yield the commands of a script: lines, with those that go on joined, here-documents whole, `&&` taken apart."""
    lines = iter(re.sub(r"\\\n\s*", " ", script).splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (found := _HEREDOC.search(line)) is not None:
            taken = [line]
            for more in lines:
                taken.append(more)
                if more == found[1]:
                    break
            yield "\n".join(taken)
            continue
        lexer = shlex.shlex(line, posix=False, punctuation_chars="&;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield " ".join(words)
                words = []


@dataclass
class Scene:
    """Where the blocks of one document are run, one after the other.

    Attributes
    ----------
    folder : the working directory
    stands_for : text of the document -> what a test has in its place, in this order
    names : what Python blocks know
    checked : commands that were looked up and not run
    """

    folder: Path
    stands_for: Mapping[str, str] = field(default_factory=dict)
    names: dict[str, object] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)

    def run(self, block: Block, patch: pytest.MonkeyPatch, before: Callable[[str], None] | None = None) -> None:
        """Run a block of shell lines or Python. Fails where it does. `before` is called with each command."""
        patch.chdir(self.folder)
        if block.language == PYTHON:
            if before is not None:
                before("")
            code = compile(self.replaced(block.text), block.where, "exec")
            exec(code, self.names)
            return
        for command in shell_commands(block.text):
            if before is not None:
                before(command)
            self._command(command, block, patch)

    def replaced(self, text: str) -> str:
        for shown, there in self.stands_for.items():
            text = re.sub(shown, lambda _, there=there: there, text)
        return text

    def _command(self, command: str, block: Block, patch: pytest.MonkeyPatch) -> Result:
        if "\n" in command:
            return _by_shell(self.replaced(command), block)
        words = shlex.split(self.replaced(command))
        match words:
            case ["cliffstore", *arguments]:
                return ok(*arguments)
            case ["python", "-m", module, *arguments] if module.startswith("jobs."):
                return _job(module, arguments)
            case ["python", script] if script.startswith("tests/"):
                assert (ROOT / script).is_file(), command
                self.checked.append(command)
            case ["export", setting]:
                name, _, value = setting.partition("=")
                patch.setenv(name, value)
            case ["ray", *_] if "--" in words:
                check_command(shlex.split(command))
                self.checked.append(command)
                return self._command(command.partition(" -- ")[2], block, patch)
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), command
                self.checked.append(command)
            case ["pip", "install", what]:
                extras = re.findall(r"\[([\w,]+)\]", what)
                declared = (ROOT / "pyproject.toml").read_text()
                assert extras, command
                assert all(re.search(rf"^{one} = \[", declared, re.M) for one in extras[0].split(",")), command
                self.checked.append(command)
            case [program, *_] if program in _CHECKED:
                if program == "ray":
                    check_command(words)
                self.checked.append(command)
            case _:
                return _by_shell(self.replaced(command), block)
        return Result(0, b"", "")


def _by_shell(command: str, block: Block) -> Result:
    done = subprocess.run(["bash", "-ec", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{block.where}: {command}: {done.stderr.decode()}"
    return Result(done.returncode, done.stdout, done.stderr.decode())


def _job(module: str, arguments: list[str]) -> Result:
    """Run a job as its own process would, in this one."""
    held = os.environ.get("CLIFFSTORE_LOG")
    try:
        result = captured(lambda: _run_module(module, arguments))
    finally:
        if held is None:
            os.environ.pop("CLIFFSTORE_LOG", None)
    assert result.code == 0, f"{module}: {result.stderr}"
    return result


def _run_module(module: str, arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0
