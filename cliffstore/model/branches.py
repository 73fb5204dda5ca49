"""Attention of many branches that continue one path: each line attends to the path they share and to itself.

Keys and values of the path are held once, for all lines. Queries of all lines meet them in one product a head, and
meet the keys of their own line in another; the softmax is over both. Nothing of the path is copied a line, and no line
is masked from another. Cost a head: B·T·(P + T) scores in place of B·T·(P + B·T) of one pass over a tree.

Legend: B lines, T positions a line, P positions of the path, S = P + T, H heads of keys, G queries' heads a key's head,
D width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        scores_HBGTS = scores_HBGTS.masked_fill_(~self._sees(n_new, window, query_BHTD.device), float("-inf"))
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

    def _sees(self, n_new: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Return whether query t sees key s, bool [T, S]."""
        import torch

        query_T1 = torch.arange(self.n_past, self.n_past + n_new, device=device)[:, None]
        key_1S = torch.arange(self.n_past + n_new, device=device)[None, :]
        sees_TS = key_1S <= query_T1
        return sees_TS if window is None else sees_TS & (query_T1 - key_1S < window)
