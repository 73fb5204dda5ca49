"""Which positions of a pass an intervention acts on: how a mask reaches the hooks that need it.

Interventions name positions by words (`decision`, `template`, `last:8` ...; see `plan/choices.py`). What a word means
in a pass is a mask bool [B, T] over the pass's own input positions, and whoever makes passes says it:

    with intervene(model, interventions):
        with positions_of_pass({"decision": mask_BT}):      # one pass, or several of the same shape
            model(input_ids=ids_BT, attention_mask=...)

        with positions_in_generation(model, [{"decision": mask_T}, ...]):   # a mask a prompt, without its padding
            model.generate(ids_BT, attention_mask=...)

In generation the prompt may come in one pass or in several, padded on either side, with a cache: where a pass's tokens
stand in their line is counted from its attention mask. What the words mean at tokens that are generated is said by
`decode`; without it, `generated` acts there and no other word does. The word `all` needs no mask at all.

A word without a mask is an error, never silence. Masks are those of the thread (a context variable); contexts nest,
and the innermost counts.

Legend: B lines of a pass, T positions of the pass, P prompts, S positions from the first of a line on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from cliffstore.errors import ExtractionError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

GENERATED = "generated"

Decode = Callable[["torch.Tensor"], Mapping[str, "torch.Tensor"]]
"""Given the tokens of a pass, int64 [B, T], returns what each word means where they are generated ones, bool [B, T]."""

_CURRENT: ContextVar[Callable[[str], torch.Tensor | None] | None] = ContextVar("masks", default=None)


@contextmanager
def positions_of_pass(masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Say what words mean in the passes inside this context: word -> bool [B, T]."""
    token = _CURRENT.set(masks.get)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def positions_in_generation(
    model: nn.Module,
    prompts: Sequence[Mapping[str, npt.NDArray[np.bool_]]],
    decode: Decode | None = None,
) -> Iterator[None]:
    """Say what words mean while `model.generate` runs on a batch.

    Parameters
    ----------
    model : the one whose `generate` is called
    prompts : for each prompt word -> bool [its tokens without padding]; several samples of one prompt stand side by
        side, as `num_return_sequences` makes them
    decode : called once a pass that has generated tokens in it
    """
    following = _Following(prompts, decode)
    handle = model.register_forward_pre_hook(following.enter, with_kwargs=True)
    token = _CURRENT.set(following.mask)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        handle.remove()


def mask_of(word: str, shape: tuple[int, int], flat: bool) -> torch.Tensor | None:
    """Return where a word acts in the running pass, None for everywhere.

    Parameters
    ----------
    shape : B and T of the vectors that are to be changed; (1, B·T) where they are `flat`

    Raises
    ------
    ExtractionError
        Nobody has said what the word means in this pass, or of a pass of another shape.
    """
    if word == "all":
        return None
    current = _CURRENT.get()
    mask_BT = current(word) if current is not None else None
    if mask_BT is None:
        raise ExtractionError(f"an intervention acts at {word!r}, and nobody said where that is in this pass")
    if flat:
        mask_BT = mask_BT.reshape(1, -1)
    if tuple(mask_BT.shape) != shape:
        raise ExtractionError(f"a mask of {list(mask_BT.shape)} positions does not fit a pass of {list(shape)}")
    return mask_BT


class _Following:
    """Follows the passes of one `generate` call."""

    def __init__(self, prompts: Sequence[Mapping[str, npt.NDArray[np.bool_]]], decode: Decode | None) -> None:
        import torch

        words = sorted({word for prompt in prompts for word in prompt})
        lengths = [{len(mask_T) for mask_T in prompt.values()} for prompt in prompts]
        if any(len(found) > 1 or set(prompt) != set(words) for found, prompt in zip(lengths, prompts, strict=True)):
            raise ExtractionError("every prompt of a batch needs a mask for the same words, each as long as the prompt")
        self._decode = decode
        self._lengths_P = torch.tensor([next(iter(found), 0) for found in lengths])
        longest = int(self._lengths_P.max()) if len(prompts) else 0
        self._prompts: dict[str, torch.Tensor] = {}
        for word in words:
            masks_PS = torch.zeros((len(prompts), max(longest, 1)), dtype=torch.bool)
            for number, prompt in enumerate(prompts):
                masks_PS[number, : len(prompt[word])] = torch.as_tensor(prompt[word], dtype=torch.bool)
            self._prompts[word] = masks_PS
        self._masks: dict[str, torch.Tensor] = {}

    def mask(self, word: str) -> torch.Tensor | None:
        return self._masks.get(word)

    def enter(self, _module: nn.Module, inputs: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Before a pass: find where its tokens stand, and what every word means there."""
        import torch

        from cliffstore.model.tracing import TRACING

        if TRACING.get():
            return
        ids_BT = inputs[0] if inputs else kwargs.get("input_ids")
        if not isinstance(ids_BT, torch.Tensor):
            raise ExtractionError("positions can be followed in generation from token ids only")
        position_BT, real_BT = _positions(ids_BT, kwargs)
        n_prompts = len(self._lengths_P)
        if n_prompts == 0 or len(ids_BT) % n_prompts:
            raise ExtractionError(f"a pass of {len(ids_BT)} lines does not fit the masks of {n_prompts} prompts")
        prompt_B = torch.arange(len(ids_BT)) // (len(ids_BT) // n_prompts)
        new_BT = real_BT & (position_BT >= self._lengths_P[prompt_B][:, None])
        decoded: Mapping[str, torch.Tensor] = {}
        if bool(new_BT.any()):
            decoded = self._decode(ids_BT) if self._decode is not None else {}
        self._masks = {}
        for word in {*self._prompts, *decoded, GENERATED}:
            mask_BT = decoded[word].cpu() & new_BT if word in decoded else new_BT & (GENERATED in word.split(","))
            masks_PS = self._prompts.get(word)
            if masks_PS is not None:
                within_BT = position_BT.clamp(0, masks_PS.shape[1] - 1)
                mask_BT = torch.where(new_BT, mask_BT, masks_PS[prompt_B].gather(1, within_BT) & real_BT)
            self._masks[word] = mask_BT


def _positions(ids_BT: torch.Tensor, kwargs: Mapping[str, object]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each token stands in its line without padding, and whether it is none."""
    import torch

    n_new = ids_BT.shape[1]
    mask_BS = kwargs.get("attention_mask")
    if isinstance(mask_BS, torch.Tensor):
        if mask_BS.dim() != 2 or mask_BS.shape[1] < n_new:
            raise ExtractionError(f"an attention mask of {list(mask_BS.shape)} does not say where tokens stand")
        real_BS = mask_BS.cpu().bool()
        return (real_BS.long().cumsum(1) - 1)[:, -n_new:], real_BS[:, -n_new:]
    past = kwargs.get("past_key_values")
    n_past = int(past.get_seq_length()) if past is not None and hasattr(past, "get_seq_length") else 0
    position_BT = (n_past + torch.arange(n_new)).expand(ids_BT.shape)
    return position_BT, torch.ones(ids_BT.shape, dtype=torch.bool)
