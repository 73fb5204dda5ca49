"""What interventions do to vectors: the arithmetic, token by token.

Nothing here depends on a token's neighbours: norms are those of one token, never of a batch, so a sequence comes out
the same whatever is beside it and however it is padded. Computed in float32 and rounded once to the dtype that came
in; tokens that are not chosen keep their bits. Cost: a few passes over the vectors of one site.

Legend: B lines of a pass, T positions a line, H heads, K width of a head, D width of the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROUNDING = 1e-6
"""Where less than this share of a vector's norm is left, what is left is rounding and has no direction to keep."""


def scale(
    z_BTHK: torch.Tensor, factors_HK: torch.Tensor, mask_BT: torch.Tensor | None, *, keep_norm: bool
) -> torch.Tensor:
    """Multiply heads, channel by channel.

    Parameters
    ----------
    factors_HK : float32 [H, K], or [H, 1] for whole heads
    mask_BT : bool, where it acts; None means everywhere
    keep_norm : bring the heads of a token, side by side, back to the norm that they had together
    """
    return _put(z_BTHK, z_BTHK.float() * factors_HK, mask_BT, (-2, -1), keep_norm)


def ablate(
    h_BTD: torch.Tensor, direction_D: torch.Tensor, mask_BT: torch.Tensor | None, *, keep_norm: bool
) -> torch.Tensor:
    """Take a direction out: h - (h·d)d.

    Parameters
    ----------
    direction_D : float32, of length 1
    mask_BT, keep_norm : as for `scale`; the norm is that of one vector
    """
    wide_BTD = h_BTD.float()
    along_BT1 = (wide_BTD * direction_D).sum(-1, keepdim=True)
    return _put(h_BTD, wide_BTD - along_BT1 * direction_D, mask_BT, (-1,), keep_norm)


def steer(
    h_BTD: torch.Tensor, vector_D: torch.Tensor, mask_BT: torch.Tensor | None, *, keep_norm: bool
) -> torch.Tensor:
    """Add a vector, float32; `mask_BT` and `keep_norm` as for `ablate`."""
    return _put(h_BTD, h_BTD.float() + vector_D, mask_BT, (-1,), keep_norm)


def _put(
    before: torch.Tensor, after: torch.Tensor, mask_BT: torch.Tensor | None, dims: tuple[int, ...], keep_norm: bool
) -> torch.Tensor:
    import torch

    if keep_norm:
        had = torch.linalg.vector_norm(before.float(), dim=dims, keepdim=True)
        left = torch.linalg.vector_norm(after, dim=dims, keepdim=True)
        after = torch.where(left > _ROUNDING * had, after * (had / left), after)
    after = after.to(before.dtype)
    if mask_BT is None:
        return after
    return torch.where(mask_BT[(..., *(None for _ in dims))], after, before)
