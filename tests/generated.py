"""Running `cliffstore generate` in tests: models that are loaded once, and servers that stand for other people's."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

import pytest
from commands import Result, run_cli

if TYPE_CHECKING:
    from cliffstore.model.identity import ModelSource

Row = dict[str, object]


@contextmanager
def models_loaded_once() -> Iterator[None]:
    """Load each model and tokenizer once: many runs in one process would do little else."""
    from cliffstore.model import loader
    from cliffstore.run.generation import backend

    loaded: dict[tuple[object, ...], object] = {}

    def once(load: Callable[..., object]) -> Callable[..., object]:
        def found(source: ModelSource, *more: object, **options: object) -> object:
            key = (load.__name__, source.location, source.identity.config_digest, *more)
            if key not in loaded:
                loaded[key] = load(source, *more, **options)
            return loaded[key]

        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "load_model", once(loader.load_model))
        patch.setattr(loader, "load_tokenizer", once(loader.load_tokenizer))
        patch.setattr(backend, "load_tokenizer", loader.load_tokenizer)
        patch.setattr(backend, "tokenizer_digest", lru_cache(backend.tokenizer_digest))
        yield


def generate(corpus: str | Path, model: str | Path, output: str | Path, *more: str | Path) -> Result:
    """Run the command in this process."""
    return run_cli("generate", corpus, "--model", model, "-o", output, *more, "--json")


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def texts_of(path: Path) -> dict[str, tuple[object, ...]]:
    return {str(row["id"]): (row["thinking"], row["response"], row["finish"]) for row in rows_of(path)}


Answer = bytes | int | str
"""What a server does: content with 200, a status, or `reset` or `silence`."""


@dataclass
class Server:
    """What a server was asked, and how it answers the nth request."""

    url: str = ""
    answer: Callable[[int, Row], Answer] = lambda number, body: completion("Yes.")
    asked: list[Row] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: Lock = field(default_factory=Lock)


def completion(text: object, finish: str = "stop", **message: object) -> bytes:
    said = {"role": "assistant", "content": text, **message}
    return json.dumps(
        {"choices": [{"message": said, "finish_reason": finish}], "usage": {"completion_tokens": 3}}
    ).encode()


def prompt_in(body: Row) -> str:
    """Return the last turn that a request holds."""
    turns = body["messages"]
    assert isinstance(turns, list)
    return str(turns[-1]["content"])


@contextmanager
def served() -> Iterator[Server]:
    """Run a server on loopback whose answers the test decides."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.asked)
                server.asked.append(body)
                server.keys.append(self.headers["Authorization"])
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self._answer(server.answer(number, body))
            finally:
                with server.lock:
                    server.at_once -= 1

        def _answer(self, answer: Answer) -> None:
            if answer == "reset":  # no linger: the other side sees a reset, not an end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            if answer == "silence":  # until the other side gives up
                self.connection.recv(1)
                return
            status, content = (answer, b"{}") if isinstance(answer, int) else (200, answer)
            assert isinstance(content, bytes)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
