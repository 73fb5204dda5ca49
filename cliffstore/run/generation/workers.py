"""Workers that generate: with a model of their own, or by asking an endpoint.

Both read the items of a unit, generate, and create the unit's piece; a unit whose piece is there is left alone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.access import without_secrets
from cliffstore.corpus.answers import Answer, read_answer, read_any_answer
from cliffstore.errors import (
    CliffstoreError,
    EndpointError,
    EndpointRefusedError,
    GenerationError,
    InterruptedRunError,
    StorageError,
    StoreError,
)
from cliffstore.publish.completions import Completion
from cliffstore.records import UnitReport
from cliffstore.run.generation.job import PIECE, EndpointSpec, GenerationJob, ModelSpec, noise_key
from cliffstore.run.generation.positions import RowRoles, acting, relative, roles_of
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore

if TYPE_CHECKING:
    from cliffstore.model.generation import Prompt
    from cliffstore.model.interventions import PlacedChanges

_OF_ONE_REQUEST = {400, 413, 422}
"""Refusals that concern the request; others concern them all."""
_FAILURES_IN_A_ROW = 3
"""Requests for each that may be under way, after which an endpoint is given up."""

Item = dict[str, Any]


class _Pieces:
    """Items of units, and what was generated for them, in the folder beside the output."""

    def __init__(self, job: GenerationJob) -> None:
        self.objects = ObjectStore(job.store, job.storage_options)
        self._windows = job.windows
        self._lock = threading.Lock()
        self._held: tuple[int, pa.Table] | None = None

    def has(self, unit: int) -> bool:
        return self.objects.exists(layout.generation_piece(unit))

    def items(self, unit: int) -> list[Item]:
        """Return the items of a unit. The window that was read last is kept."""
        window = self._windows.window_of(unit)
        with self._lock:
            if self._held is None or self._held[0] != window:
                self._held = window, tables.read_row_group(self.objects, layout.GENERATION_WORK, window)
            table = self._held[1]
        return table.filter(pc.equal(table["unit"], unit)).to_pylist()

    def write(self, unit: int, rows: Sequence[Item]) -> None:
        table = pa.Table.from_pylist(list(rows), schema=PIECE)
        self.objects.create(layout.generation_piece(unit), tables.encode(table, {"unit": str(unit)}))


def _row(item: Item, answer: Answer, finish: str, n_tokens: int) -> Item:
    thinking = None if item["fixed"] else answer.thinking
    return {
        "item": item["item"], "fixed": item["fixed"], "thinking": thinking, "response": answer.response,
        "finish": finish, "n_tokens": n_tokens,
    }  # fmt: skip


class ModelWorker:
    """Generates batches with a model, which is loaded when the worker is made."""

    def __init__(self, spec: ModelSpec) -> None:
        from cliffstore.model.generation import end_tokens
        from cliffstore.model.loader import load_model, load_tokenizer

        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._spec = spec
        self._set_threads()
        self._tokenizer = load_tokenizer(spec.source)
        self._model = load_model(spec.source, spec.dtype, spec.device, gpus=spec.gpus, head=True)
        self._placed = self._place()
        self._own_ends = end_tokens(self._model, self._tokenizer)
        self._acted: list[tuple[str, RowRoles]] = []
        self._has_told = self._stopped = False

    def begin(self, job: GenerationJob) -> None:
        from cliffstore.model.generation import TextGenerator, end_of_turn
        from cliffstore.model.sampling import Sampling

        self._job, self._pieces = job, _Pieces(job)
        sampling = Sampling(job.temperature, job.top_p, job.top_k) if job.temperature else None
        close = job.markers.close.strip() if job.stop_at_thinking and job.markers else None
        ends = self._own_ends | end_of_turn(self._tokenizer, job.end_of_turn)
        around = self._acting if self._placed else None
        self._generator = TextGenerator(
            self._model, self._tokenizer, ends, sampling=sampling, close=close, around=around
        )
        if self._stopped:
            self._generator.stop()

    def run(self, unit: int, attempt: int) -> UnitReport:
        """Generate and commit one batch. Errors as for `executor.Worker.run`."""
        self._set_threads()
        if self._pieces.has(unit):
            return UnitReport(unit, 0, len(self._pieces.items(unit)), 0, 0.0, self.name)
        begun, most_rows = time.monotonic(), self._generator.most_rows
        self._acted.clear()
        try:
            items = self._pieces.items(unit)
            rows = self._rows(items)
            self._pieces.write(unit, rows)
        except (InterruptedRunError, StorageError, StoreError):
            raise
        except Exception as error:  # whatever a batch dies of, the others go on
            raise _failure(error, f"batch {unit}", self._job) from error
        notices = self._without_effect()
        if self._generator.most_rows != most_rows:
            notices += (f"batches of {len(items)} do not fit into memory: {self._generator.most_rows} from now on",)
        n_tokens = sum(row["n_tokens"] for row in rows)
        return UnitReport(unit, n_tokens, len(rows), 0, time.monotonic() - begun, self.name, notices)

    def stop(self) -> None:
        self._stopped = True
        if hasattr(self, "_generator"):
            self._generator.stop()

    def _rows(self, items: Sequence[Item]) -> list[Item]:
        from cliffstore.model.generation import Place, Prompt

        prompts = [
            Prompt(
                name=item["name"],
                token_ids=np.asarray(item["token_ids"], dtype=np.int32),
                limit=item["limit"],
                key=noise_key(self._job.seed, item["id"], item["sample"]),
                place=Place(item["segments"], item["decision"], is_open=item["open"], is_fixed=item["fixed"]),
            )
            for item in items
        ]
        found = self._generator.generate(prompts)
        texts = [self._text_of(one.token_ids.tolist()) for one in found]
        return [
            _row(item, self._answer(item, text), str(one.finish), one.n_tokens)
            for item, text, one in zip(items, texts, found, strict=True)
        ]

    def _place(self) -> tuple[PlacedChanges, ...]:
        """Find where interventions act in the model."""
        wanted = self._spec.interventions
        if wanted is None:
            return ()
        import torch

        from cliffstore.model.interventions import place
        from cliffstore.model.sites import locate
        from cliffstore.model.steps import ModelShape

        shape = ModelShape.of(self._model)
        with torch.inference_mode():
            return place(self._model, locate(self._model, shape.n_layers), wanted, shape, shape.n_layers)

    def _acting(self, prompts: Sequence[Prompt]) -> AbstractContextManager[None]:
        """Return the context in which interventions act on a batch."""
        assert self._spec.interventions is not None
        rows = [roles_of(one, self._job.markers, self._text_of) for one in prompts]
        self._acted += zip((one.name for one in prompts), rows, strict=True)
        return acting(self._model, self._text_of, self._placed, self._spec.interventions.choices, rows)

    def _without_effect(self) -> tuple[str, ...]:
        """Tell of the first example in which an intervention found no decision position."""
        words = relative(self._spec.interventions.choices) if self._spec.interventions is not None else []
        found = next((name for name, row in self._acted if not row.is_decided), None) if words else None
        if found is None or self._has_told:
            return ()
        self._has_told = True
        return (
            f"interventions at {words[0]!r} have not acted in example {found}, and perhaps others: what the model "
            "wrote there does not reach the end of its thinking, and so no decision position",
        )

    def _text_of(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _answer(self, item: Item, text: str) -> Answer:
        if item["fixed"]:
            return Answer(None, text.lstrip("\n") or None)
        return read_answer(text, self._job.markers, is_open=item["open"])

    def _set_threads(self) -> None:
        import torch

        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)  # per thread of the process, hence set where it computes


class EndpointWorker:
    """Asks an endpoint, one request a unit. Safe to call from several threads."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._endpoint = spec.endpoint
        self._patience = _FAILURES_IN_A_ROW * spec.concurrency
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._has_answered = False

    def begin(self, job: GenerationJob) -> None:
        self._job, self._pieces = job, _Pieces(job)
        self._has_answered = bool(self._pieces.objects.list(layout.GENERATION_PIECES))

    def run(self, unit: int, attempt: int) -> UnitReport:
        """Ask for one text and commit it.

        Raises
        ------
        GenerationError
            The endpoint does not answer this request; it has been asked several times.
        EndpointError
            It has not answered for so long that it is given up.
        EndpointRefusedError
            It refuses all requests: the key, the model or the URL is wrong.
        InterruptedRunError, StorageError, StoreError
            As for `executor.Worker.run`.
        """
        if self._stop.is_set():
            raise InterruptedRunError("interrupted")
        if self._pieces.has(unit):
            return UnitReport(unit, 0, 1, 0, 0.0, self.name)
        begun = time.monotonic()
        (item,) = self._pieces.items(unit)
        completion = self._ask(item)
        self._pieces.write(unit, [_row(item, *self._answer(completion), completion.n_tokens)])
        return UnitReport(unit, completion.n_tokens, 1, 0, time.monotonic() - begun, self.name)

    def stop(self) -> None:
        self._stop.set()

    def _ask(self, item: Item) -> Completion:
        job, sampling = self._job, {}
        if job.temperature:
            # sampling is the server's: it has the seed of the example, and what it makes of it is its own affair
            sampling = {"temperature": job.temperature, "top_p": job.top_p, "seed": _seed(job.seed, item)}
            sampling |= {"top_k": job.top_k} if job.top_k else {}
        try:
            found = self._endpoint.ask(self._endpoint.body(item["turns"], item["limit"], **sampling), self._stop)
        except EndpointRefusedError as error:
            if error.status not in _OF_ONE_REQUEST:
                self._stop.set()
                raise
            raise self._failed(error, item, counts=not self._has_answered) from None
        except EndpointError as error:
            if self._stop.is_set():
                raise InterruptedRunError("interrupted") from None
            raise self._failed(error, item) from None
        with self._lock:
            self._failures, self._has_answered = 0, True
        return found

    def _answer(self, completion: Completion) -> tuple[Answer, str]:
        """Return thinking and response of what the endpoint says, and why it ended."""
        text, finish = completion.text or "", completion.finish or "stop"
        if completion.reasoning is not None:
            return Answer(completion.reasoning, text or None), finish
        return read_any_answer(text, self._job.markers), finish

    def _failed(self, error: CliffstoreError, item: Item, *, counts: bool = True) -> CliffstoreError:
        """Return the error of one request, or that of the endpoint where too many have failed in a row.

        What an endpoint that has answered before says of one request does not count: prompts that are too long for it
        may stand side by side.
        """
        with self._lock:
            self._failures += counts
            is_hopeless = counts and self._failures >= self._patience
        if is_hopeless:
            self._stop.set()
            return EndpointError(f"{self._failures} requests in a row have failed; the last: {error}")
        return _failure(error, f"example {item['name']}", self._job, final=True)


def _seed(seed: int, item: Item) -> int:
    return noise_key(seed, item["id"], item["sample"]) & 0x7FFFFFFF


def _failure(error: Exception, what: str, job: GenerationJob, *, final: bool | None = None) -> GenerationError:
    message = str(error) if isinstance(error, CliffstoreError) else f"{type(error).__name__}: {error}"
    failure = GenerationError(f"{what}: {without_secrets(' '.join(message.split()), job.storage_options)}")
    failure.final = getattr(error, "final", False) if final is None else final
    return failure
