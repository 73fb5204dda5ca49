"""One mapping of storage options for everything that reaches a URL: fsspec, tensorstore, zarr-python.

For `s3://` the options are named as s3fs names them: `endpoint_url`, `region`, `profile`, `anon`, `key`, `secret`,
`token`, `requester_pays`. What is not given comes from where AWS tools look for it: environment, profiles, roles.
Options of other schemes are fsspec's own and pass through unchanged.
"""

from __future__ import annotations

import atexit
import os
import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from cliffstore.errors import ConfigError

Options = Mapping[str, object]

_SECRET = re.compile(r"key|secret|token|password|credential|connection_string|sas", re.IGNORECASE)
_CONNECT_SECONDS, _READ_SECONDS = 10, 30
TENSORSTORE_RETRIES = {
    f"{service}_request_retries": {"max_retries": 6, "initial_delay": "200ms", "max_delay": "5s"}
    for service in ("s3", "gcs")
}
"""What tensorstore does by itself; `cliffstore.store.patience` waits for longer."""
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
_DEFAULT_REGION = "us-east-1"
_S3, _GS, _AZURE = ("s3fs", "s3"), ("gcsfs", "gs"), ("adlfs", "azure")
_PACKAGES = {"s3": _S3, "s3a": _S3, "gs": _GS, "gcs": _GS, "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE}
"""Scheme -> the package that fsspec opens it with, and the extra of cliffstore that installs it."""


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower case; `file` for a path."""
    head, found, _ = url.partition("://")
    return head.lower() if found else "file"


def check_url(url: str) -> str:
    """Return `url` if it carries no credentials: a store's URL is written into logs and tables.

    Raises
    ------
    ConfigError
        It does; the message does not repeat them.
    """
    parts = urlsplit(url) if "://" in url else None
    if parts is not None and (parts.username is not None or parts.query):
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ConfigError(
            f"URL {shown} carries credentials or a query, which would end up in logs and tables: give them by "
            "environment, profile or storage options"
        )
    return url


def without_secrets(text: str, options: Options) -> str:
    """Return `text` with the values of secret options blotted out."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            text = without_secrets(text, value)
        elif isinstance(value, str) and len(value) > 3 and _SECRET.search(name):
            text = text.replace(value, "***")
    return text


def fsspec_options(url: str, options: Options) -> dict[str, object]:
    """Return the options that fsspec takes for a URL."""
    if scheme_of(url) not in ("s3", "s3a"):
        return dict(options)
    region, endpoint = _resolved(options)
    config: dict[str, object] = {
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": _seconds("CONNECT", _CONNECT_SECONDS),
        "read_timeout": _seconds("READ", _READ_SECONDS),
    }
    found = {name: value for name, value in options.items() if name != "region"}
    if endpoint is not None:
        # Named here, because fsspec keeps file systems by their options and would not see the environment change.
        found["endpoint_url"] = endpoint
        # Other servers than Amazon's answer a range with the checksum of the whole object.
        config |= dict.fromkeys(_CHECKSUMS, "when_required")
    return {
        **found,
        "client_kwargs": {"region_name": region, **_mapping(options, "client_kwargs")},
        "config_kwargs": {**config, **_mapping(options, "config_kwargs")},
        "use_listings_cache": False,  # a listing decides what is extracted
    }


def filesystem(url: str, options: Options) -> tuple[AbstractFileSystem, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises
    ------
    ConfigError
        What opens this scheme is not installed; the message says how to install it.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url, **fsspec_options(url, options))
    except ImportError as error:
        if scheme_of(url) not in _PACKAGES:
            raise
        package, extra = _PACKAGES[scheme_of(url)]
        raise ConfigError(
            f"{scheme_of(url)}:// needs {package} ({' '.join(str(error).split())}): pip install 'cliffstore[{extra}]'"
        ) from None
    return fs, path


def kvstore(url: str, options: Options) -> dict[str, object] | None:
    """Return tensorstore's specification of a URL as a folder of objects, None where it does not speak the scheme."""
    scheme, rest = scheme_of(url), url.partition("://")[2] or url
    bucket, _, path = rest.partition("/")
    folder = f"{path.strip('/')}/".lstrip("/")
    if scheme == "file":
        return {"driver": "file", "path": f"{os.path.abspath(rest)}/"}
    if scheme in ("s3", "s3a"):
        return {"driver": "s3", "bucket": bucket, "path": folder, **_s3(options)}
    if scheme in ("gs", "gcs") and not is_only_for_fsspec(url, options):
        return {"driver": "gcs", "bucket": bucket, "path": folder}
    return None


def is_only_for_fsspec(url: str, options: Options) -> bool:
    """Return whether options of Google Storage say what tensorstore cannot be told: it finds credentials by itself."""
    given = options.get("token") not in (None, "google_default") or bool(options.get("endpoint_url"))
    return scheme_of(url) in ("gs", "gcs") and given


def tensorstore_environment() -> None:
    """Set the time-outs that tensorstore reads from the environment, unless the user did."""
    for name, seconds in (("CONNECT_TIMEOUT", _CONNECT_SECONDS), ("LOW_SPEED_TIME", _READ_SECONDS)):
        limit = _seconds("CONNECT" if name.startswith("CONNECT") else "READ", seconds)
        os.environ.setdefault(f"TENSORSTORE_CURL_{name}_SECONDS", str(limit))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "64")


