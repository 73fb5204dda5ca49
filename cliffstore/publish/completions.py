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
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from threading import Event
from typing import IO
from urllib.parse import urlsplit

from cliffstore.access import check_url
from cliffstore.errors import ConfigError, EndpointError, EndpointRefusedError

KEY_VARIABLE = "CLIFFSTORE_ENDPOINT_KEY"
ATTEMPTS = 6
_SECONDS = 120.0
_LONGEST_WAIT = 30.0
_LARGEST_ANSWER = 4 << 20
_PASSES_BY_ITSELF = {408, 409, 425, 429, 500, 502, 503, 504}
_REASONING = ("reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class Completion:
    """What an endpoint answers.

    Attributes
    ----------
    text : of the answer; None where there is none
    reasoning : thinking that the server has told apart by itself
    finish : `stop`, `length`, or another word of the server; None where it says none
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
        return cls(url.rstrip("/"), model, option, os.environ.get(KEY_VARIABLE) or None, timeout=timeout)

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
        stop : once it is set, there is no further attempt

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
                return _completion_in(self._post(body))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"answers {error.code}{self._what_it_says(error)}"
                    if error.code not in _PASSES_BY_ITSELF:
                        raise self._refusal(error.code, problem) from None
                    asked_to_wait = _seconds(error.headers.get("Retry-After"))
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

    def _post(self, body: Mapping[str, object]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = self.url if self.url.endswith("/chat/completions") else f"{self.url}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as response:
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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key elsewhere."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _completion_in(content: bytes) -> Completion:
    """Return what an answer holds. Raises ValueError where it is no chat completion."""
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message["content"]
        reasoning = next((message[name] for name in _REASONING if isinstance(message.get(name), str)), None)
        n_tokens = (answer.get("usage") or {}).get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError("no chat completion") from None
    return Completion(
        text if isinstance(text, str) else None,
        reasoning or None,
        finish if isinstance(finish, str) else None,
        n_tokens if isinstance(n_tokens, int) else 0,
    )


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
