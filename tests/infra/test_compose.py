"""The compose file: valid, its commands exist, and its bucket is made by the policies, as often as one likes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import INFRA, check_command, check_pipeline, known_variables

COMPOSE = INFRA / "compose.yaml"
SCRIPTS = INFRA / "compose"
_STRINGS = {"type": "array", "items": {"type": "string"}}
_TIME = {"type": "string", "pattern": r"^(\d+(ms|s|m|h))+$"}
_IMAGE = r"^([a-z0-9./-]+:\$\{[A-Z]+:-[a-z]+\}|\$\{[A-Z]+_IMAGE:-[a-z0-9./-]+:[A-Za-z0-9.-]+\})$"
"""Of its own making, or one that may be another where a registry no longer has it."""
_SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "build": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "context": {"type": "string"},
                "dockerfile": {"type": "string"},
                "args": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "cap_drop": _STRINGS,
        "command": _STRINGS,
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["condition"],
                "properties": {
                    "condition": {"enum": ["service_started", "service_healthy", "service_completed_successfully"]}
                },
            },
        },
        "deploy": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "replicas": {"type": "integer"},
                "resources": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "reservations": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "devices": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["capabilities"],
                                        "additionalProperties": False,
                                        "properties": {
                                            "capabilities": _STRINGS,
                                            "count": {"type": ["string", "integer"]},
                                            "driver": {"type": "string"},
                                        },
                                    },
                                }
                            },
                        }
                    },
                },
            },
        },
        "entrypoint": _STRINGS,
        "environment": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
        "healthcheck": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "interval": _TIME,
                "retries": {"type": "integer"},
                "start_period": _TIME,
                "test": {**_STRINGS, "contains": {"const": "CMD"}},
                "timeout": _TIME,
            },
        },
        "image": {"type": "string", "pattern": _IMAGE},
        "init": {"type": "boolean"},
        "ports": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "profiles": _STRINGS,
        "security_opt": _STRINGS,
        "shm_size": {"type": ["number", "string"]},
        "volumes": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
}
SCHEMA = {
    # What these files use of the Compose Specification's schema/compose-spec.json, as it was on 2026-06-23.
    "type": "object",
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {"^[a-zA-Z0-9._-]+$": _SERVICE},
        },
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
}
OF_OTHER_IMAGES = {"BUCKET", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "WRITER_KEY", "WRITER_SECRET", "READER_KEY",
                   "READER_SECRET"}  # fmt: skip
"""Variables of MinIO and of make-bucket.sh."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def services_of_ray(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in compose["services"].items() if "build" in one}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_file_is_of_the_specification(name: str) -> None:
    jsonschema.validate(yaml.safe_load((INFRA / name).read_text()), SCHEMA)


def test_gpu_file_changes_services_that_there_are(compose: dict[str, Any]) -> None:
    over = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())
    assert set(over["services"]) <= set(services_of_ray(compose))


