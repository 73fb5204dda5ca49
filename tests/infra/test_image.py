"""The image: a Dockerfile whose parts exist, whose versions are pinned, and whose processes are nobody special."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from manifests import INFRA, ROOT, known_variables
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = INFRA / "Dockerfile"
INSTRUCTIONS = {
    # https://docs.docker.com/reference/dockerfile/
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|(?:^|_)KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str

    @property
    def names(self) -> list[str]:
        """The variables that an ARG or ENV sets."""
        return [part.partition("=")[0] for part in shlex.split(self.rest)]

    @property
    def sources(self) -> tuple[str | None, list[str]]:
        """The stage that a COPY takes from, None for the build context, and what it takes."""
        words = shlex.split(self.rest)
        stage = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        return stage, [word for word in words if not word.startswith("--")][:-1]


def read(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    parts = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [Instruction(word, rest.strip()) for word, _, rest in parts]


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return read(DOCKERFILE.read_text())


def of(instructions: list[Instruction], word: str) -> list[Instruction]:
    return [one for one in instructions if one.word == word]


def test_instructions_are_known(instructions: list[Instruction]) -> None:
    assert {one.word for one in instructions} <= INSTRUCTIONS
    assert all(one.rest for one in instructions)
    assert not of(instructions, "ADD"), "COPY takes what is named and nothing else"
    assert len(of(instructions, "CMD")) == 1
    assert not of(instructions, "ENTRYPOINT"), "KubeRay and `ray up` start the image with commands of their own"


def test_stages_are_there_and_the_base_is_pinned(instructions: list[Instruction]) -> None:
    defaults = dict(one.rest.split("=", 1) for one in of(instructions, "ARG") if "=" in one.rest)
    stages: list[str] = []
    for number, one in enumerate(of(instructions, "FROM")):
        image, _, name = one.rest.partition(" AS ")
        if image == "${VARIANT}":
            assert {"cpu", "cuda"} <= set(stages), "both variants are stages"
            assert number == len(of(instructions, "FROM")) - 1
            assert defaults["VARIANT"] in stages
        elif image not in stages:
            pinned = defaults.get(image.strip("${}"), image)
            assert re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*|.*@sha256:[0-9a-f]{64}", pinned), pinned
            assert pinned.startswith(f"python:{sys.version_info.major}.{sys.version_info.minor}."), "tests run on it"
        stages.append(name)
    for one in of(instructions, "COPY"):
        stage, _ = one.sources
        assert stage is None or stage in stages


def test_what_is_copied_is_there_and_reaches_the_builder(instructions: list[Instruction]) -> None:
    rules = [line for line in (INFRA / "Dockerfile.dockerignore").read_text().split() if line]
    assert rules[0] == "*", "nothing travels that is not named"
    let_in = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert all((ROOT / path).exists() for path in let_in)
    copied = [path for one in of(instructions, "COPY") if one.sources[0] is None for path in one.sources[1]]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(path == allowed or fnmatch.fnmatch(path, f"{allowed}/*") for allowed in let_in), path
    # What setuptools reads while it builds the wheel.
    assert {"pyproject.toml", "README.md", "cliffstore", "constraints.txt", "jobs"} <= set(copied)


def test_nobody_special_runs_it(instructions: list[Instruction]) -> None:
    users = [number for number, one in enumerate(instructions) if one.word == "USER"]
    assert users, "without USER it is root"
    last = instructions[users[-1]].rest
    assert last not in ("root", "0")
    assert not [one for one in instructions[users[-1] :] if one.word == "RUN"], "nothing is installed behind USER"
    user = f"useradd --create-home --uid 1000 --shell /bin/bash {last}"
    assert any(user in one.rest for one in of(instructions, "RUN")), "manifests name the user by 1000"
    assert max(n for n, one in enumerate(instructions) if one.word == "FROM") < users[-1]


def test_no_secrets_and_only_variables_that_somebody_reads(instructions: list[Instruction]) -> None:
    for one in (*of(instructions, "ARG"), *of(instructions, "ENV")):
        for name in one.names:
            assert not SECRET.search(name), f"{name}: what is in an image is known to all who have it"
    set_in_it = {name for one in of(instructions, "ENV") for name in one.names}
    assert set_in_it <= known_variables(), set_in_it - known_variables()


def test_every_layer_that_installs_leaves_no_cache(instructions: list[Instruction]) -> None:
    for one in of(instructions, "RUN"):
        if "pip install" in one.rest:
            assert "--no-cache-dir" in one.rest
            assert "-c constraints.txt" in one.rest, "a version that the tests do not run with"
        if "apt-get install" in one.rest:
            assert "--no-install-recommends" in one.rest
            assert "rm -rf /var/lib/apt/lists/*" in one.rest
            assert "apt-get update" in one.rest


def test_commands_are_shell(instructions: list[Instruction], tmp_path: Path) -> None:
    for one in of(instructions, "RUN"):
        done = subprocess.run(["sh", "-n"], input=one.rest, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, ""), one.rest


def test_everything_that_is_installed_is_pinned(instructions: list[Instruction]) -> None:
    """What the image installs, and what that needs, has its version in constraints.txt."""
    extras = next(one.rest.split("=")[1] for one in of(instructions, "ARG") if one.rest.startswith("EXTRAS="))
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {canonicalize_name(name) for name, _ in lines}
    unpinned, seen = set(), set()
    pending = [Requirement(f"cliffstore[{extras}]"), Requirement("boto3")]
    while pending:
        wanted = pending.pop()
        name = canonicalize_name(wanted.name)
        if (name, extra_key := ",".join(sorted(wanted.extras))) in seen:
            continue
        seen.add((name, extra_key))
        if name not in ("cliffstore", *pinned):
            unpinned.add(name)
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            environments = [{"extra": extra} for extra in (*wanted.extras, "")]
            if need.marker is None or any(need.marker.evaluate(environment) for environment in environments):
                pending.append(need)
    assert len(seen) > 60
    # setuptools is needed at run time by torch alone, which takes any of this year's.
    assert unpinned <= {"setuptools"}, unpinned


@pytest.mark.parametrize(
    ("variant", "cuda", "code", "said"),
    [
        ("cpu", None, 0, "torch fits"),
        ("cuda", "13.0", 0, "torch fits"),
        ("cpu", "13.0", 0, "give TORCH_INDEX"),
        ("cuda", None, 1, "torch has no CUDA"),
    ],
)
def test_an_image_without_the_torch_that_was_asked_for_says_so(
    variant: str, cuda: str | None, code: int, said: str, tmp_path: Path
) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "version.py").write_text(f"cuda = {cuda!r}\n")
    metadata = tmp_path / "torch-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0\n")
    done = subprocess.run(
        [sys.executable, str(INFRA / "check_torch.py"), variant], env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_the_lint_finds_what_it_is_for() -> None:
    """A Dockerfile as one should not be: each test above has something to say about it."""
    bad = read("FROM python\nENV AWS_SECRET_ACCESS_KEY=x\nRUN pip install cliffstore\nCOPY nowhere .\n")
    for test in (
        test_stages_are_there_and_the_base_is_pinned,
        test_what_is_copied_is_there_and_reaches_the_builder,
        test_nobody_special_runs_it,
        test_no_secrets_and_only_variables_that_somebody_reads,
        test_every_layer_that_installs_leaves_no_cache,
    ):
        with pytest.raises(AssertionError):
            test(bad)
