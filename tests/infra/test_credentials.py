"""A pod's service account as its right to a bucket: EKS Pod Identity, whose agent a server here stands in for.

Both of the clients that reach a bucket, s3fs and tensorstore, must find the credentials by themselves.
"""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs
from commands import ok, run_cli, write_jsonl
from iam_server import guarded, read_policy
from quick import quick_runs

TOKEN = "the token of a service account"


@contextmanager
def agent(options: dict[str, object], token_file: Path) -> Iterator[dict[str, str]]:
    """Yield what EKS puts into the environment of a pod, with an agent that hands out credentials for its token."""
    session = {
        "AccessKeyId": options["key"],
        "SecretAccessKey": options["secret"],
        "Token": options["token"],
        "Expiration": "2099-01-01T00:00:00Z",
    }

    class Agent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization") == TOKEN
            body = json.dumps(session if known else {}).encode()
            self.send_response(200 if known else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    token_file.write_text(TOKEN)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{server.server_port}/v1/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token_file),
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": str(options["endpoint_url"]),
            }
        finally:
            server.shutdown()
            thread.join()


def test_service_account_writes_to_the_bucket_without_a_key(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": str(number), "prompt": f"Please tell me about number {number}."} for number in range(8)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with guarded() as storage, quick_runs():
        url = storage.root.new_url()
        command = ("extract", corpus, "--model", tiny_model, "--store", url, "--layers", "1", "--passes", "padded",
                   "--pass-tokens", "64", "--json")  # fmt: skip
        with agent(storage.role("pod", read_policy("reader")), tmp_path / "token") as environment:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            denied = run_cli(*command)
            assert (denied.code, "access denied" in denied.stderr) == (2, True), denied.stderr
        s3fs.S3FileSystem.clear_instance_cache()  # a process keeps its credentials until they expire
        with agent(storage.role("pod", read_policy("writer")), tmp_path / "token") as environment:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            assert ok(*command).json["units_failed"] == 0
            (found,) = ok(
                "sql", url, "SELECT count(resid_post(row, 1)) AS n, count(*) AS tokens FROM tokens", "--json"
            ).json
            assert found["n"] == found["tokens"] > 0
