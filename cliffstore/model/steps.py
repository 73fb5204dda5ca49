"""Steps of interventions held against a model: whether they fit it, where they act, and by which numbers.

Legend: H heads, K width of a head, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cliffstore.errors import ModelError
from cliffstore.model.identity import heads_of
from cliffstore.records import ATTN_OUT, MLP_OUT, RESID_POST, RESID_PRE, Z
from cliffstore.schema import ArrayIdentity, DirectionAblation, HeadScaling, Interventions, Steering, vector_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

OPEN_SITES = (RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST)
"""Sites at which a vector can be changed so that everything behind it sees the change."""
ABLATED_SITES = (RESID_PRE, ATTN_OUT, MLP_OUT)
"""Layer input, attention output, MLP output: together they keep a direction out of the whole residual stream."""

AnyStep = HeadScaling | DirectionAblation | Steering


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What steps must fit. `n_heads` and `d_head` are of z."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Read a model's configuration."""
        text = model.config.get_text_config()
        return cls(int(text.num_hidden_layers), int(text.hidden_size), *heads_of(text))


def check_fit(interventions: Interventions, shape: ModelShape) -> None:
    """Raise `ModelError` where a step names a layer, head or site that a model has not, or has another width."""
    for number, step in enumerate(interventions.steps, 1):
        where = f"intervention {number} ({step.kind})"
        layers = [one.layer for one in step.heads] if isinstance(step, HeadScaling) else step.layers
        if wrong := [layer for layer in layers if not 0 <= layer < shape.n_layers]:
            raise ModelError(f"{where}: layer {wrong[0]} is not in the model: it has layers 0-{shape.n_layers - 1}")
        if isinstance(step, HeadScaling):
            _check_heads(where, step, shape)
            continue
        if unknown := [site for site in step.sites if site not in OPEN_SITES]:
            raise ModelError(f"{where}: {unknown[0]} cannot be changed, these can: {', '.join(OPEN_SITES)}")
        vector_D = vector_of(step.vector)
        if len(vector_D) != shape.d_model:
            raise ModelError(f"{where}: its vector has {len(vector_D)} numbers, the model's have {shape.d_model}")
        if not np.isfinite(vector_D).all() or not vector_D.any():
            raise ModelError(f"{where}: its vector is zero, or has NaN or Inf in it")


def _check_heads(where: str, step: HeadScaling, shape: ModelShape) -> None:
    seen: set[tuple[int, int]] = set()
    for one in step.heads:
        if not 0 <= one.head < shape.n_heads:
            raise ModelError(f"{where}: head {one.head} is not in the model: it has heads 0-{shape.n_heads - 1}")
        if len(one.factors) not in (1, shape.d_head) or not np.isfinite(one.factors).all():
            raise ModelError(
                f"{where}: layer {one.layer}, head {one.head} needs one finite factor or {shape.d_head}, one a channel"
            )
        if (one.layer, one.head) in seen:
            raise ModelError(f"{where}: layer {one.layer}, head {one.head} is there twice")
        seen.add((one.layer, one.head))


def values_of(step: AnyStep, shape: ModelShape) -> Iterator[tuple[ArrayIdentity, torch.Tensor]]:
    """Yield where a step acts and by which numbers, as `_Change` takes them."""
    import torch

    if isinstance(step, HeadScaling):
        for layer in sorted({one.layer for one in step.heads}):
            own = [one for one in step.heads if one.layer == layer]
            factors_HK = torch.ones(shape.n_heads, max(len(one.factors) for one in own))
            for one in own:
                factors_HK[one.head] = torch.tensor(one.factors)
            yield ArrayIdentity(site=Z, layer=layer, shape=[shape.n_heads, shape.d_head]), factors_HK
        return
    vector_D = vector_of(step.vector).astype(np.float64)
    vector_D = step.factor * vector_D if isinstance(step, Steering) else vector_D / np.linalg.norm(vector_D)
    values_D = torch.from_numpy(vector_D.astype(np.float32))
    for layer in dict.fromkeys(step.layers):
        for site in dict.fromkeys(step.sites):
            yield ArrayIdentity(site=site, layer=layer, shape=[shape.d_model]), values_D
