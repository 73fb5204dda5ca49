"""Attention of lines that share what they begin with.

`BranchAttention`: lines that continue one path, of which each attends to the path they share and to itself. Keys and
values of the path are held once, for all lines. Queries of all lines meet them in one product a head, and meet the keys
of their own line in another; the softmax is over both. Nothing of the path is copied a line, and no line is masked from
another. Cost a head: B·T·(P + T) scores in place of B·T·(P + B·T) of one pass over a tree.

`StemAttention`: each line is a stem and some branches behind it, laid side by side. A branch attends to the stem of its
own line and to itself; branches are attended to one by one, so none is masked from another either.

Legend: B lines, T positions a line, P positions of the path, S = P + T, H heads of keys, G queries' heads a key's head,
D width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cliffstore.model.attention import KeysValues


@dataclass(frozen=True, slots=True)
class BranchAttention:
    """What the blocks of one pass over branches share; made the current one with `attention.attending`.

    Attributes
    ----------
    past : keys and values of the path, by layer: [1, H, P, D]
    n_past : P
    """

    past: Mapping[int, KeysValues]
    n_past: int

    def answer(
        self,
        layer: int,
        query_BHTD: torch.Tensor,
        key_BHTD: torch.Tensor,
        value_BHTD: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks_H: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what the lines attend to, [B, H·G, T, D]; window, softcap and sinks as for `attention.attend`."""
        import torch

        n_lines, n_queries, n_new, width = query_BHTD.shape
        n_keys = key_BHTD.shape[1]
        grouped_BHGTD = query_BHTD.reshape(n_lines, n_keys, n_queries // n_keys, n_new, width)
        stacked_HRD = grouped_BHGTD.permute(1, 0, 2, 3, 4).reshape(n_keys, -1, width)  # R = B·G·T
        path_key_HPD, path_value_HPD = (one[0] for one in self.past[layer])
        to_path_HRP = stacked_HRD @ path_key_HPD.transpose(1, 2)
        shape = (n_keys, n_lines, n_queries // n_keys, n_new)
        own_BHXD = grouped_BHGTD.reshape(n_lines, n_keys, -1, width)
        to_own_BHXT = own_BHXD @ key_BHTD.transpose(2, 3)
        to_own_HBGTT = to_own_BHXT.transpose(0, 1).reshape(*shape, n_new)
        scores_HBGTS = torch.cat([to_path_HRP.view(*shape, self.n_past), to_own_HBGTT], dim=-1).mul_(scale)
        if softcap is not None:
            scores_HBGTS = softcap * torch.tanh(scores_HBGTS / softcap)
        scores_HBGTS = scores_HBGTS.masked_fill_(~_sees(self.n_past, n_new, window, query_BHTD.device), float("-inf"))
        if sinks_H is not None:
            sinks = sinks_H.view(n_keys, 1, -1, 1, 1).expand(*shape, 1).to(scores_HBGTS.dtype)
            scores_HBGTS = torch.cat([scores_HBGTS, sinks], dim=-1)
        weights_HBGTS = torch.softmax(scores_HBGTS, dim=-1, dtype=torch.float32).to(query_BHTD.dtype)
        path, own = weights_HBGTS[..., : self.n_past], weights_HBGTS[..., self.n_past : self.n_past + n_new]
        from_path_HBGTD = (path.reshape(n_keys, -1, self.n_past) @ path_value_HPD).view(*shape, width)
        own_BHXT = own.transpose(0, 1).reshape(n_lines, n_keys, -1, n_new)
        from_own_BHGTD = (own_BHXT @ value_BHTD).view(n_lines, n_keys, -1, n_new, width)
        found_BHGTD = from_path_HBGTD.transpose(0, 1) + from_own_BHGTD
        return found_BHGTD.reshape(n_lines, n_queries, n_new, width)


@dataclass(frozen=True, slots=True)
class StemAttention:
    """What the blocks of one pass over stems with branches share; made the current one with `attention.attending`.

    Attributes
    ----------
    bounds : length of the stem (0: none), then where each branch ends in a line
    """

    bounds: tuple[int, ...]

    def answer(
        self,
        _layer: int,
        query_BHTD: torch.Tensor,
        key_BHTD: torch.Tensor,
        value_BHTD: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks_H: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what the lines attend to, [B, H, T, D]; window, softcap and sinks as for `attention.attend`."""
        import torch

        repeats = query_BHTD.shape[1] // key_BHTD.shape[1]
        if repeats > 1:
            key_BHTD, value_BHTD = (x.repeat_interleave(repeats, dim=1) for x in (key_BHTD, value_BHTD))
        stem = self.bounds[0]
        parts = []
        for first, last in pairwise((0, *self.bounds)):
            before = stem if first else 0
            if last == first:
                continue
            key_BHSD, value_BHSD = (
                torch.cat([x[:, :, :before], x[:, :, first:last]], dim=2) if before else x[:, :, first:last]
                for x in (key_BHTD, value_BHTD)
            )
            query = query_BHTD[:, :, first:last]
            parts.append(_attended(query, key_BHSD, value_BHSD, before, scale, window, softcap, sinks_H))
        return torch.cat(parts, dim=2)


def _attended(
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    n_past: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """Return what the last T of S positions attend to."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    plain = softcap is None and sinks_H is None
    if plain and window is None and not n_past:
        return scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, scale=scale, is_causal=True)
    sees_TS = _sees(n_past, query_BHTD.shape[2], window, query_BHTD.device)
    if plain:
        mask_TS = query_BHTD.new_zeros(sees_TS.shape).masked_fill_(~sees_TS, float("-inf"))
        return scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, scale=scale, attn_mask=mask_TS)
    scores_BHTS = query_BHTD @ key_BHSD.transpose(2, 3) * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    scores_BHTS = scores_BHTS.masked_fill_(~sees_TS, float("-inf"))
    if sinks_H is not None:
        sinks_BHT1 = sinks_H.view(1, -1, 1, 1).expand(*scores_BHTS.shape[:3], 1).to(scores_BHTS.dtype)
        scores_BHTS = torch.cat([scores_BHTS, sinks_BHT1], dim=-1)
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1, dtype=torch.float32).to(query_BHTD.dtype)
    return weights_BHTS[..., : key_BHSD.shape[2]] @ value_BHSD


def _sees(n_past: int, n_new: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return whether query t sees key s, bool [T, S]."""
    import torch

    query_T1 = torch.arange(n_past, n_past + n_new, device=device)[:, None]
    key_1S = torch.arange(n_past + n_new, device=device)[None, :]
    sees_TS = key_1S <= query_T1
    return sees_TS if window is None else sees_TS & (query_T1 - key_1S < window)
