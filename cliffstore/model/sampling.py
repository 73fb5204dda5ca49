"""Sampling whose result depends on seed and example alone: neither on the batch, nor on the worker or the order.

The Gumbel-max trick: adding independent Gumbel noise to log-probabilities and taking the largest draws a token from the
distribution (Maddison, Tarlow, Minka 2014, "A* Sampling", section 2). The noise of a token is a function of seed,
example, sample, step and token id, made by splitmix64 (Steele, Lea, Flood 2014) over a counter, in integers, so it is
the same on every device. Drawing from cumulated probabilities with one uniform number would be cheaper, but there
rounding moves every boundary between tokens; here it matters only where the two largest sums nearly tie.

Temperature, top-k and top-p are transformers' own, applied before, in its order. Cost: some 20 passes over [batch,
vocabulary] a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cliffstore.errors import GenerationError

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number, as those below
_MIX_1, _MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_MANTISSA = 24


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `top_p` 1 and `top_k` 0 leave every token in."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


def gumbel_noise(keys_B: torch.Tensor, step: int, n_tokens: int) -> torch.Tensor:
    """Return standard Gumbel noise, float32 [B, n_tokens], on the device of the keys.

    Parameters
    ----------
    keys_B : int64 [B], a number for each sample of an example
    step : how many tokens have been generated before
    """
    stream_B = _mixed(keys_B + torch.full_like(keys_B, step + 1) * _GOLDEN)  # wraps, as a Python number would not
    counter_V = torch.arange(1, n_tokens + 1, device=keys_B.device) * _GOLDEN
    bits_BV = _mixed(stream_B[:, None] + counter_V)
    uniform_BV = (_shifted(bits_BV, 64 - _MANTISSA).float() + 0.5) * 2.0**-_MANTISSA
    return -torch.log(-torch.log1p(-uniform_BV))


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """Finish splitmix64: int64 in, int64 out, products modulo 2^64."""
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right without carrying the sign along."""
    return (z >> by) & ((1 << (64 - by)) - 1)


class GumbelNoise(LogitsProcessor):
    """Adds to the scores of each row its own noise, so that the largest is a draw.

    Parameters
    ----------
    prompt_length : of the padded batch
    """

    def __init__(self, keys_B: torch.Tensor, prompt_length: int) -> None:
        self._keys_B, self._prompt_length = keys_B, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take tokens int64 [B, T] and scores float32 [B, V]."""
        step = input_ids.shape[1] - self._prompt_length
        return scores + gumbel_noise(self._keys_B, step, scores.shape[1])


class FiniteLogits(LogitsProcessor):
    """Ends where logits are not numbers: the largest of them would be no choice.

    Raises
    ------
    GenerationError
        Some are NaN.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad_B = torch.isnan(scores).any(dim=1)
        if bad_B.any():
            error = GenerationError(f"NaN in the logits of example {self._names[int(bad_B.nonzero()[0, 0])]}")
            error.final = True
            raise error
        return scores


def processors(
    sampling: Sampling | None, names: Sequence[str], keys: Sequence[int], prompt_length: int, device: torch.device
) -> LogitsProcessorList:
    """Return what makes of the logits of a batch scores whose largest is the next token.

    Parameters
    ----------
    sampling : None takes the likeliest token
    names, keys : of each row, for errors and for its noise
    """
    found = LogitsProcessorList([FiniteLogits(names)])
    if sampling is None:
        return found
    found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    found.append(GumbelNoise(torch.tensor(list(keys), dtype=torch.int64, device=device), prompt_length))
    return found
