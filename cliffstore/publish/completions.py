"""A model that is asked over HTTP, as OpenAI's chat completions are: vLLM, SGLang, `transformers serve`, a provider.

One request is tried again where what failed passes by itself (a busy server, a connection that broke, an answer that
is none), after a wait that doubles and is drawn at random, or as long as the server asks for. What the server refuses
for good is an error of its own.

The key is read from the environment alone. It goes to the endpoint in a header, follows no redirect, and is blotted out
of what the endpoint says.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from threading import Event, Thread
from urllib.parse import urlsplit

from cliffstore.access import check_url
from cliffstore.errors import ConfigError, EndpointError, EndpointRefusedError

KEY_VARIABLE = "CLIFFSTORE_ENDPOINT_KEY"
ATTEMPTS = 6
_SECONDS = 120.0
_LONGEST_WAIT = 30.0
_LARGEST_ANSWER = 4 << 20
_BLOCK = 1 << 16
_TICK = 0.1
_PASSES_BY_ITSELF = {408, 409, 425, 429, 500, 502, 503, 504}
_REASONING = ("reasoning_content", "reasoning")
_MOST_TOKENS = (1 << 31) - 1
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can say and no file can hold."""
_WORD = re.compile("[A-Za-z_]{1,40}")
OTHER = "other"


