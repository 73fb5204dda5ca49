"""What a model makes of given tokens, while it is changed: the probe's score and the logits at the decision, and how
likely it finds a given answer.

Lines are padded on the right, those of like length side by side. The LM head is computed at the decision and over the
answer alone: a hook takes these positions out of what it receives, so no logits of other positions are ever held.

Cost: one forward pass over all tokens, the head over 1 + (tokens of the answer) positions a line.

Legend: B lines of a pass, T positions, N positions that the head is computed at, V tokens of the vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model.interventions import PlacedChanges, applied
from cliffstore.model.pass_masks import positions_of_pass
from cliffstore.model.sites import ModelSites, hook_points, read_point
from cliffstore.schema import ArrayIdentity

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Masks = Callable[["Line", str], npt.NDArray[np.bool_]]
"""Says at which of a line's positions a word acts, bool [T]."""


@dataclass(frozen=True, slots=True)
class Line:
    """Tokens that are given.

    Attributes
    ----------
    token_ids_T : int64, up to the end of the answer
    segments_T : uint8, indices into `SEGMENTS`
    decision : position of the last token before the answer
    """

    token_ids_T: npt.NDArray[np.int64]
    segments_T: npt.NDArray[np.uint8]
    decision: int

    @property
    def n_answer(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids_T) - self.decision - 1


@dataclass(frozen=True, slots=True)
class ForcedFigures:
    """What was found of a line.

    Attributes
    ----------
    score : of the probe, at the decision
    difference : mean logit of the tokens that begin refusals, less that of those that begin answers, at the decision
    surprise : -log p of the answer's tokens, their sum in nats
    """

    score: float
    difference: float
    surprise: float
    n_answer: int


class ForcedPasses:
    """A model with its LM head, and what is read of it.

    Parameters
    ----------
    array : what the probe reads
    w_D, b : of the probe
    refusing, complying : token ids, at least one each
    tokens : padded positions of a pass, at most (one line at the least)

    Raises
    ------
    ModelError
        What the probe reads cannot be read, or the model has no LM head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: ModelSites,
        array: ArrayIdentity,
        n_heads: int,
        w_D: npt.NDArray[np.float32],
        b: float,
        *,
        refusing: Sequence[int],
        complying: Sequence[int],
        tokens: int,
    ) -> None:
        import torch

        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"model {type(model).__name__} has no LM head: it says nothing of the next token")
        self._model, self._head, self._tokens = model, head, tokens
        with torch.inference_mode():
            self._point = hook_points(model, sites, [array], n_heads)[f"{array.site}/{array.layer}"]
        self._w_D, self._b = torch.from_numpy(np.ascontiguousarray(w_D)), b
        self._refusing, self._complying = list(refusing), list(complying)

    def figures(
        self, lines: Sequence[Line], placed: Sequence[PlacedChanges], words: Sequence[str], masks: Masks
    ) -> list[ForcedFigures]:
        """Return what the changed model makes of each line.

        Parameters
        ----------
        placed : changes; none leaves the model as it is
        words : of positions that they ask for
        """
        found: dict[int, ForcedFigures] = {}
        waiting = sorted(range(len(lines)), key=lambda number: len(lines[number].token_ids_T))
        while waiting:
            longest = len(lines[waiting[-1]].token_ids_T)
            taken = waiting[-max(self._tokens // longest, 1) :]
            del waiting[-len(taken) :]
            some = [lines[number] for number in taken]
            with applied(placed):
                found |= zip(taken, self._pass(some, words, masks), strict=True)
        return [found[number] for number in range(len(lines))]

    def _pass(self, lines: Sequence[Line], words: Sequence[str], masks: Masks) -> list[ForcedFigures]:
        import torch

        n_lines, longest = len(lines), max(len(line.token_ids_T) for line in lines)
        ids_BT, real_BT = np.zeros((n_lines, longest), dtype=np.int64), np.zeros((n_lines, longest), dtype=np.int64)
        acts = {word: np.zeros((n_lines, longest), dtype=np.bool_) for word in words}
        for at, line in enumerate(lines):
            length = len(line.token_ids_T)
            ids_BT[at, :length], real_BT[at, :length] = line.token_ids_T, 1
            for word in words:
                acts[word][at, :length] = masks(line, word)
        ends_B = [max(line.n_answer, 1) for line in lines]
        line_N = np.repeat(np.arange(n_lines), ends_B)
        position_N = np.concatenate([line.decision + np.arange(n) for line, n in zip(lines, ends_B, strict=True)])
        device = self._model.device
        with (
            torch.inference_mode(),
            positions_of_pass({word: torch.from_numpy(mask_BT) for word, mask_BT in acts.items()}),
            self._head_at(line_N, position_N),
            self._reading() as read,
        ):
            output = self._model(
                input_ids=torch.from_numpy(ids_BT).to(device),
                attention_mask=torch.from_numpy(real_BT).to(device),
                use_cache=False,
            )
            logits_NV = output.logits[0].float()
        if len(read) != 1:
            raise ExtractionError("what the probe reads was not computed once in a forward pass")
        read_BTD = read[0].reshape(n_lines, longest, -1)  # a flat point has lines behind each other
        hidden_BD = read_BTD[torch.arange(n_lines), [line.decision for line in lines]].float()
        score_B = (hidden_BD @ self._w_D.to(hidden_BD.device) + self._b).double().cpu().numpy()
        return self._taken_apart(lines, score_B, logits_NV, ends_B)

    def _taken_apart(
        self, lines: Sequence[Line], score_B: npt.NDArray[np.float64], logits_NV: torch.Tensor, ends_B: Sequence[int]
    ) -> list[ForcedFigures]:
        import torch

        found, start = [], 0
        for line, score, n in zip(lines, score_B, ends_B, strict=True):
            own_NV = logits_NV[start : start + n]
            start += n
            difference = own_NV[0, self._refusing].mean() - own_NV[0, self._complying].mean()
            surprise = 0.0
            if line.n_answer:
                answer_N = torch.from_numpy(line.token_ids_T[line.decision + 1 :]).to(own_NV.device)
                log_p_N = torch.log_softmax(own_NV, dim=-1).gather(1, answer_N[:, None])
                surprise = -float(log_p_N.double().sum())
            found.append(ForcedFigures(float(score), float(difference), surprise, line.n_answer))
        return found

    @contextmanager
    def _head_at(self, line_N: npt.NDArray[np.int64], position_N: npt.NDArray[np.int64]) -> Iterator[None]:
        """Let the LM head be computed at some positions only: it receives [1, N, D] in the place of [B, T, D]."""
        import torch

        lines, positions = torch.from_numpy(line_N), torch.from_numpy(position_N)

        def take(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden_BTD = inputs[0]
            chosen_1ND = hidden_BTD[lines.to(hidden_BTD.device), positions.to(hidden_BTD.device)][None]
            return (chosen_1ND, *inputs[1:])

        handle = self._head.register_forward_pre_hook(take)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _reading(self) -> Iterator[list[torch.Tensor]]:
        """Give a list that holds what the probe reads, [B, T, D], once it is computed."""
        point, read = self._point, []

        def before(_module: object, inputs: tuple[object, ...], kwargs: dict[str, object]) -> None:
            read.append(read_point(point, inputs, kwargs, None))

        def behind(_module: object, inputs: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            read.append(read_point(point, inputs, kwargs, output))

        if point.side == "input":
            handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = point.module.register_forward_hook(behind, with_kwargs=True)
        try:
            yield read
        finally:
            handle.remove()
