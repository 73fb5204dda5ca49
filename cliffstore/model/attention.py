"""Attention over the nodes of a prefix tree, as an attention function that transformers calls in every block.

A pass computes T new nodes (depth-first neighbours of a prefix tree) after a path of P nodes whose keys and values are
held from earlier passes. Each node sees itself and its ancestors. In depth-first order a subtree is one interval, so
one number a key says it all: key s is an ancestor of query q if and only if s <= P + q and q < end[s]. A padded batch
is the simpler case without path and without ends: padding stands on the right, so causal attention never reads it.

Masks come from here and not from the model's own code, so sliding windows are counted in depths, and soft-capping and
attention sinks are applied where a block asks for them. Costs: T·(P+T) scores a head; on CUDA, FlexAttention skips
blocks of 128 x 128 without an ancestor pair.

Legend: B lines of a pass, T positions a line, P path nodes, S = P + T keys, H heads, D width of a head, C carried keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cliffstore.errors import ExtractionError
from cliffstore.model.branches import BranchAttention, StemAttention

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "cliffstore_tree"
_BLOCK = 128

KeysValues = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(slots=True)
class PassAttention:
    """What the blocks of one pass share.

    Attributes
    ----------
    n_queries : T
    depth_S : int64, depth of each key in its sequence; queries are the last T of them
    ends_S : int64, first query behind the subtree of each key; None where a line is one plain sequence
    past : keys and values of the path, by layer: [1, H, P, D]
    carry_C : int64, keys that the next pass needs as its path; None where it needs none
    flex : use FlexAttention where it can be used
    isolate : keep NaN and Inf in a key or value from queries that do not see it: its weight is zero there, but zero
        times NaN is NaN, so one bad token would spoil every other node of the pass
    carried : filled by the pass, by layer
    windows : filled by the pass: the sliding window that each layer asked for, None for none
    """

    n_queries: int
    depth_S: torch.Tensor
    ends_S: torch.Tensor | None
    past: dict[int, KeysValues]
    carry_C: torch.Tensor | None
    flex: bool = False
    isolate: bool = False
    carried: dict[int, KeysValues] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    _masks: dict[object, object] = field(default_factory=dict)

    def mask(self, window: int | None, query_BHTD: torch.Tensor) -> torch.Tensor | None:
        """Return what is added to the scores, [1, 1, T, S] in the query's dtype; None for plain causal attention."""
        if self.ends_S is None and window is None:
            return None
        key = ("dense", window, query_BHTD.device)
        if key not in self._masks:
            sees_TS = self.sees(window).to(query_BHTD.device)
            mask_TS = query_BHTD.new_zeros(sees_TS.shape).masked_fill_(~sees_TS, float("-inf"))
            self._masks[key] = mask_TS[None, None]
        return self._masks[key]

    def sees(self, window: int | None) -> torch.Tensor:
        """Return whether query t sees key s, bool [T, S]."""
        import torch

        n_keys = len(self.depth_S)
        n_path = n_keys - self.n_queries
        query_T1 = torch.arange(self.n_queries, device=self.depth_S.device)[:, None]
        key_1S = torch.arange(n_keys, device=self.depth_S.device)[None, :]
        sees_TS = key_1S <= query_T1 + n_path
        if self.ends_S is not None:
            sees_TS &= query_T1 < self.ends_S[None, :]
        if window is not None:
            sees_TS &= self.depth_S[n_path:, None] - self.depth_S[None, :] < window
        return sees_TS

    def block_mask(self, window: int | None) -> object:
        """Return the same as `sees` in FlexAttention's sparse form."""
        key = ("flex", window)
        if key not in self._masks:
            self._masks[key] = self._make_block_mask(window)
        return self._masks[key]

    def _make_block_mask(self, window: int | None) -> object:
        from torch.nn.attention.flex_attention import create_block_mask

        depth_S, ends_S = self.depth_S, self.ends_S
        n_keys, n_queries = len(depth_S), self.n_queries
        n_path = n_keys - n_queries

        def sees(_b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            seen = s <= q + n_path
            if ends_S is not None:
                seen = seen & (q < ends_S[s])
            if window is not None:
                seen = seen & (depth_S[q + n_path] - depth_S[s] < window)
            return seen

        return create_block_mask(
            sees, None, None, n_queries, n_keys, device=depth_S.device, BLOCK_SIZE=_BLOCK, _compile=False
        )


_CURRENT: ContextVar[PassAttention | BranchAttention | StemAttention] = ContextVar("pass")


@contextmanager
def attending(current: PassAttention | BranchAttention | StemAttention) -> Iterator[None]:
    """Make `current` the pass that the attention function serves."""
    token = _CURRENT.set(current)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def install(model: PreTrainedModel) -> bool:
    """Give the model this attention; return False where it does not let its attention be replaced."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError, NotImplementedError):
        return False
    return all(config._attn_implementation == NAME for config in (model.config, model.config.get_text_config()))


def uninstall(model: PreTrainedModel, implementation: str) -> None:
    """Give the model back the attention that it was loaded with."""
    model.set_attn_implementation(implementation)


def attend(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **other: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it. Returns [B, T, H, D] and no weights.

    Parameters
    ----------
    attention_mask : must be None: the pass brings its own
    sliding_window : depths that a query sees back, itself included
    softcap : scores s become softcap·tanh(s / softcap) (Gemma 2)
    s_aux : one more logit a head that takes part in the softmax and is then dropped (attention sinks)

    Raises
    ------
    ExtractionError
        The block asks for something that this function does not do.
    """
    unknown = {name for name, value in other.items() if name in _UNSUPPORTED and value is not None}
    if attention_mask is not None or unknown:
        raise ExtractionError(f"attention of {type(module).__name__} asks for {sorted(unknown) or 'its own mask'}")
    current = _CURRENT.get()
    layer = int(module.layer_idx)
    scale = scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5
    if isinstance(current, BranchAttention | StemAttention):
        new = (query_BHTD, key_BHTD, value_BHTD)
        return current.answer(layer, *new, scale, sliding_window, softcap, s_aux).transpose(1, 2).contiguous(), None
    current.windows[layer] = sliding_window
    if layer in current.past:
        key_BHTD, value_BHTD = (
            _join(path, new) for path, new in zip(current.past[layer], (key_BHTD, value_BHTD), strict=True)
        )
    if current.carry_C is not None:
        carry_C = current.carry_C.to(key_BHTD.device)
        current.carried[layer] = (key_BHTD.index_select(2, carry_C), value_BHTD.index_select(2, carry_C))
    bad_BT = None
    if current.isolate:
        key_BHTD, value_BHTD, bad_BT = _isolate(current, key_BHTD, value_BHTD, sliding_window)
    if current.flex and current.ends_S is not None and s_aux is None:
        found = _flex(current, query_BHTD, key_BHTD, value_BHTD, scale, sliding_window, softcap)
    else:
        repeats = query_BHTD.shape[1] // key_BHTD.shape[1]
        if repeats > 1:
            key_BHTD, value_BHTD = (x.repeat_interleave(repeats, dim=1) for x in (key_BHTD, value_BHTD))
        run = _dense if softcap is None and s_aux is None else _by_hand
        found = run(current, query_BHTD, key_BHTD, value_BHTD, scale, sliding_window, softcap, s_aux)
    if bad_BT is not None:
        found = found.masked_fill(bad_BT[:, None, :, None], float("nan"))
    return found.transpose(1, 2).contiguous(), None


_UNSUPPORTED = ("position_bias", "cache", "head_mask", "block_mask")


def _join(path_1HPD: torch.Tensor, new_BHTD: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([path_1HPD.expand(new_BHTD.shape[0], -1, -1, -1), new_BHTD], dim=2)


def _isolate(
    current: PassAttention, key_BHSD: torch.Tensor, value_BHSD: torch.Tensor, window: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return keys and values with zeros in place of NaN and Inf, and which queries see such a key, bool [B, T]."""
    import torch

    bad_BS = ~(torch.isfinite(key_BHSD).all(-1) & torch.isfinite(value_BHSD).all(-1)).all(1)
    sees_TS = current.sees(window).to(bad_BS.device)
    bad_BT = torch.stack([sees_TS[:, bad_S].any(1) for bad_S in bad_BS])
    key_BHSD, value_BHSD = (torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in (key_BHSD, value_BHSD))
    return key_BHSD, value_BHSD, bad_BT


def _dense(
    current: PassAttention,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    scale: float,
    window: int | None,
    _softcap: float | None,
    _sinks: torch.Tensor | None,
) -> torch.Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    mask = current.mask(window, query_BHTD)
    return scaled_dot_product_attention(
        query_BHTD, key_BHSD, value_BHSD, attn_mask=mask, scale=scale, is_causal=mask is None
    )


def _by_hand(
    current: PassAttention,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """Write the scores out, for what the fused kernels do not do."""
    import torch

    scores_BHTS = query_BHTD @ key_BHSD.transpose(2, 3) * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    sees_TS = current.sees(window).to(scores_BHTS.device)
    scores_BHTS = scores_BHTS.masked_fill_(~sees_TS, float("-inf"))
    if sinks_H is not None:
        sinks_BHT1 = sinks_H.view(1, -1, 1, 1).expand(*scores_BHTS.shape[:3], 1).to(scores_BHTS.dtype)
        scores_BHTS = torch.cat([scores_BHTS, sinks_BHT1], dim=-1)
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1, dtype=torch.float32).to(query_BHTD.dtype)
    return weights_BHTS[..., : key_BHSD.shape[2]] @ value_BHSD


def _flex(
    current: PassAttention,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    import torch

    def capped(score: torch.Tensor, *_index: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return _compiled_flex()(
        query_BHTD.contiguous(),
        key_BHSD.contiguous(),
        value_BHSD.contiguous(),
        score_mod=capped if softcap is not None else None,
        block_mask=current.block_mask(window),
        scale=scale,
        enable_gqa=query_BHTD.shape[1] != key_BHSD.shape[1],
    )


_FLEX: list[Callable[..., torch.Tensor]] = []


def _compiled_flex() -> Callable[..., torch.Tensor]:
    if not _FLEX:
        import torch
        from torch.nn.attention.flex_attention import flex_attention

        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]
