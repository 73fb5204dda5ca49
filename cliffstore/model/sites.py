"""Where an activation is read in a model: found by structure, not by the name of an architecture.

`resid_post[i]` is the raw output of block i. The final norm comes after the last block and is a site of its own;
its layer is the last block's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cliffstore.config import parse_ranges
from cliffstore.errors import ModelError
from cliffstore.records import FINAL_NORM, SITES
from cliffstore.schema import ArrayIdentity, ModelIdentity

if TYPE_CHECKING:
    from torch import nn

_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm")


@dataclass(frozen=True, slots=True)
class ModelSites:
    """The modules of a model that sites are read from, and the place that holds its blocks."""

    blocks: nn.ModuleList
    holder: nn.Module
    attribute: str
    final_norm: nn.Module | None

    def keep_blocks(self, n_blocks: int) -> None:
        """Drop the blocks from `n_blocks` on: what is not stored is not computed."""
        setattr(self.holder, self.attribute, self.blocks[:n_blocks])


def locate(model: nn.Module, n_layers: int) -> ModelSites:
    """Find blocks and final norm of a model without LM head.

    Raises
    ------
    ModelError
        There is no list of `n_layers` blocks.
    """
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            parent, _, attribute = name.rpartition(".")
            holder = model.get_submodule(parent)
            norms = (getattr(holder, norm, None) for norm in _FINAL_NORMS)
            final_norm = next((norm for norm in norms if isinstance(norm, nn.Module)), None)
            return ModelSites(module, holder, attribute, final_norm)
    raise ModelError(f"model {type(model).__name__}: no list of {n_layers} blocks was found in it")


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Return the layers that `all`, `0-29` or `8,16` names, sorted.

    Raises
    ------
    ConfigError
        It is malformed.
    ModelError
        It names a layer that the model has not.
    """
    if text.strip() == "all":
        return list(range(n_layers))
    ranges = parse_ranges(text)
    highest = max(one.stop - 1 for one in ranges)
    if highest >= n_layers:
        raise ModelError(f"layer {highest} is not in the model: it has layers 0-{n_layers - 1}")
    return sorted({layer for one in ranges for layer in one})


def arrays_of(model: ModelIdentity, sites: Sequence[str], layers: Sequence[int]) -> list[ArrayIdentity]:
    """Return the arrays that capturing `sites` at `layers` fills, in the order of sites and layers.

    Raises
    ------
    ModelError
        A site is unknown.
    """
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        raise ModelError(f"site {unknown[0] if unknown else ''!r} is not known: choose from {', '.join(SITES)}")
    shape = [model.d_model]
    arrays: list[ArrayIdentity] = []
    for site in dict.fromkeys(sites):
        chosen = [model.n_layers - 1] if site == FINAL_NORM else layers
        arrays.extend(ArrayIdentity(site=site, layer=layer, shape=shape) for layer in chosen)
    return arrays