_Said = tuple[int, Mapping[str, str], bytes]
"""Status, headers and content of an answer."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an endpoint answers.

    Attributes
    ----------
    text : of the answer; None where there is none
    reasoning : thinking that the server has told apart by itself
    finish : `stop`, `length`, or another word of the server, `other` if it is no word; None where it says none
    n_tokens : tokens that were generated, 0 where the server does not say
    """

    text: str | None
    reasoning: str | None = None
    finish: str | None = None
    n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers.

    Attributes
    ----------
    url : up to `/v1`, or further
    option : what named it, for errors
    wait : seconds before a second attempt, doubled each time
    timeout : seconds in which one attempt must answer
    """

    url: str
    model: str
    option: str = "endpoint"
    key: str | None = field(default=None, repr=False)
    wait: float = 1.0
    timeout: float = _SECONDS

    @classmethod
    def check(
        cls,
        url: str,
        model: str | None,
        option: str = "endpoint",
        *,
        of_model: str = "model",
        timeout: float = _SECONDS,
    ) -> Endpoint:
        """Return the endpoint that settings and environment mean.

        Parameters
        ----------
        option, of_model : options that name the endpoint and its model

        Raises
        ------
        ConfigError
            The URL is none, carries credentials, or no model is named.
        """
        check_url(url)
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"{option} {url}: say a URL such as https://host/v1")
        if model is None:
            raise ConfigError(f"{option} asks a model: say which with --{of_model}")
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY_VARIABLE} cannot be sent: a key has no line breaks, and is of ASCII characters")
        return cls(url.rstrip("/"), model, option, key or None, timeout=timeout)

    def body(self, turns: Sequence[Mapping[str, str]], max_tokens: int, **sampling: float) -> dict[str, object]:
        """Return the request for a conversation; the likeliest answer unless `sampling` says otherwise."""
        settings = {"temperature": 0, "seed": 0, **sampling}
        return {
            "model": self.model,
            "messages": list(turns),
            "max_tokens": max_tokens,
            **settings,
            "stream": False,
        }

    def digest(self, body: Mapping[str, object]) -> str:
        """Return what a request is known by."""
        return hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()

    def ask(self, body: Mapping[str, object], stop: Event) -> Completion:
        """Return the answer to a request.

        Parameters
        ----------
        stop : once it is set, no answer is waited for, and there is no further attempt

        Raises
        ------
        EndpointRefusedError
            The endpoint refuses the request.
        EndpointError
            It does not answer, or with what is no answer, however often it is asked.
        """
        problem = ""
        for attempt in range(ATTEMPTS):
            asked_to_wait = 0.0
            try:
                status, headers, content = self._exchange(body, stop)
                if status < HTTPStatus.MULTIPLE_CHOICES:
                    return _completion_in(content, self._blotted)
                problem = f"answers {status}{self._what_it_says(content)}"
                if status not in _PASSES_BY_ITSELF:
                    raise self._refusal(status, problem)
                asked_to_wait = _seconds(headers.get("Retry-After"))
            except EndpointRefusedError:
                raise
            except (OSError, HTTPException) as error:
                problem = f"does not answer ({self._blotted(str(error)) or type(error).__name__})"
            except ValueError:
                problem = "answers with what is no chat completion"
            backoff = self.wait * 2**attempt * (0.5 + random.random() / 2)
            if attempt + 1 < ATTEMPTS and stop.wait(min(max(backoff, asked_to_wait), _LONGEST_WAIT)):
                break
        raise EndpointError(
            f"{self.option} {self.url} {problem}, {attempt + 1} times: run the same command again to go on from there"
        )

    def _refusal(self, status: int, problem: str) -> EndpointRefusedError:
        hint = f"; the key is read from {KEY_VARIABLE}" if status in (401, 403) else ""
        error = EndpointRefusedError(f"{self.option} {self.url} {problem}{hint}")
        error.status = status
        return error

    def _exchange(self, body: Mapping[str, object], stop: Event) -> _Said:
        """Send a request, and wait for the answer no longer than `timeout` says or until `stop` is set.

        The socket's own timeout is for each of its reads, and a thread that reads cannot be stopped. So another thread
        reads, and is left behind.

        Raises
        ------
        OSError, HTTPException
            There is no answer.
        """
        answer: Future[_Said] = Future()
        given_up = Event()

        def read() -> None:
            try:
                answer.set_result(self._post(body, given_up))
            except BaseException as error:  # noqa: BLE001  # raised where the answer is waited for
                answer.set_exception(error)

        Thread(target=read, name="request", daemon=True).start()
        deadline = time.monotonic() + self.timeout
        while not wait([answer], _TICK).done:
            if stop.is_set() or time.monotonic() >= deadline:
                given_up.set()
                raise TimeoutError("timed out")
        return answer.result()

    def _post(self, body: Mapping[str, object], given_up: Event) -> _Said:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = self.url if self.url.endswith("/chat/completions") else f"{self.url}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            response = opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            content = bytearray()
            while len(content) <= _LARGEST_ANSWER and not given_up.is_set():
                block = response.read1(_BLOCK)
                if not block:
                    break
                content += block
            return response.status, response.headers, bytes(content)

    def _what_it_says(self, content: bytes) -> str:
        try:
            said = json.loads(content)["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        line = "".join(char if char.isprintable() else " " for char in self._blotted(str(said)))
        return f" ({line[:200]})"

    def _blotted(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key elsewhere."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _completion_in(content: bytes, blotted: Callable[[str], str]) -> Completion:
    """Return what an answer holds, made of valid text. Raises ValueError where it is no chat completion."""
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = _text_of(message["content"])
        reasoning = next((message[name] for name in _REASONING if isinstance(message.get(name), str)), None)
        usage = answer.get("usage")
        n_tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError("no chat completion") from None
    return Completion(
        None if text is None else _SURROGATE.sub("\ufffd", blotted(text)),
        _SURROGATE.sub("\ufffd", blotted(reasoning)) if reasoning else None,
        (finish if _WORD.fullmatch(finish) else OTHER) if isinstance(finish, str) else None,
        n_tokens if type(n_tokens) is int and 0 <= n_tokens <= _MOST_TOKENS else 0,
    )


def _text_of(content: object) -> str | None:
    """Return the text of a message, which may come in parts. Raises TypeError or KeyError where it is none."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part["type"] == "text")
    if content is None or isinstance(content, str):
        return content
    raise TypeError("no text")


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
