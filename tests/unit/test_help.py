"""Help of every command, with examples that parse; the version; completion in three shells."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from commands import ok, run_cli

from cliffstore import __version__
from cliffstore.cli.examples import EXAMPLES
from cliffstore.cli.main import app
from cliffstore.run.contracts import CONFIGS

ROOT = Path(__file__).parents[2]
COMMAND = "import sys; sys.argv[0] = 'cliffstore'; from cliffstore.cli.main import run; run()"


def walk(command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Yield every command by its path, groups and the root too."""
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(app)))
LEAVES = sorted(path for path, command in COMMANDS.items() if not hasattr(command, "commands"))
LINES = [(path, line) for path, lines in EXAMPLES.items() for line in lines]


def in_new_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=env, timeout=120
    )


def test_standard_streams_may_be_closed_or_know_few_letters() -> None:
    """As services and cron start commands; without any stream of its own `info` still ends with its exit code."""
    command = [sys.executable, "-c", COMMAND, "info", "/no/store"]
    closing = f"import os; os.closerange(0, 3); os.execv({sys.executable!r}, {command!r})"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", closing], env=env, timeout=120, check=False).returncode == 2
    code = "from cliffstore.cli.main import _open_streams; _open_streams(); print('a\u2603')"
    env |= {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=120, capture_output=True, check=True)
    assert done.stdout == b"a\\u2603\n"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path or "cliffstore")
def test_everything_has_help(path: str) -> None:
    command = COMMANDS[path]
    assert command.help, f"{path} has no help"
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"
    summary = command.get_short_help_str(limit=200)
    assert summary.endswith((".", "…")) or " " in summary


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("probe fit", "probe"),
        ("extract", "extract"),
        ("generate", "generate"),
        *((name, name) for name in ("score", "cliff", "curve", "select", "export", "judge")),
    ],
)
def test_what_must_be_said_is_marked(path: str, config: str) -> None:
    """Here or in the file of `--config`, so that none of them is required by itself."""
    marked = {one.name for one in COMMANDS[path].params if "Required." in str(getattr(one, "help", ""))}
    arguments = {one.name for one in COMMANDS[path].params if one.param_type_name == "argument"}
    fields = CONFIGS[config].model_fields.items()
    assert marked == {name for name, field in fields if field.is_required()} - arguments


def test_every_command_has_examples_and_no_other_has() -> None:
    assert sorted(EXAMPLES) == LEAVES
    assert all(EXAMPLES.values())


@pytest.mark.parametrize(("path", "line"), LINES, ids=[line for _, line in LINES])
def test_example_parses_as_its_command(path: str, line: str) -> None:
    arguments = shlex.split(line)
    words = path.split()
    assert arguments[: len(words)] == words
    context = COMMANDS[path].make_context(path, arguments[len(words) :])
    assert any(value not in (None, False, ()) for value in context.params.values())
    assert not context.args


@pytest.mark.parametrize("path", LEAVES)
def test_help_shows_the_examples_as_they_are_typed(path: str) -> None:
    shown = ok(*path.split(), "--help").text.splitlines()
    assert [line.strip() for line in shown if line.startswith("    cliffstore ")] == [
        f"cliffstore {line}" for line in EXAMPLES[path]
    ]


def test_option_that_is_not_known_does_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["info"].make_context("info", ["./acts", "--jason"])


def test_version() -> None:
    assert ok("--version").text == f"cliffstore {__version__}\n"


def test_nothing_said_is_help() -> None:
    assert run_cli().text == ok("--help").text


@pytest.mark.parametrize(("shell", "expected"), [
    ("bash", "complete -o default -F _cliffstore_completion cliffstore"),
    ("zsh", "#compdef cliffstore"),
    ("fish", "complete --command cliffstore"),
])  # fmt: skip
def test_completion_is_shown(shell: str, expected: str) -> None:
    # without this variable the shell is the one that typed the command
    shown = in_new_process("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0, shown.stderr
    assert expected in shown.stdout


@pytest.mark.parametrize(("typed", "expected"), [
    ("cliffstore ex", {"extract", "export"}),
    ("cliffstore probe im", {"import"}),
    ("cliffstore extract --model-a", {"--model-alias"}),
])  # fmt: skip
def test_what_bash_asks_is_answered(typed: str, expected: set[str]) -> None:
    word = str(len(typed.split()) - 1)
    answer = in_new_process(_CLIFFSTORE_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=word)
    assert set(answer.stdout.split()) == expected, answer.stderr


def test_completion_is_installed_where_the_shell_looks(tmp_path: Path) -> None:
    done = in_new_process("--install-completion", "bash", HOME=str(tmp_path), SHELL="/bin/bash")
    assert done.returncode == 0, done.stderr
    assert any("cliffstore" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
