"""Answers of another model as what a training set teaches.

A request is a function of the example and the settings alone (temperature 0, a fixed seed), yet a server may answer it
differently each time. So answers are kept by the digest of their request in a file of JSON lines: an export that finds
it asks for nothing that it holds, and gives the same bytes. What was answered before a failure is kept too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event

from cliffstore.errors import EndpointRefusedError, SelectionError
from cliffstore.publish.completions import Completion, Endpoint
from cliffstore.publish.formats import CONVERSATION, Row, conversation
from cliffstore.publish.refusals import answer_in
from cliffstore.publish.targets import TemplateTarget
from cliffstore.store.objects import ObjectStore

ANSWERS = "answers.jsonl"
AT_A_TIME = 8
_NAMED = 10
"""Examples, at most, that an error names."""
_OF_ONE_REQUEST = (400, 413, 422)
"""What a server answers to a request that is too long for it, or that it will not take otherwise."""


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
            raise SelectionError(f"{objects.path(name)} is no file of answers: remove it, or name another") from None

    def __contains__(self, request: str) -> bool:
        return request in self._answers

    def get(self, request: str) -> str | None:
        """Return the answer to a request; None also where it was not asked."""
        return self._answers.get(request)

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
class EndpointTarget:
    """What another model answers to the example's conversation, or to a template over its columns."""

    endpoint: Endpoint
    book: AnswerBook
    max_tokens: int
    template: TemplateTarget | None = None
    column: str | None = None

    @property
    def needs(self) -> tuple[str, ...] | None:
        return CONVERSATION if self.template is None else None

    def of(self, rows: Sequence[Row], texts: Sequence[str | None]) -> list[str | None]:
        """Return an answer for each row. What was answered is kept, also where one fails. Errors as for
        `Endpoint.ask`; of requests that are refused for what they hold, one error names the examples."""
        bodies = [self.endpoint.body(self._turns(row), self.max_tokens) for row in rows]
        refused: dict[str, str] = {}
        answers = ask_all(self.endpoint, self.book, bodies, refused=refused)
        if refused:
            of = [
                str(row["id"]) for row, body in zip(rows, bodies, strict=True) if self.endpoint.digest(body) in refused
            ]
            more = f" and {len(of) - _NAMED} more" if len(of) > _NAMED else ""
            raise EndpointRefusedError(
                f"{next(iter(refused.values()))} to {len(of)} of {len(rows)} examples: {', '.join(of[:_NAMED])}{more}; "
                "choose without them (`cliffstore select --where`)"
            )
        return answers

    def _turns(self, row: Row) -> list[dict[str, str]]:
        return conversation(row) if self.template is None else [{"role": "user", "content": self.template.render(row)}]

    def __str__(self) -> str:
        asked = "" if self.template is None else f" when asked {self.template}"
        return f"what {self.endpoint.model} at {self.endpoint.url} answers{asked}"


def ask_all(
    endpoint: Endpoint,
    book: AnswerBook,
    bodies: Sequence[Mapping[str, object]],
    at_a_time: int = AT_A_TIME,
    refused: dict[str, str] | None = None,
) -> list[str | None]:
    """Return the answer to each request, from the book where it has it. What is answered is kept, also where one fails.

    Parameters
    ----------
    at_a_time : requests that the endpoint has at once
    refused : filled with what the endpoint says of requests that it will not take for what they hold, by digest; such
        are not kept. Without it the first of them is an error.

    Raises
    ------
    EndpointError, EndpointRefusedError
        As for `Endpoint.ask`.
    """
    digests = [endpoint.digest(body) for body in bodies]
    unknown = {digest: body for digest, body in zip(digests, bodies, strict=True) if digest not in book}
    pool, stop = ThreadPoolExecutor(at_a_time, "endpoint"), Event()
    asked = {pool.submit(endpoint.ask, body, stop): digest for digest, body in unknown.items()}
    try:
        for future in as_completed(asked):
            try:
                book[asked[future]] = learnt(future.result())
            except EndpointRefusedError as error:
                if refused is None or error.status not in _OF_ONE_REQUEST:
                    raise
                refused[asked[future]] = str(error)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        for future, digest in asked.items():
            if not future.cancelled() and future.exception() is None:
                book[digest] = learnt(future.result())
        book.save()
    return [book.get(digest) for digest in digests]


def learnt(completion: Completion) -> str | None:
    """Return an answer without thinking; None where there is none, or it was cut short."""
    if completion.finish == "length" or completion.text is None:
        return None
    return answer_in(completion.text, whole=True) or None
