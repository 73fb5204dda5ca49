"""One mapping of storage options: what fsspec and tensorstore make of it, and where secrets do not go."""

from __future__ import annotations

import configparser
import re
import sys
import tomllib
from pathlib import Path

import pytest
from commands import run_cli

from cliffstore.access import _PACKAGES, check_url, filesystem, fsspec_options, kvstore, without_secrets
from cliffstore.errors import ConfigError

AWS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_local_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert kvstore("acts", {}) == {"driver": "file", "path": f"{tmp_path}/acts/"}
    assert kvstore("file:///data/acts/", {}) == {"driver": "file", "path": "/data/acts/"}


def test_bucket_and_folder() -> None:
    assert kvstore("gs://bucket/a/b", {}) == {"driver": "gcs", "bucket": "bucket", "path": "a/b/"}
    assert kvstore("gs://bucket", {}) == {"driver": "gcs", "bucket": "bucket", "path": ""}
    assert kvstore("abfs://container/a", {}) is None
    assert kvstore("memory://a", {}) is None


def test_google_storage_without_its_package_is_one_line_that_says_what_to_install(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # cannot be imported, wherever the tests run
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"prompt": "Hello."}\n')
    for command in (
        ["extract", corpus, "--model", tiny_model, "--store", "gs://bucket/store"],
        ["extract", "gs://bucket/corpus.jsonl", "--model", tiny_model, "--store", tmp_path / "store"],
        ["info", "gs://bucket/store"],
    ):
        result = run_cli(*command)
        assert result.code == 2
        (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert error == result.stderr.splitlines()[-1]
        assert "gs:// needs gcsfs" in error
        assert "pip install 'cliffstore[gs]'" in error
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("scheme", "extra"),
    [("s3", "s3"), ("s3a", "s3"), ("gcs", "gs"), ("az", "azure"), ("abfs", "azure"), ("abfss", "azure")],
)
def test_missing_package_of_a_scheme_is_named_by_its_extra(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("not\nhere")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(ConfigError, match=re.escape(f"(not here): pip install 'cliffstore[{extra}]'")):
        filesystem(f"{scheme}://bucket/a", {})
    with pytest.raises(ImportError, match="not"):
        filesystem("gopher://host/a", {})


def test_each_extra_that_an_error_names_is_there() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, extra in set(_PACKAGES.values()):
        assert any(one.startswith(package) for one in declared["optional-dependencies"][extra])


def test_given_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    options = {"endpoint_url": "http://127.0.0.1:2/", "region": "us-west-2", "anon": True}
    spec = kvstore("s3://bucket/a", options)
    assert spec is not None
    assert (spec["endpoint"], spec["aws_region"]) == ("http://127.0.0.1:2", "us-west-2")
    assert spec["aws_credentials"] == {"type": "anonymous"}
    given = fsspec_options("s3://bucket/a", options)
    assert given["endpoint_url"] == "http://127.0.0.1:2/"
    assert given["client_kwargs"] == {"region_name": "us-west-2"}
    assert given["anon"] is True
    assert "region" not in given


def test_environment_is_read_as_aws_tools_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    spec = kvstore("s3://bucket/a", {})
    assert spec is not None
    assert (spec["endpoint"], spec["aws_region"]) == ("http://127.0.0.1:3", "eu-west-1")
    assert spec["aws_credentials"] == {"type": "environment"}


def test_profile_brings_its_region_and_endpoint(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        "[profile lab]\nregion = ap-south-1\nendpoint_url = http://127.0.0.1:4\n", encoding="utf-8"
    )
    spec = kvstore("s3://bucket/a", {"profile": "lab"})
    assert spec is not None
    assert (spec["endpoint"], spec["aws_region"]) == ("http://127.0.0.1:4", "ap-south-1")
    assert spec["aws_credentials"] == {
        "type": "profile", "profile": "lab", "credentials_file": f"{tmp_path}/.aws/credentials",
        "config_file": f"{tmp_path}/.aws/config",
    }  # fmt: skip


def test_half_of_the_credentials_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY"):
        fsspec_options("s3://bucket/a", {})


def test_unknown_profile_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="nobody"):
        kvstore("s3://bucket/a", {"profile": "nobody"})


def test_amazons_own_endpoint_is_left_to_the_libraries() -> None:
    spec = kvstore("s3://bucket/a", {})
    assert spec is not None
    assert "endpoint" not in spec
    assert spec["aws_region"] == "us-east-1"
    assert spec["aws_credentials"] == {"type": "default"}


def test_given_keys_reach_tensorstore_by_a_file_of_this_user_alone() -> None:
    spec = kvstore("s3://bucket/a", {"key": "me", "secret": "hush-hush", "token": "t0ken"})
    assert spec is not None
    assert "hush-hush" not in str(spec)
    credentials = spec["aws_credentials"]
    assert isinstance(credentials, dict)
    file = Path(credentials["credentials_file"])
    assert file.stat().st_mode & 0o777 == 0o600
    found = configparser.ConfigParser()
    found.read(file)
    assert dict(found["default"]) == {
        "aws_access_key_id": "me", "aws_secret_access_key": "hush-hush", "aws_session_token": "t0ken",
    }  # fmt: skip


@pytest.mark.parametrize("url", ["s3://me:hush@bucket/a", "https://host/a?X-Amz-Signature=hush", "s3://hush@bucket"])
def test_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        check_url(url)
    assert "hush" not in str(caught.value)


def test_secrets_are_blotted_out_of_messages() -> None:
    options = {
        "secret": "hush-hush", "endpoint_url": "http://host", "client_kwargs": {"aws_session_token": "t0ken"},
        "connection_string": "AccountKey=abc",
    }  # fmt: skip
    text = "http://host said hush-hush, t0ken and AccountKey=abc"
    assert without_secrets(text, options) == "http://host said ***, *** and ***"
