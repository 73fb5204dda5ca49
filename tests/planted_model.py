"""Running planted models by plain torch: what heads write, how scores run, what is answered, with heads scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from cliffstore.model.planted.model import Planted, PlantSettings, plant

Row = Mapping[str, object]
Head = tuple[int, int]

GRID = (
    PlantSettings(),
    PlantSettings(seed=1, layers=3, heads=6, suppressors=1),
    PlantSettings(seed=2, layers=8, heads=4, suppressors=5),
    PlantSettings(seed=3, layers=10, heads=12, suppressors=8),
    PlantSettings(seed=4, layers=4, heads=6, suppressors=2),
)
"""Several seeds, depths, numbers of heads and of suppressors; the smallest that is allowed too."""


def name_of(settings: PlantSettings) -> str:
    return f"seed{settings.seed}-layers{settings.layers}-heads{settings.heads}-k{settings.suppressors}"


@lru_cache
def planted_model(settings: PlantSettings) -> Planted:
    """Plant once a process; tests change nothing in it that they do not put back."""
    return plant(settings)


@contextmanager
def scaled(planted: Planted, scales: Mapping[Head, float]) -> Iterator[None]:
    """Scale heads' z by plain hooks before the output projections."""
    width = planted.model.config.head_dim

    def hook_of(factors: Mapping[int, float]):
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            z_BTZ = inputs[0].clone()
            for head, factor in factors.items():
                z_BTZ[..., head * width : (head + 1) * width] *= factor
            return (z_BTZ,)

        return hook

    handles = []
    for layer, block in enumerate(planted.model.model.layers):
        factors = {head: factor for (at, head), factor in scales.items() if at == layer}
        if factors:
            handles.append(block.self_attn.o_proj.register_forward_pre_hook(hook_of(factors)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(
    planted: Planted, row: Row, scales: Mapping[Head, float] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scores [T] at the probe's layer, and every head's w · (W_O z) [L, H, T], from a plain forward pass.

    z is seen after it is scaled.
    """
    truth, heads = planted.truth, planted.settings.heads
    z_LTZ: list[torch.Tensor] = []
    w_D = torch.from_numpy(truth.w_D)
    with scaled(planted, scales or {}):
        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: z_LTZ.append(inputs[0][0]))
            for block in planted.model.model.layers
        ]
        try:
            with torch.inference_mode():
                output = planted.model(torch.tensor([ids_of(planted, row)]), output_hidden_states=True)
        finally:
            for handle in handles:
                handle.remove()
    score_T = output.hidden_states[truth.layer + 1][0].double() @ w_D + truth.b
    added = []
    for block, z_TZ in zip(planted.model.model.layers, z_LTZ, strict=True):
        w_o_DHC = block.self_attn.o_proj.weight.double().unflatten(1, (heads, -1))
        added.append(torch.einsum("thc,dhc,d->ht", z_TZ.double().unflatten(1, (heads, -1)), w_o_DHC, w_D))
    return score_T.numpy(), torch.stack(added).numpy()


def ids_of(planted: Planted, row: Row) -> list[int]:
    return planted.token_ids(str(row["prompt"]), str(row["thinking"]))


def answers(planted: Planted, rows: Sequence[Row], scales: Mapping[Head, float] | None = None) -> list[str]:
    """Return what greedy decoding writes after each row's thinking, in left-padded batches."""
    tokenizer = planted.tokenizer
    found: list[str] = []
    with scaled(planted, scales or {}):
        for start in range(0, len(rows), 32):
            prompts = [{"input_ids": ids_of(planted, row)} for row in rows[start : start + 32]]
            batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
            output = planted.model.generate(**batch, do_sample=False)
            found += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found
