"""What the files of `infra/` pass to programs: commands, their flags, variables of the environment, settings of jobs.

A flag is looked up where the program itself looks: in the command line of `cliffstore` and in Ray's.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from cliffstore.config import PipelineConfig
from cliffstore.settings import parse_overrides, read_config

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
PLACEHOLDERS = {
    "registry.example.org/cliffstore:cuda": "the image",
    "111122223333": "the AWS account",
    "ami-00000000000000000": "the machine image",
    "BUCKET": "the bucket",
    "eu-west-1": "the region",
}
"""What users put their own values for; README lists them."""

_AWS = {
    # https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html; AWS_REGION is read by newer SDKs, but not
    # by botocore, which is what says here where a bucket is.
    "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
}  # fmt: skip
_RAY = {
    # https://docs.ray.io/en/latest/ray-security/token-auth.html, and ray/_common/usage/usage_constants.py
    "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED",
}  # fmt: skip
_OTHERS = {
    "HF_TOKEN", "PYTHONPATH", "PYTHONUNBUFFERED",
    # https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
    "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES",
}  # fmt: skip


@lru_cache
def known_variables() -> frozenset[str]:
    """Return the variables that cliffstore, Ray, AWS's tools, Hugging Face's, NVIDIA's and Python read."""
    own = {
        name
        for path in (ROOT / "cliffstore").rglob("*.py")
        for name in re.findall(r"\bCLIFFSTORE_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    return frozenset(own | _AWS | _RAY | _OTHERS)


def check_command(words: Sequence[str]) -> None:
    """Fail unless a command exists, with all its flags, and its configuration is one that its job would take.

    `NAME=VALUE` before a command is part of the environment.
    """
    words = list(words)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        assert words[0].partition("=")[0] in known_variables(), words[0]
        words.pop(0)
    program, *arguments = words
    if program == "ray":
        _check_ray(arguments)
    elif program == "python":
        assert arguments[0] == "-m", words
        _check_job(arguments[1], arguments[2:])
    else:
        assert program == "cliffstore", f"{program}: which program is that?"
        _check_cliffstore(arguments)


def _check_ray(arguments: list[str]) -> None:
    from ray.scripts.scripts import cli

    inner: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, inner = arguments[:cut], arguments[cut + 1 :]
    _check_click(cli, arguments)
    if inner:
        check_command(inner)


def _check_cliffstore(arguments: list[str]) -> None:
    from cliffstore.cli.main import app

    _check_click(typer.main.get_command(app), arguments)


def _check_click(command: Any, arguments: list[str]) -> None:
    """Walk down to the command that is called and look each of its flags up."""
    words = list(arguments)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"{name}: not a command of {getattr(command, 'name', command)}"
        command = command.commands[name]
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        flag = word.partition("=")[0]
        assert not flag.startswith("-") or flag in flags, f"{flag}: not an option of {command.name}"


def _check_job(module: str, arguments: list[str]) -> None:
    assert module.startswith("jobs."), module
    path = ROOT / "jobs" / f"{module.removeprefix('jobs.')}.py"
    assert path.is_file(), f"{module}: there is no such job"
    words: list[str] = []

    class Called(Exception):
        pass

    def run(*command: str) -> int:
        words.extend(command)
        raise Called

    import jobs.entry

    held, jobs.entry.run = jobs.entry.run, run
    try:
        runpy.run_path(str(path), run_name="__main__")
    except Called:
        pass
    finally:
        jobs.entry.run = held
    _check_cliffstore([*words, *arguments])
    sets = [value for flag, value in pairwise(arguments) if flag == "--set"]
    if sets:
        check_pipeline(INFRA / "compose" / "pipeline.yaml", sets)


def check_pipeline(path: Path, sets: Sequence[str] = ()) -> PipelineConfig:
    """Read a pipeline's settings as its job does, and check what can be known before it begins."""
    from cliffstore.run.pipeline import check_pipeline as check

    config = read_config(PipelineConfig, str(path), parse_overrides(list(sets)))
    check(config)
    return config


def simple_commands(script: str, programs: Sequence[str]) -> Iterator[list[str]]:
    """Yield the calls of some programs in a shell script, wherever in a line they stand."""
    for line in re.sub(r"\\\n", " ", script).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip(";&|"):
                words.append(word)
                continue
            plain = [one for one in words if not re.match(r"\d?>", one)]
            starts = [number for number, one in enumerate(plain) if one in programs]
            if starts:
                yield plain[starts[0] :]
            words = []
