"""What a model's configuration says about its attention: sliding windows, and positions that depend on length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def windows_of(config: PretrainedConfig, n_layers: int) -> dict[int, int | None] | None:
    """Return the sliding window of each layer (None: none), or None where a layer is another kind of attention."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        used = window if getattr(text, "use_sliding_window", True) else None
        return dict.fromkeys(range(n_layers), used)
    if set(kinds) - {_FULL, _SLIDING}:
        return None
    return {layer: window if kinds[layer] == _SLIDING else None for layer in range(n_layers)}


def length_dependent_above(config: PretrainedConfig) -> int | None:
    """Return the length above which rotary embeddings depend on the whole sequence; None where they never do.

    Longer examples do not share activations with shorter ones, although their prefixes are equal.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    by_kind = [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]
    limits = [
        int(one.get("original_max_position_embeddings") or text.max_position_embeddings)
        for one in by_kind
        if one.get("rope_type") in _LENGTH_DEPENDENT_ROPE
    ]
    return min(limits, default=None)