def _seconds(what: str, default: int) -> int:
    return int(os.environ.get(f"CLIFFSTORE_{what}_TIMEOUT", default))


def _s3(options: Options) -> dict[str, object]:
    region, endpoint = _resolved(options)
    spec: dict[str, object] = {"aws_region": region, "aws_credentials": _credentials(options)}
    if endpoint is not None:
        spec["endpoint"] = endpoint.rstrip("/")
    if options.get("requester_pays"):
        spec["requester_pays"] = True
    return spec


def _credentials(options: Options) -> dict[str, object]:
    if options.get("anon"):
        return {"type": "anonymous"}
    if options.get("key"):
        file = _credentials_file(*(str(options.get(name) or "") for name in ("key", "secret", "token")))
        return _profile("default", file, file)
    profile = options.get("profile") or os.environ.get("AWS_PROFILE")
    if options.get("profile") or (profile and not os.environ.get("AWS_ACCESS_KEY_ID")):
        folder = Path.home() / ".aws"
        return _profile(
            str(profile),
            os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or str(folder / "credentials"),
            os.environ.get("AWS_CONFIG_FILE") or str(folder / "config"),
        )
    return {"type": "environment" if os.environ.get("AWS_ACCESS_KEY_ID") else "default"}


def _profile(name: str, credentials_file: str, config_file: str) -> dict[str, object]:
    # All three: tensorstore does not find the others by itself.
    return {"type": "profile", "profile": name, "credentials_file": credentials_file, "config_file": config_file}


@lru_cache
def _credentials_file(key: str, secret: str, token: str) -> str:
    """Write given credentials where tensorstore can read them: a file of this user, removed when the process ends."""
    descriptor, path = tempfile.mkstemp(prefix="cliffstore-")  # mode 0600
    lines = [f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}"]
    lines += [f"aws_session_token = {token}"] if token else []
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(["[default]", *lines, ""]))
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


def endpoint_of(options: Options) -> str | None:
    """Return the S3 endpoint that options, environment and profile name, None for Amazon's own."""
    return _resolved(options)[1]


def _resolved(options: Options) -> tuple[str, str | None]:
    """Return region and endpoint of S3, the endpoint only where it is not Amazon's own."""
    client = _mapping(options, "client_kwargs")
    region = options.get("region") or client.get("region_name")
    endpoint = options.get("endpoint_url") or client.get("endpoint_url")
    profile = options.get("profile")
    environment = tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith("AWS_")))
    found = _from_botocore(str(profile) if profile else None, environment)
    return str(region or found[0] or _DEFAULT_REGION), str(endpoint) if endpoint else found[1]


@lru_cache
def _from_botocore(profile: str | None, environment: tuple[tuple[str, str], ...]) -> tuple[str | None, str | None]:
    """Return region and endpoint as environment and profile give them to AWS tools; kept while both are the same."""
    try:
        from botocore.session import Session
    except ImportError as error:
        raise ConfigError(f"s3:// needs s3fs and botocore ({error}): pip install 'cliffstore[s3]'") from None
    from botocore.exceptions import BotoCoreError

    try:
        session = Session(profile=profile)
        region = session.get_config_variable("region")
        client = session.create_client("s3", region_name=region or _DEFAULT_REGION)
    except BotoCoreError as error:
        raise ConfigError(f"AWS settings in environment or profile: {error}") from None
    endpoint = client.meta.endpoint_url
    return region, None if urlsplit(endpoint).netloc.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint


def _mapping(options: Options, name: str) -> Mapping[str, object]:
    value = options.get(name)
    return value if isinstance(value, Mapping) else {}
