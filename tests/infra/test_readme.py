"""What `infra/README.md` says of the files is so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
from iam_server import read_policy
from manifests import INFRA, PLACEHOLDERS, ROOT, check_command

README = (INFRA / "README.md").read_text()
LONGEST = 10
"""Lines of prose about one thing."""


def sections() -> dict[str, str]:
    parts = re.split(r"^## ", README, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: part.partition("\n")[2] for part in parts}


def commands() -> Iterator[list[str]]:
    for block in re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\n +", " ", block).splitlines():
            for one in line.split(" && "):
                yield shlex.split(one)


def test_files_are_there_and_each_is_spoken_of() -> None:
    linked = set(re.findall(r"\]\(([^)]+)\)", README))
    assert all((INFRA / path).exists() for path in linked)
    explained_beside = {
        "README.md",
        ".gitignore",
        ".env",
        "Dockerfile.dockerignore",
        "check_torch.py",
        "make-bucket.sh",
    }
    for path in INFRA.rglob("*"):
        file = path.relative_to(INFRA)
        if path.is_file() and path.name not in explained_beside and path.suffix != ".pyc":
            assert path.name in README or f"{file.parent}/" in linked, file


def test_each_is_explained_in_ten_lines() -> None:
    assert len(sections()) == 7
    for title, text in sections().items():
        prose = re.sub(r"^```\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
        lines = [line for line in prose.splitlines() if line and not line.startswith("|")]
        assert len(lines) <= LONGEST, title


def test_placeholders_are_listed_and_are_those_of_the_files() -> None:
    listed = re.findall(r"^\| `([^`]+)` \|", README.partition("## ")[0], re.MULTILINE)
    assert set(listed) == set(PLACEHOLDERS)
    files = [path for path in INFRA.rglob("*") if path.suffix in (".yaml", ".json") and "compose" not in path.name]
    text = "\n".join(path.read_text() for path in files if path.parent.name != "compose")
    assert all(placeholder in text for placeholder in PLACEHOLDERS)
    assert set(re.findall(r"\b\d{12}\b", text)) == {"111122223333"}
    assert set(re.findall(r"ami-\w+", text)) == {"ami-00000000000000000"}
    images = set(re.findall(r"image: (\S+)", text))
    assert images == {"registry.example.org/cliffstore:cuda"}


def test_what_nobody_here_can_know_is_said_and_as_in_the_files() -> None:
    said = README.partition("\n## ")[0]
    text = "\n".join((INFRA / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    assert set(re.findall(r"`(\w+_IMAGE)`", said)) == set(re.findall(r"\b([A-Z]+_IMAGE)(?==|:-)", text))
    cluster = (INFRA / "aws" / "cluster.yaml").read_text()
    assert re.findall(r"InstanceType: (\S+)", cluster) == re.findall(r"\b\w+\.xlarge\b", said)
    assert "resources: {CPU: 4, GPU: 1}" in cluster
    assert re.findall(r"DeviceName: (\S+)", cluster) == re.findall(r"`(/dev/\w+)`", said)
    pods = (INFRA / "kubernetes" / "rayjob.yaml").read_text()
    assert 'limits: {cpu: "6", memory: 24Gi, nvidia.com/gpu: 1}' in pods
    script = (INFRA / "slurm" / "pipeline.sbatch").read_text()
    assert "--cpus-per-task=16\n" in script
    assert "--gpus-per-node=4\n" in script


@pytest.mark.parametrize("words", list(commands()), ids=lambda words: " ".join(words[:2]))
def test_command_is_one_that_there_is(words: list[str]) -> None:
    if words[0] == "ray":
        check_command(words)
        if words[1] == "exec":
            check_command(shlex.split(words[3]))
    elif words[:2] == ["docker", "build"]:
        given = re.findall(r"--build-arg (\w+)=", " ".join(words))
        assert set(given) <= set(re.findall(r"^ARG (\w+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE))
    elif words[:2] == ["docker", "compose"]:
        assert words[2:] == ["-f", "infra/compose.yaml", "run", "--rm", "pipeline"]
        assert "  pipeline:\n" in (INFRA / "compose.yaml").read_text()
    else:
        assert words[0] in ("chmod", "sh", "kubectl", "sbatch"), words
    for word in words:
        if word.startswith("infra/"):
            assert (ROOT / word).exists(), word


def test_table_of_rights_is_that_of_the_policies() -> None:
    rows = re.findall(r"^\| \[(\w+)\][^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", README, re.MULTILINE)
    assert [row[0] for row in rows] == ["reader", "writer", "maintainer"]
    for name, *cells in rows:
        actions = {action for statement in read_policy(name)["Statement"] for action in statement["Action"]}
        for cell, action in zip(cells, ("ListBucket", "GetObject", "PutObject", "DeleteObject"), strict=True):
            assert bool(cell.strip()) == (f"s3:{action}" in actions), (name, action)
