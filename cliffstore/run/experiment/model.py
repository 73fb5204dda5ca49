"""The model of an experiment: under one condition after the other it writes text, and given tokens are measured.

With fixed thinking, the probe's score, the logits and the likelihood of benign text are read in one pass over prompt,
thinking and text; what the model answers is generated behind the thinking. With regenerated thinking the model writes
both under the condition, and the same is read behind the thinking that it has written, token for token.

Text is greedy, in batches of examples of about one length: the same ones under every condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.corpus.answers import Answer, read_answer
from cliffstore.corpus.markers import ThinkMarkers
from cliffstore.errors import ConfigError, ExtractionError
from cliffstore.model.forced import ForcedPasses, Line
from cliffstore.model.generation import Finish, Generated, Place, Prompt, TextGenerator, end_of_turn, end_tokens
from cliffstore.model.interventions import PlacedChanges, place
from cliffstore.model.loader import load_model
from cliffstore.model.products import use_float32_products
from cliffstore.model.sites import arrays_of, locate
from cliffstore.model.steps import ModelShape
from cliffstore.plan.choices import chosen
from cliffstore.publish.refusals import Refusals, answer_in
from cliffstore.records import SEGMENTS, Segment
from cliffstore.run import executor
from cliffstore.run.experiment.examples import ExampleLine
from cliffstore.run.experiment.settings import REGENERATED, ExperimentSettings, Thinking
from cliffstore.run.generation.positions import acting, roles_of
from cliffstore.schema import Interventions, ProbeDocument
from cliffstore.store.probes import ProbeWeights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cliffstore.corpus.template import Renderer
    from cliffstore.model.identity import ModelSource

TOKENS = {"cpu": 1_024, "accelerator": 8_192}
"""Padded positions of a pass; the LM head is computed at some of them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of an example under a condition; None where there is no such figure.

    Attributes
    ----------
    score, difference : at the decision; none where the model wrote no end of its thinking
    surprise : -log p of the benign text, in nats, over `n_text` tokens
    refused : none where no text was generated, or it has no answer, or one that was cut off before its time: the
        thinking has taken tokens that were for the answer
    """

    example: int
    score: float | None = None
    difference: float | None = None
    surprise: float | None = None
    n_text: int = 0
    refused: bool | None = None
    thinking: str | None = None
    response: str | None = None


class ExperimentModel:
    """A loaded model.

    Parameters
    ----------
    products : how vectors were multiplied when the probe's were extracted
    refusing, complying : first tokens of openers
    """

    def __init__(
        self,
        source: ModelSource,
        probe: ProbeDocument,
        weights: ProbeWeights,
        renderer: Renderer,
        settings: ExperimentSettings,
        *,
        device: str,
        products: str,
        refusing: Sequence[int],
        complying: Sequence[int],
    ) -> None:
        import torch

        torch.set_num_threads(executor.available_cpus())
        self._model = load_model(source, probe.dtype, device, head=True)
        if products == "float32":
            use_float32_products(self._model)
        self._tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
        self._markers: ThinkMarkers | None = renderer.markers if renderer.thinks else None
        self._settings, self._context = settings, source.context
        self._shape = ModelShape.of(self._model)
        self._sites = locate(self._model, self._shape.n_layers)
        (array,) = arrays_of(source.identity, [probe.site], [probe.layer])
        kind = "cpu" if self._model.device.type == "cpu" else "accelerator"
        self._passes = ForcedPasses(
            self._model, self._sites, array, self._shape.n_heads, weights.w_D, weights.b, refusing=refusing,
            complying=complying, tokens=TOKENS[kind],
        )  # fmt: skip
        self._placed: tuple[PlacedChanges, ...] = ()
        self._words: tuple[str, ...] = ()
        ends = end_tokens(self._model, self._tokenizer) | end_of_turn(self._tokenizer, renderer.end_of_turn)
        self._generator = TextGenerator(self._model, self._tokenizer, ends, around=self._acting)
        self._refusals = Refusals()

    def change(self, interventions: Interventions | None) -> None:
        """Do this to the model from now on, and nothing else."""
        import torch

        self._placed, self._words = (), ()
        if interventions is not None:
            with torch.inference_mode():
                self._placed = place(self._model, self._sites, interventions, self._shape, self._shape.n_layers)
            self._words = tuple(interventions.choices)

    def measure(
        self, lines: Sequence[ExampleLine], thinking: Thinking, *, generates: bool, advance: Callable[[int], object]
    ) -> list[Measured]:
        """Return what the changed model makes of examples, in their order.

        Parameters
        ----------
        lines : with fixed thinking as the store has them, else as they are before any
        advance : told of how many examples have been done
        """
        found: dict[int, Measured] = {}
        order = sorted(range(len(lines)), key=lambda at: (len(lines[at].prompt.token_ids_T), lines[at].example))
        for first in range(0, len(order), self._settings.batch_size):
            part = order[first : first + self._settings.batch_size]
            batch = [lines[at] for at in part]
            answers = self._generate(batch, thinking) if generates else [_Written(line.prompt) for line in batch]
            read = self._read(batch, answers)
            for at, line, written, figures in zip(part, batch, answers, read, strict=True):
                found[at] = self._judged(figures, written) if generates else figures
                assert found[at].example == line.example
            advance(len(part))
        return [found[at] for at in range(len(lines))]

    def _read(self, batch: Sequence[ExampleLine], written: Sequence[_Written]) -> list[Measured]:
        """Return the figures of given tokens; none of a line whose decision position is not there."""
        given = [_with_answer(one.prompt, line) for one, line in zip(written, batch, strict=True) if one.prompt]
        figures = iter(self._passes.figures(given, self._placed, self._words, _chosen))
        found = []
        for line, one in zip(batch, written, strict=True):
            if one.prompt is None:
                found.append(Measured(line.example))
                continue
            own = next(figures)
            if not np.isfinite([own.score, own.difference]).all():
                raise ExtractionError(f"NaN or Inf before the answer in example {line.id!r}: leave it out with "
                                      "--harmful-where or --benign-where")  # fmt: skip
            surprise = own.surprise if own.n_answer else None
            found.append(Measured(line.example, own.score, own.difference, surprise, own.n_answer))
        return found

    def _judged(self, figures: Measured, written: _Written) -> Measured:
        """Return figures with what was written, and whether it refuses."""
        answer = written.answer
        assert answer is not None
        response = answer.response
        is_answered = response is not None and bool(answer_in(response))
        refused = None
        if is_answered and response is not None and not written.is_short:
            refused = self._refusals.matches(response)
        return replace(figures, refused=refused, thinking=answer.thinking, response=response)

    def _generate(self, batch: Sequence[ExampleLine], thinking: Thinking) -> list[_Written]:
        settings = self._settings
        most = settings.new_tokens + (settings.thinking_tokens if thinking == REGENERATED else 0)
        prompts = []
        for line in batch:
            room = most if self._context is None else min(most, self._context - len(line.prompt.token_ids_T))
            if room < 1:
                raise ConfigError(f"example {line.id!r} fills the model's context of {self._context:,} tokens: leave "
                                  "it out with --harmful-where or --benign-where")  # fmt: skip
            place_ = Place(
                line.prompt.segments_T.tobytes(), line.prompt.decision, is_open=line.opens,
                is_fixed=line.has_thinking or thinking != REGENERATED,
            )  # fmt: skip
            prompts.append(Prompt(line.id, line.prompt.token_ids_T.astype(np.int32), room, place=place_))
        found = self._generator.generate(prompts)
        return [
            self._written(line, prompt, one, is_fixed=thinking != REGENERATED)
            for line, prompt, one in zip(batch, prompts, found, strict=True)
        ]

    def _written(self, line: ExampleLine, prompt: Prompt, one: Generated, *, is_fixed: bool) -> _Written:
        """Return the answer, and the tokens up to the decision position: those that the model has written itself."""
        ids = one.token_ids.tolist()
        text = self._text_of(ids)
        if line.has_thinking:
            return _Written(line.prompt, Answer(None, text.lstrip("\n") or None), self._is_short(one, len(ids)))
        answer = read_answer(text, self._markers, is_open=line.opens)
        n_answer = len(ids) if answer.thinking is None else 0
        if is_fixed:
            return _Written(line.prompt, answer, self._is_short(one, n_answer))
        roles = roles_of(prompt, self._markers, self._text_of)
        if roles.markers is None:
            return _Written(line.prompt, answer, self._is_short(one, len(ids)))
        for token in ids:
            roles.read(token, self._text_of)
            if roles.is_decided:
                ids_T = np.concatenate([line.prompt.token_ids_T, np.array(roles.ids, dtype=np.int64)])
                end = Line(ids_T, np.array(roles.segments, dtype=np.uint8), roles.decision)
                return _Written(end, answer, self._is_short(one, len(ids) - len(roles.ids)))
        return _Written(None, answer, self._is_short(one, n_answer))

    def _is_short(self, one: Generated, n_answer: int) -> bool:
        """Return whether an answer was cut off before it had all its tokens."""
        return one.finish is Finish.LENGTH and n_answer < self._settings.new_tokens

    def _text_of(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _acting(self, prompts: Sequence[Prompt]) -> AbstractContextManager[None]:
        rows = [roles_of(one, self._markers, self._text_of) for one in prompts]
        return acting(self._model, self._text_of, self._placed, self._words, rows)


@dataclass(frozen=True, slots=True)
class _Written:
    """What a model wrote; `prompt` ends at the decision position, and is None where there is none.

    `is_short` where the answer was cut off before it had all its tokens: whether it refuses is not known.
    """

    prompt: Line | None
    answer: Answer | None = None
    is_short: bool = False


def _with_answer(prompt: Line, line: ExampleLine) -> Line:
    """Return a prompt with the text that it is measured on."""
    code = SEGMENTS.index(Segment.RESPONSE)
    return Line(
        np.concatenate([prompt.token_ids_T, line.answer_N]),
        np.concatenate([prompt.segments_T, np.full(len(line.answer_N), code, dtype=np.uint8)]),
        prompt.decision,
    )


def _chosen(line: Line, word: str) -> npt.NDArray[np.bool_]:
    return chosen(word, line.segments_T, line.decision)
