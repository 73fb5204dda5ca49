"""Object storage on loopback: the real servers that tests talk to, each started once and ended by its process.

rclone's S3 server ignores create-only writes, moto's honours them; Azurite is reached through fsspec alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from cliffstore.access import fsspec_options

SERVERS = Path(sys.prefix) / "servers"
"""Where `make test` puts programs that are no Python packages."""
START_SECONDS = 60.0
BUCKET = "bucket"


@dataclass(frozen=True)
class Storage:
    """One server: the URL of a bucket in it, and the options that reach it."""

    bucket: str
    options: dict[str, object]
    port: int

    def new_url(self) -> str:
        """Return the URL of a folder that nobody has used."""
        return f"{self.bucket}/{uuid.uuid4().hex}/store"

    def through(self, port: int) -> Storage:
        """Return the same server, reached through another port."""
        options = {
            name: value.replace(f":{self.port}", f":{port}") if isinstance(value, str) else value
            for name, value in self.options.items()
        }
        return Storage(self.bucket, options, port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """Run a server until it is no longer needed."""
    log = folder / f"server-{port}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


@contextmanager
def rclone(root: Path | None = None) -> Iterator[Storage]:
    """S3 by rclone: checks signatures, ignores create-only writes. Its buckets are the folders of `root`, if given."""
    program = SERVERS / "rclone"
    if not program.exists():
        pytest.skip(f"rclone is not at {program}: run `make test`")
    port, key, secret = free_port(), secrets.token_hex(8), secrets.token_hex(20)
    with temporary_folder() as folder:
        root = root or folder / "root"
        (root / BUCKET).mkdir(parents=True, exist_ok=True)
        command = [
            str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}",
            "--config", os.devnull, str(root),
        ]  # fmt: skip
        with running(command, port, folder):
            yield Storage(f"s3://{BUCKET}", s3_options(port, key, secret), port)


@contextmanager
def moto() -> Iterator[Storage]:
    """S3 by moto: honours create-only writes, knows no signatures."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with temporary_folder() as folder, running(command, port, folder):
        new_bucket = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(new_bucket, timeout=30).close()
        yield Storage(f"s3://{BUCKET}", s3_options(port, "moto", secrets.token_hex(20)), port)


@contextmanager
def azurite() -> Iterator[Storage]:
    """Azure Blob Storage by Azurite, for a scheme that only fsspec speaks."""
    program = SERVERS / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        pytest.skip(f"Azurite is not at {program}: install npm, then run `make test`")
    account, key = "cliffstore", secrets.token_hex(32) + "=="
    port = free_port()
    with temporary_folder() as folder:
        command = [
            str(program), "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry",
            "--blobHost", "127.0.0.1", "--blobPort", str(port),
        ]  # fmt: skip
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{account};"
        )
        os.environ["AZURITE_ACCOUNTS"] = f"{account}:{key}"
        try:
            with running(command, port, folder):
                options: dict[str, object] = {"connection_string": connection}
                fsspec.filesystem("abfs", **options).mkdir(BUCKET)
                yield Storage(f"abfs://{BUCKET}", options, port)
        finally:
            del os.environ["AZURITE_ACCOUNTS"]


def s3_options(port: int, key: str, secret: str) -> dict[str, object]:
    return {"endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1", "key": key, "secret": secret}


def filesystem(storage: Storage) -> fsspec.AbstractFileSystem:
    """Return a file system on a server, for looking at it from outside."""
    scheme = storage.bucket.partition("://")[0]
    return fsspec.filesystem(scheme, **fsspec_options(storage.bucket, storage.options))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cs-server-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
