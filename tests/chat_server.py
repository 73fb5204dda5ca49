"""A server on this machine that answers as OpenAI's chat completions do, and remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

Answer = tuple[int, object]


def said(text: str | None, finish: str = "stop") -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


@dataclass
class Served:
    """What a server was asked, and how it answers the nth request."""

    url: str = ""
    answer: Callable[[int, dict[str, object]], Answer] = lambda number, body: said(f"I must decline ({number}).")
    asked: list[dict[str, object]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)


@contextmanager
def serving() -> Iterator[Served]:
    """Serve until the block ends."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                number = len(served.asked)
                served.asked.append({"path": self.path, **body})
                served.keys.append(self.headers["Authorization"])
            status, said = served.answer(number, body)
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            if status in (302, 307):
                self.send_header("Location", f"{served.url}/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
