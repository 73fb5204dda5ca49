"""Text from a model: a batch of prompts to the tokens that it writes behind each.

Prompts are padded on the left and go through transformers' own `generate` (key-value cache, sliding windows, every
architecture that it knows); what is here is when a row ends, and how its tokens are chosen (see `sampling`). A row ends
at an end token, at its own limit of new tokens, or behind the mark that closes its thinking; a row that has ended is
carried along until the last one has. Settings that the model's own `generation_config` suggests are not used: what is
generated depends on what the user said alone.

A batch that does not fit into memory is divided. In float32 the text of a row does not depend on what else is in its
batch, up to near-ties of rounding size; in lower precision it may.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from cliffstore.errors import InterruptedRunError
from cliffstore.model.sampling import Sampling, processors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenIds = npt.NDArray[np.int32]
_LONGEST_MARK = 24
"""Tokens at the end of a row in which the mark that closes thinking is looked for."""


class Finish(StrEnum):
    """Why a row ended: an end token, its limit, or the end of its thinking."""

    STOP = "stop"
    LENGTH = "length"
    THINKING = "thinking"


@dataclass(frozen=True, slots=True)
class Place:
    """Roles of a prompt's tokens, for interventions that act at some of them.

    Attributes
    ----------
    segments : uint8 as bytes [T], indices into `SEGMENTS`
    is_open : whether the prompt ends within thinking
    is_fixed : whether thinking is as it is there: the decision position is in the prompt
    """

    segments: bytes
    decision: int
    is_open: bool
    is_fixed: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a row begins with.

    Attributes
    ----------
    name : of the example, for errors
    token_ids : int32 [T]
    limit : most new tokens
    key : what its noise is drawn from, a signed 64-bit number
    """

    name: str
    token_ids: TokenIds
    limit: int
    key: int = 0
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written behind a prompt.

    Attributes
    ----------
    token_ids : int32 [N], without the end token
    n_tokens : tokens that were generated, the end token too
    """

    token_ids: TokenIds
    n_tokens: int
    finish: Finish


Around = Callable[[Sequence[Prompt]], AbstractContextManager[object]]
"""Makes the context in which a batch is generated: interventions."""


class TextGenerator:
    """Generates text with one model.

    Parameters
    ----------
    model : with its LM head
    ends : token ids that end a row
    sampling : None takes the likeliest token
    close : text that ends a row, None for none
    around : context in which each batch is generated
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        *,
        sampling: Sampling | None = None,
        close: str | None = None,
        around: Around | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._ends, self._close, self._sampling = ends, close, sampling
        self._around: Around = around or (lambda _: nullcontext())
        self._device = next(model.parameters()).device
        self._pad = min(ends, default=0)
        model.generation_config = GenerationConfig()
        self._stop = threading.Event()
        self.most_rows: int | None = None

    def stop(self) -> None:
        """Make running and later calls of `generate` end at the next token."""
        self._stop.set()

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """Generate behind each prompt, all in one batch where they fit into memory.

        Raises
        ------
        GenerationError
            Logits are NaN.
        InterruptedRunError
            `stop` was called.
        """
        size = min(len(prompts), self.most_rows or len(prompts))
        try:
            parts = [self._batch(prompts[first : first + size]) for first in range(0, len(prompts), size)]
        except (torch.OutOfMemoryError, MemoryError):
            if size == 1:
                raise
            self.most_rows = size // 2
            self._let_go()
            return self.generate(prompts)
        return [one for part in parts for one in part]

    def _batch(self, prompts: Sequence[Prompt]) -> list[Generated]:
        ids_BT, mask_BT = self._pad_left(prompts)
        length = ids_BT.shape[1]
        ends = _RowEnds(self._tokenizer, self._ends, self._close, [one.limit for one in prompts], length, self._stop)
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=max(one.limit for one in prompts),
            pad_token_id=self._pad,
        )
        names, keys = [one.name for one in prompts], [one.key for one in prompts]
        with torch.inference_mode(), self._around(prompts), _within_limits(self._model, prompts):
            found_BT = self._model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=settings,
                logits_processor=processors(self._sampling, names, keys, length, self._device),
                stopping_criteria=StoppingCriteriaList([ends]),
            )
        rows = found_BT[:, length:].cpu().numpy().astype(np.int32)
        return [ends.result(index, row) for index, row in enumerate(rows)]

    def _pad_left(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and mask, int64 [B, T], on the model's device; the mask is 1 at tokens of the prompt."""
        length = max(len(one.token_ids) for one in prompts)
        ids_BT = torch.full((len(prompts), length), self._pad, dtype=torch.int64)
        mask_BT = torch.zeros((len(prompts), length), dtype=torch.int64)
        for row, one in enumerate(prompts):
            ids_BT[row, length - len(one.token_ids) :] = torch.from_numpy(one.token_ids.astype(np.int64))
            mask_BT[row, length - len(one.token_ids) :] = 1
        return ids_BT.to(self._device), mask_BT.to(self._device)

    def _let_go(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _within_limits(model: PreTrainedModel, prompts: Sequence[Prompt]) -> Iterator[None]:
    """Keep the positions of rows that have ended, and are carried along, within what the model has positions for."""
    last_B1 = torch.tensor([[len(one.token_ids) + one.limit - 1] for one in prompts])

    def hold(_: object, inputs: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple[object, ...], object]:
        positions = kwargs.get("position_ids")
        if isinstance(positions, torch.Tensor) and positions.shape[-2:-1] == (len(prompts),):
            kwargs = {**kwargs, "position_ids": positions.minimum(last_B1.to(positions.device))}
        return inputs, kwargs

    handle = model.register_forward_pre_hook(hold, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _RowEnds(StoppingCriteria):
    """Ends each row by itself, and remembers where and why."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        close: str | None,
        limits: Sequence[int],
        prompt_length: int,
        stop: threading.Event,
    ) -> None:
        self._tokenizer, self._ends, self._close = tokenizer, ends, close
        self._limits, self._prompt_length, self._stop = limits, prompt_length, stop
        self._found: list[tuple[int, Finish] | None] = [None] * len(limits)

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        if self._stop.is_set():
            raise InterruptedRunError("interrupted")
        n_new = input_ids.shape[1] - self._prompt_length
        tail_BT = input_ids[:, -min(n_new, _LONGEST_MARK) :].tolist()
        for row, tail in enumerate(tail_BT):
            if self._found[row] is None and (finish := self._finish(row, tail, n_new)) is not None:
                self._found[row] = (n_new, finish)
        done = [found is not None for found in self._found]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _finish(self, row: int, tail: list[int], n_new: int) -> Finish | None:
        if tail[-1] in self._ends:
            return Finish.STOP
        if self._close is not None and self._close in self._tokenizer.decode(tail, skip_special_tokens=False):
            return Finish.THINKING
        return Finish.LENGTH if n_new >= self._limits[row] else None

    def result(self, row: int, new: TokenIds) -> Generated:
        """Return what a row has written, of all its new tokens."""
        found = self._found[row]
        assert found is not None
        n_tokens, finish = found
        return Generated(new[: n_tokens - (finish is Finish.STOP)], n_tokens, finish)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text by configuration; before a `TextGenerator` is made, which sets it aside."""
    return frozenset(_ids(model.generation_config.eos_token_id) | _ids(tokenizer.eos_token_id))


def end_of_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> frozenset[int]:
    """Return the token that a template ends a turn with, where it is one by itself."""
    ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"] if text.strip() else []
    return frozenset(set(ids) & set(tokenizer.added_tokens_decoder)) if len(ids) == 1 else frozenset()


def _ids(found: int | list[int] | None) -> set[int]:
    """Return the token ids that a configuration names."""
    return set() if found is None else {found} if isinstance(found, int) else set(found)
