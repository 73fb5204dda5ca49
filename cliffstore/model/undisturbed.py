"""What lines of knock-outs are made of: prompts, what the undisturbed model held of them, and rows cut out of it.

A pass of the model as it is leaves, of each block, what it received at the ablated positions and what else it was given
(rotary embeddings and the like), and keys and values of what comes before. `rows_of` cuts the second to some positions.

Legend: T positions of a prompt, K of them from the first that is ablated, D width of the stream, H heads, W width of a
head, M prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ModelError
from cliffstore.model.attention import PassAttention, attending
from cliffstore.model.branches import StemAttention
from cliffstore.model.tracing import received_hidden

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cliffstore.model.attention import KeysValues

_LINES = 4
"""Choices of heads that a pass has room for where several prompts share its lines."""
Given = tuple[tuple[object, ...], dict[str, object]]
"""What a block is given beside the stream, by place and by name."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt up to the decision position: token_ids int64 [T], and the first position that is ablated."""

    token_ids_T: npt.NDArray[np.int64]
    first: int

    @property
    def n_ablated(self) -> int:
        """K."""
        return len(self.token_ids_T) - self.first


@dataclass(slots=True)
class Undisturbed:
    """What lines are made of: of each block, what it received at K positions, and what else it was given.

    Attributes
    ----------
    ends : where in a line of K positions each prompt ends
    bounds : of the stem and the branches of a line, None where a line continues a path that is `held`
    n_path : positions of that path
    scores_M : of each prompt, as it is
    """

    ends: list[int]
    bounds: tuple[int, ...] | None
    n_path: int
    hidden_1KD: dict[int, torch.Tensor] = field(default_factory=dict)
    others: dict[int, Given] = field(default_factory=dict)
    held: dict[int, KeysValues] = field(default_factory=dict)
    z_KHW: dict[int, torch.Tensor] = field(default_factory=dict)
    scores_M: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def n_new(self) -> int:
        """K."""
        return self.ends[-1] + 1


def stem_of(prompts: Sequence[Prompt]) -> int:
    """Return how many tokens all prompts begin with, less than any of them has; 0 for one prompt."""
    shortest = min(len(prompt.token_ids_T) for prompt in prompts) - 1
    if len(prompts) == 1:
        return 0
    first_S = prompts[0].token_ids_T[:shortest]
    equal_MS = np.stack([prompt.token_ids_T[:shortest] == first_S for prompt in prompts])
    differs = np.flatnonzero(~equal_MS.all(axis=0))
    return int(differs[0]) if len(differs) else shortest


def fit_together(prompts: Sequence[Prompt], tokens: int) -> bool:
    """Return whether prompts may share the lines of a pass of so many positions: all of theirs are ablated, and few."""
    if len(prompts) == 1:
        return True
    if any(prompt.first for prompt in prompts):
        return False
    stem = stem_of(prompts)
    n_nodes = stem + sum(len(prompt.token_ids_T) - stem for prompt in prompts)
    return stem > 0 and n_nodes <= tokens // _LINES


def hold(
    prompts: Sequence[Prompt],
    blocks: Sequence[nn.Module],
    device: torch.device,
    run: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], None],
) -> Undisturbed:
    """Return what a pass of the model as it is leaves; z and scores are not filled in.

    Parameters
    ----------
    prompts : one; or some that share a stem, of which all positions are ablated
    run : one forward pass over token ids [1, N] at depths [N]
    """
    import torch

    first, stem = prompts[0].first, stem_of(prompts)
    if first:
        (prompt,) = prompts
        token_ids_N, depth_N = prompt.token_ids_T, np.arange(len(prompt.token_ids_T))
        held = Undisturbed([len(token_ids_N) - first - 1], None, first)
    else:
        rests = [prompt.token_ids_T[stem:] for prompt in prompts]
        token_ids_N = np.concatenate([prompts[0].token_ids_T[:stem], *rests])
        depth_N = np.concatenate([np.arange(stem), *(np.arange(stem, stem + len(rest)) for rest in rests)])
        bounds = np.cumsum([stem, *map(len, rests)])
        held = Undisturbed([int(end) - 1 for end in bounds[1:]], tuple(int(one) for one in bounds), 0)
    n_nodes = len(token_ids_N)
    positions_N = torch.arange(n_nodes, device=device)
    current: PassAttention | StemAttention = StemAttention(held.bounds or ())
    if held.bounds is None:
        current = PassAttention(n_nodes, positions_N, ends_S=None, past={}, carry_C=positions_N[:first])

    def receive(layer: int, inputs: tuple[object, ...], kwargs: dict[str, object]) -> None:
        hidden = received_hidden(inputs, kwargs)
        assert isinstance(hidden, torch.Tensor)
        held.hidden_1KD[layer] = hidden[:, first:]
        named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        held.others[layer] = rows_of((inputs[1:], named), n_nodes, slice(first, None))

    handles = [
        block.register_forward_pre_hook(
            lambda _, inputs, kwargs, layer=layer: receive(layer, inputs, kwargs), with_kwargs=True
        )
        for layer, block in enumerate(blocks)
    ]
    try:
        with attending(current):
            run(token_ids_N[None], depth_N)
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(current, PassAttention):
        held.held = current.carried
    return held


def rows_of(given: Given, n_tokens: int, rows: slice | list[int]) -> Given:
    """Return what a block is given for some of its positions.

    Raises
    ------
    ModelError
        There is a tensor that is not one value a position, so that nobody knows what of it belongs to those positions.
    """
    args, kwargs = given
    return (
        tuple(_cut(value, n_tokens, rows) for value in args),
        {name: _cut(value, n_tokens, rows) for name, value in kwargs.items()},
    )


def _cut(value: object, n_tokens: int, rows: slice | list[int]) -> object:
    import torch

    if isinstance(value, tuple | list):
        return type(value)(_cut(one, n_tokens, rows) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() >= 2 and value.shape[0] == 1 and value.shape[1] == n_tokens:
        return value[:, rows]
    if value.dim() == 1 and value.shape[0] == n_tokens:
        return value[rows]
    raise ModelError(f"a block is given a tensor of shape {list(value.shape)} that is not one value a position")
