"""Answers of another model, asked over HTTP as OpenAI's chat completions are.

A request is a function of the example and the settings alone (temperature 0, a fixed seed), yet a server may answer it
differently each time. So answers are kept by the digest of their request in a file of JSON lines: an export that finds
it asks for nothing that it holds, and gives the same bytes. What was answered before a failure is kept too.

The key is read from the environment alone. It goes to the endpoint in a header, follows no redirect, and is blotted out
of what the endpoint says.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from http.client import HTTPException
from threading import Event
from typing import IO
from urllib.parse import urlsplit

from cliffstore.access import check_url
from cliffstore.errors import EndpointError, SelectionError
from cliffstore.publish.formats import CONVERSATION, Row, conversation
from cliffstore.publish.targets import TemplateTarget
from cliffstore.store.objects import ObjectStore

KEY_VARIABLE = "CLIFFSTORE_ENDPOINT_KEY"
ANSWERS = "answers.jsonl"
AT_A_TIME = 8
ATTEMPTS = 6
_SECONDS = 120.0
_LONGEST_WAIT = 30.0
_LARGEST_ANSWER = 4 << 20
_PASSES_BY_ITSELF = {408, 409, 425, 429, 500, 502, 503, 504}


class AnswerBook:
    """Answers by the digest of their request; null where a model gave none. One JSON object a line.

    Raises
    ------
    SelectionError
        The file is no such book.
    """

    def __init__(self, objects: ObjectStore, name: str) -> None:
        self._objects, self._name = objects, name
        self._answers: dict[str, str | None] = {}
        self._changed = False
        if not objects.exists(name):
            return
        try:
            for line in objects.get(name).decode().splitlines():
                entry = json.loads(line)
                self._answers[str(entry["request"])] = None if entry["answer"] is None else str(entry["answer"])
        except (ValueError, KeyError, TypeError):
            raise SelectionError(
                f"{objects.path(name)} is no file of answers: remove it, or name another with --target-answers"
            ) from None

    def __contains__(self, request: str) -> bool:
        return request in self._answers

    def __getitem__(self, request: str) -> str | None:
        return self._answers[request]

    def __setitem__(self, request: str, answer: str | None) -> None:
        self._changed |= request not in self._answers
        self._answers[request] = answer

    def save(self) -> None:
        """Write what is new."""
        if self._changed:
            lines = (json.dumps({"request": key, "answer": self._answers[key]}) for key in sorted(self._answers))
            self._objects.put(self._name, ("\n".join(lines) + "\n").encode())
        self._changed = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers.

    Attributes
    ----------
    url : up to `/v1`, or further
    wait : seconds before a second attempt, doubled each time
    """

    url: str
    model: str
    max_tokens: int
    key: str | None = field(default=None, repr=False)
    wait: float = 1.0

    @classmethod
    def check(cls, url: str, model: str | None, max_tokens: int) -> Endpoint:
        """Return the endpoint that settings and environment mean. Raises `ConfigError`, `SelectionError`."""
        check_url(url)
        if urlsplit(url).scheme not in ("http", "https"):
            raise SelectionError(f"target-endpoint {url}: say a URL such as https://host/v1")
        if model is None:
            raise SelectionError("target-endpoint asks a model: say which with --target-model")
        return cls(url.rstrip("/"), model, max_tokens, os.environ.get(KEY_VARIABLE) or None)

    def body(self, turns: Sequence[Mapping[str, str]]) -> dict[str, object]:
        """Return the request for a conversation."""
        return {
            "model": self.model,
            "messages": list(turns),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "seed": 0,
            "stream": False,
        }

    def digest(self, body: Mapping[str, object]) -> str:
        """Return what a request is known by."""
        return hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()

    def ask(self, body: Mapping[str, object], stop: Event) -> str | None:
        """Return the answer to a request, without thinking; None where there is none, or it was cut short.

        Parameters
        ----------
        stop : once it is set, there is no further attempt

        Raises
        ------
        SelectionError
            The endpoint refuses the request.
        EndpointError
            It does not answer, however often it is asked, or with what is no answer.
        """
        problem = ""
        for attempt in range(ATTEMPTS):
            asked_to_wait = 0.0
            try:
                return _answer_in(self._post(body), self.url)
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"answers {error.code}{self._what_it_says(error)}"
                    if error.code not in _PASSES_BY_ITSELF:
                        hint = f"; the key is read from {KEY_VARIABLE}" if error.code in (401, 403) else ""
                        raise SelectionError(f"target-endpoint {self.url} {problem}{hint}") from None
                    asked_to_wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException) as error:
                problem = f"does not answer ({self._blotted(str(error)) or type(error).__name__})"
            backoff = self.wait * 2**attempt * (0.5 + random.random() / 2)
            if attempt + 1 < ATTEMPTS and stop.wait(min(max(backoff, asked_to_wait), _LONGEST_WAIT)):
                break
        raise EndpointError(
            f"target-endpoint {self.url} {problem}, {attempt + 1} times: run the same command again to go on from there"
        )

    def _post(self, body: Mapping[str, object]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = self.url if self.url.endswith("/chat/completions") else f"{self.url}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=_SECONDS) as response:
            content: bytes = response.read(_LARGEST_ANSWER + 1)
        return content

    def _what_it_says(self, error: IO[bytes]) -> str:
        try:
            said = json.loads(error.read(1 << 16))["error"]["message"]
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return ""
        line = "".join(char if char.isprintable() else " " for char in self._blotted(str(said)))
        return f" ({line[:200]})"

    def _blotted(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


@dataclass(frozen=True, slots=True)
class EndpointTarget:
    """What another model answers to the example's conversation, or to a template over its columns."""

    endpoint: Endpoint
    book: AnswerBook
    template: TemplateTarget | None = None
    column: str | None = None

    @property
    def needs(self) -> tuple[str, ...] | None:
        return CONVERSATION if self.template is None else None

    def of(self, rows: Sequence[Row], texts: Sequence[str | None]) -> list[str | None]:
        """Return an answer for each row. What was answered is kept, also where one fails. Errors as for `ask`."""
        bodies = [self.endpoint.body(self._turns(row)) for row in rows]
        digests = [self.endpoint.digest(body) for body in bodies]
        unknown = {digest: body for digest, body in zip(digests, bodies, strict=True) if digest not in self.book}
        pool, stop = ThreadPoolExecutor(AT_A_TIME, "endpoint"), Event()
        asked = {pool.submit(self.endpoint.ask, body, stop): digest for digest, body in unknown.items()}
        try:
            for future in as_completed(asked):
                self.book[asked[future]] = future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            for future, digest in asked.items():
                if not future.cancelled() and future.exception() is None:
                    self.book[digest] = future.result()
            self.book.save()
        return [self.book[digest] for digest in digests]

    def _turns(self, row: Row) -> list[dict[str, str]]:
        return conversation(row) if self.template is None else [{"role": "user", "content": self.template.render(row)}]

    def __str__(self) -> str:
        asked = "" if self.template is None else f" when asked {self.template}"
        return f"what {self.endpoint.model} at {self.endpoint.url} answers{asked}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key elsewhere."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _answer_in(content: bytes, url: str) -> str | None:
    try:
        choice = json.loads(content)["choices"][0]
        said, finished = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise EndpointError(f"target-endpoint {url} answers with what is no chat completion") from None
    if finished == "length" or not isinstance(said, str):
        return None
    return said.rpartition("</think>")[2].strip() or None


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
