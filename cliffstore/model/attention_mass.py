"""How much attention chosen heads pay to each segment, from chosen positions.

The model runs with an attention function of our own, which computes what `attention.attend` computes and, in the blocks
of chosen heads, once more the rows of chosen positions: scaled scores, soft-capped where the model does so, masked as
causal attention and the block's sliding window are, with the block's sink if it has one, and their softmax in float32.
The rows are summed by segment at once and let go (see `attention_rows`). The highest of these blocks ends the pass.

Not every model can be read: one that does not let its attention be replaced, layers of another kind of attention
(linear, chunked, state space), and models that disagree with their own plain forward pass are refused.

Legend: B lines of a pass, T positions of a line, Q positions that look, S keys, H chosen heads, G segments, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from cliffstore.errors import ModelError
from cliffstore.model import attention
from cliffstore.model.attention import PassAttention, attend, attending
from cliffstore.model.attention_rows import AllReadError, Head, Line, LineMass, RowReader
from cliffstore.model.sites import locate
from cliffstore.model.traits import length_dependent_above, windows_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "cliffstore_mass"
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest |difference| / |plain| of what the blocks return; a wrong mask shows as several tenths."""


class AttentionMass:
    """A model cut down to what the attention of chosen heads needs.

    Parameters
    ----------
    model : without LM head, in evaluation mode; blocks above the highest chosen head are dropped
    heads : the order of H
    n_layers, n_heads : of the whole model

    Attributes
    ----------
    whole_below : the longest example that may be cut, and go beside others; None for any

    Raises
    ------
    ModelError
        There is no such head, or attention cannot be read in this model.
    """

    def __init__(self, model: PreTrainedModel, heads: Sequence[Head], n_layers: int, n_heads: int) -> None:
        check_heads(heads, n_layers, n_heads)
        kind = type(model).__name__
        expected = windows_of(model.config, n_layers)
        if expected is None:
            raise ModelError(
                f"model {kind}: some of its layers are not plain attention over positions, which is not read"
            )
        self.heads = tuple(heads)
        self._windows = expected
        self._model = model
        self._n_blocks = max(layer for layer, _ in heads) + 1
        locate(model, n_layers).keep_blocks(self._n_blocks)
        self.whole_below = length_dependent_above(model.config)
        self._loaded_with = str(model.config._attn_implementation)
        if not _install(model):
            attention.uninstall(model, self._loaded_with)
            raise ModelError(f"model {kind} does not let its attention be replaced, so it cannot be read")

    def check(self, line: Line) -> None:
        """Hold a pass of ours against one of the model as it was loaded. Raises `ModelError` where they disagree."""
        import torch

        ids_1T = torch.from_numpy(line.token_ids_T)[None].to(self._model.device)
        reader = RowReader(self.heads, [line], last=-1)
        with torch.inference_mode():
            with _reading(reader, _pass_of(ids_1T)):
                found_1TD = self._model(ids_1T, use_cache=False).last_hidden_state.float()
            attention.uninstall(self._model, self._loaded_with)
            try:
                plain_1TD = self._model(ids_1T, use_cache=False).last_hidden_state.float()
            finally:
                _install(self._model)
        kind = type(self._model).__name__
        asked = {layer: window for layer, window in reader.windows.items() if window != self._windows[layer]}
        if asked or set(reader.windows) != set(range(self._n_blocks)):
            raise ModelError(
                f"model {kind}: some of its layers are not plain attention over positions, which is not read"
            )
        error = float(((found_1TD - plain_1TD).norm(dim=-1) / (plain_1TD.norm(dim=-1) + 1e-30)).max())
        if not error <= _TOLERANCE[str(self._model.dtype).removeprefix("torch.")]:
            raise ModelError(f"model {kind}: its attention cannot be read: a plain forward pass differs by {error:.1e}")

    def measure(self, lines: Sequence[Line]) -> list[LineMass]:
        """Return the mass of each line. Lines go through side by side, padded on the right, where nothing looks.

        Raises
        ------
        ExtractionError
            A block did not compute attention as it did when the model was checked.
        """
        import torch

        longest = max(len(line.token_ids_T) for line in lines)
        ids_BT = torch.zeros((len(lines), longest), dtype=torch.int64)
        for line, ids_T in zip(lines, ids_BT, strict=True):
            ids_T[: len(line.token_ids_T)] = torch.from_numpy(line.token_ids_T)
        ids_BT = ids_BT.to(self._model.device)
        positions_BT = torch.arange(longest, device=ids_BT.device).expand(ids_BT.shape)
        reader = RowReader(self.heads, lines, last=self._n_blocks - 1)
        with torch.inference_mode(), _reading(reader, _pass_of(ids_BT)), suppress(AllReadError):
            self._model(ids_BT, position_ids=positions_BT, use_cache=False)
        return reader.found()


def check_heads(heads: Sequence[Head], n_layers: int, n_heads: int) -> None:
    """Raise `ModelError` where there is no such head, or none is named."""
    if not heads:
        raise ModelError("no head is named: say some as LAYER:HEAD, such as 3:1,5:0")
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ModelError(
                f"head {layer}:{head} is not in the model, which has layers 0-{n_layers - 1} of heads 0-{n_heads - 1}"
            )


_READING: ContextVar[RowReader] = ContextVar("reading")


@contextmanager
def _reading(reader: RowReader, current: PassAttention) -> Iterator[None]:
    token = _READING.set(reader)
    try:
        with attending(current):
            yield
    finally:
        _READING.reset(token)


def _pass_of(ids_BT: torch.Tensor) -> PassAttention:
    import torch

    n_tokens = ids_BT.shape[1]
    depth_S = torch.arange(n_tokens, device=ids_BT.device)
    return PassAttention(n_queries=n_tokens, depth_S=depth_S, ends_S=None, past={}, carry_C=None)


def _install(model: PreTrainedModel) -> bool:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend_and_read)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError, NotImplementedError):
        return False
    return all(config._attn_implementation == NAME for config in (model.config, model.config.get_text_config()))


def _attend_and_read(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; what is not done is refused by `attention.attend`."""
    found = attend(
        module,
        query_BHTD,
        key_BHTD,
        value_BHTD,
        attention_mask,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        s_aux=s_aux,
        **other,
    )
    scale = scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5
    _READING.get()(int(module.layer_idx), query_BHTD, key_BHTD, scale, sliding_window, softcap, s_aux)
    return found
