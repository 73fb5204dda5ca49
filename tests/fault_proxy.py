"""A proxy before an S3 server that answers as on a bad day: errors, resets, time-outs, lost answers."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STALL_SECONDS = 4.0
"""Longer than the time-out that tests set for reading."""
SLOW_PIECES, SLOW_SECONDS = 8, 0.05
FAULTS = ("500", "503", "429", "reset", "stall", "slow", "cut")
WRITES = ("PUT", "POST", "DELETE")


@dataclass
class Weather:
    """Which faults there are, and how many of them happened.

    Attributes
    ----------
    share : of the requests that meet a fault
    faults : `503` and the like; `reset` before the request is read; `stall`, no answer; `slow`, the answer in small
        pieces; `cut`, half of the answer; `lost`, the request is done but its answer never comes
    methods : requests that can meet a fault
    most : faults after which the weather is fine, None for never
    met, requests, paths : how often which fault, method, and method and path came
    read : bytes that were answered to GET, by path
    """

    share: float = 0.0
    faults: Sequence[str] = FAULTS
    methods: Sequence[str] = ("GET", "HEAD", *WRITES)
    seed: int = 0
    most: int | None = None
    met: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._numbers, self._lock = random.Random(self.seed), threading.Lock()

    def answered(self, method: str, path: str, size: int) -> None:
        if method == "GET":
            with self._lock:
                self.read[path] += size

    def next(self, method: str, path: str) -> str | None:
        with self._lock:
            self.requests[method] += 1
            self.paths[f"{method} {path}"] += 1
            if self.most is not None and sum(self.met.values()) >= self.most:
                return None
            if method not in self.methods or self._numbers.random() >= self.share:
                return None
            fault = self._numbers.choice(list(self.faults))
            self.met[fault] += 1
            return fault


@contextmanager
def proxy(port: int, weather: Weather) -> Iterator[int]:
    """Pass requests on to a server on loopback; yield the port of the proxy."""

    class Handler(_Handler):
        target = port

    Handler.weather = weather
    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # clients open many connections at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: int
    weather: Weather

    def _serve(self) -> None:
        body = self._body()
        fault = self.weather.next(self.command, self.path)
        if fault == "reset":
            return self._reset()
        if fault == "stall":
            time.sleep(STALL_SECONDS)
            return self._reset()
        if fault is not None and fault.isdigit():
            return self._answer(int(fault), [], b"" if self.command == "HEAD" else _error(fault))
        status, headers, content = self._forward(body)
        self.weather.answered(self.command, self.path, len(content))
        if fault == "lost":
            return self._reset()
        return self._answer(status, headers, content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("transfer-encoding", "expect", "connection", "content-length"):
                    connection.putheader(name, value)
            if self.command in WRITES:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = answer.read()
            skipped = ("transfer-encoding", "connection", "content-length")
            headers = [pair for pair in answer.getheaders() if pair[0].lower() not in skipped]
            length = answer.getheader("Content-Length")
            self._length = length if self.command == "HEAD" and length else str(len(content))
            return answer.status, headers, content
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header(
            "Content-Length", getattr(self, "_length", str(len(content))) if headers else str(len(content))
        )
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "cut" and len(content) > 1:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self._reset()
        if fault == "slow":
            step = max(len(content) // SLOW_PIECES, 1)
            for first in range(0, len(content), step):
                self.wfile.write(content[first : first + step])
                self.wfile.flush()
                time.sleep(SLOW_SECONDS)
            return None
        self.wfile.write(content)
        return None

    def _reset(self) -> None:
        self.close_connection = True
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
        except OSError:
            pass


_NAMES = {"403": "AccessDenied", "404": "NoSuchKey", "429": "TooManyRequests", "503": "SlowDown"}


def _error(code: str) -> bytes:
    name = _NAMES.get(code, "InternalError")
    return f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>a bad day</Message></Error>".encode()