def test_services_volumes_and_files_are_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][needed], f"{name} waits for ever"
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith("."):
                assert (INFRA / source).exists(), volume
            else:
                assert source in compose["volumes"], volume
        if "build" in service:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            declared = re.findall(r"^ARG (\w+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
            assert set(service["build"]["args"]) <= set(declared)


def test_commands_exist_with_all_their_flags(compose: dict[str, Any]) -> None:
    for service in services_of_ray(compose).values():
        check_command(service["command"])
        if "healthcheck" in service:
            how, *words = service["healthcheck"]["test"]
            assert how == "CMD"
            check_command(words)


def test_environment_is_read_by_somebody(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        known = known_variables() if "build" in service else OF_OTHER_IMAGES
        assert set(service["environment"]) <= known, name


def test_the_pipeline_is_one_that_its_job_takes(compose: dict[str, Any]) -> None:
    config = check_pipeline(SCRIPTS / "pipeline.yaml")
    bucket = compose["services"]["bucket"]["environment"]["BUCKET"]
    assert config.store.startswith(f"s3://{bucket}/")
    assert config.extract.corpus == (f"s3://{bucket}/corpus.jsonl",)
    assert config.export.output.startswith(f"s3://{bucket}/")
    mounted = compose["services"]["head"]["volumes"]
    assert "./compose/pipeline.yaml:/etc/cliffstore/pipeline.yaml:ro" in mounted, "a job runs on the head"
    assert compose["services"]["pipeline"]["command"][-1] == "/etc/cliffstore/pipeline.yaml"


def test_every_node_has_the_token_and_no_port_is_open_to_others(compose: dict[str, Any]) -> None:
    for name, service in services_of_ray(compose).items():
        assert service["environment"]["RAY_AUTH_MODE"] == "token", name
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), name
        assert service["security_opt"] == ["no-new-privileges:true"]
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_head_takes_no_work_and_shows_metrics(compose: dict[str, Any]) -> None:
    head = compose["services"]["head"]["command"]
    assert {"--head", "--block", "--num-cpus=0", "--metrics-export-port=8080"} <= set(head)
    assert "--address=head:6379" in compose["services"]["worker"]["command"]


def copied(tmp_path: Path) -> Path:
    """Return the scripts in a folder that may be written to."""
    folder = tmp_path / "infra" / "compose"
    folder.mkdir(parents=True)
    for script in SCRIPTS.glob("*.sh"):
        (folder / script.name).write_text(script.read_text())
    return folder


def test_secrets_are_new_kept_and_for_their_owner_only(tmp_path: Path) -> None:
    script = copied(tmp_path) / "new-secrets.sh"
    env_file = tmp_path / "infra" / ".env"
    assert subprocess.run(["sh", str(script)], capture_output=True).returncode == 0
    first = env_file.read_text()
    assert oct(env_file.stat().st_mode & 0o777) == "0o600"
    again = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert (again.returncode, "there already" in again.stderr, env_file.read_text()) == (1, True, first)
    env_file.unlink()
    subprocess.run(["sh", str(script)], check=True)
    assert env_file.read_text() != first
    given = dict(line.split("=") for line in first.splitlines())
    needed = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    assert needed == set(given), "what compose.yaml insists on"
    secrets = [value for name, value in given.items() if name.endswith(("SECRET", "PASSWORD", "TOKEN"))]
    assert len(set(secrets)) == 4
    assert all(len(value) == 40 for value in secrets)  # MinIO takes secrets of 8 to 40 characters
    ignored = subprocess.run(["git", "check-ignore", "infra/.env"], cwd=INFRA.parent, capture_output=True, text=True)
    assert ignored.stdout.strip() == "infra/.env" or not (INFRA.parent / ".git").exists()


MC = """#!/bin/sh
# MinIO's client as make-bucket.sh meets it: remembers what was made in files, says no where the real one does.
set -eu
echo "$*" >> "$STATE/log"
case "$1 ${2:-} ${3:-}" in
"alias set "*) exit 0 ;;
"mb --ignore-existing "*) touch "$STATE/bucket" ;;
"admin policy create") cp "$6" "$STATE/$5.json" ;;
"admin policy attach")
    [ ! -e "$STATE/$7.policy" ] || { echo "already in effect" >&2; exit 1; }
    echo "$5" > "$STATE/$7.policy" ;;
"admin user add") touch "$STATE/$5.user" ;;
"admin user info") echo "PolicyName: $(cat "$STATE/$5.policy" 2>/dev/null || true)" ;;
"stat "*) [ -e "$STATE/corpus" ] ;;
"cp /corpus.jsonl "*) touch "$STATE/corpus" ;;
*) echo "mc $*: unknown" >&2; exit 1 ;;
esac
"""


def test_bucket_is_made_under_the_policies_and_again(tmp_path: Path) -> None:
    state, programs = tmp_path / "state", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    (programs / "mc").write_text(MC)
    (programs / "mc").chmod(0o755)
    script = (SCRIPTS / "make-bucket.sh").read_text().replace("/policies/", f"{INFRA}/policies/")
    script = script.replace("/tmp/", f"{tmp_path}/")
    given = {name: name.lower() for name in OF_OTHER_IMAGES} | {"BUCKET": "acts"}
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "STATE": str(state), **given}
    for _ in range(2):
        done = subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (state / "bucket").exists()
    for name in ("writer", "reader"):
        policy = (state / f"cliffstore-{name}.json").read_text()
        assert policy == (INFRA / "policies" / f"{name}.json").read_text().replace("BUCKET", "acts")
        assert (state / f"{name}_key.user").exists()
        assert (state / f"{name}_key.policy").read_text() == f"cliffstore-{name}\n"
    log = (state / "log").read_text().splitlines()
    assert sum(line.startswith("cp ") for line in log) == 1, "a corpus that is there is left alone"
    assert sum("policy attach" in line for line in log) == 2
