"""Capturing sites during a forward pass.

Legend: B sequences of a pass, T padded positions, D width of the residual stream, N positions that are kept.
Hooks pick the wanted positions as soon as a block returns, so a pass never holds more than it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model.sites import locate
from cliffstore.records import FINAL_NORM
from cliffstore.schema import ArrayIdentity

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class SiteCapture:
    """A model cut down to what its captured sites need.

    Parameters
    ----------
    model : without LM head, in evaluation mode; its unused blocks are dropped
    arrays : what to capture
    n_layers : blocks of the whole model
    """

    def __init__(self, model: PreTrainedModel, arrays: Sequence[ArrayIdentity], n_layers: int) -> None:
        sites = locate(model, n_layers)
        self.model = model
        self._modules: dict[str, torch.nn.Module] = {}
        for array in arrays:
            module = sites.final_norm if array.site == FINAL_NORM else sites.blocks[array.layer]
            if module is None:
                raise ModelError(
                    f"model {type(model).__name__}: its final norm was not found, so there is no final_norm"
                )
            self._modules[f"{array.site}/{array.layer}"] = module
        sites.keep_blocks(max(array.layer for array in arrays) + 1)

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        return self.model.device

    def forward(
        self, input_ids_BT: torch.Tensor, mask_BT: torch.Tensor, kept_N: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Run one right-padded pass.

        Parameters
        ----------
        input_ids_BT : int64
        mask_BT : int64, 1 for tokens and 0 for padding
        kept_N : int64, indices into the flattened B·T positions

        Returns
        -------
        Array name -> [N, D] in the model's dtype, on the model's device.
        """
        import torch

        found: dict[str, torch.Tensor] = {}

        def keep(name: str, output: object) -> None:
            hidden_BTD = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden_BTD, torch.Tensor) or hidden_BTD.dim() != 3:
                raise ExtractionError(f"{name} is not one hidden state a position: {type(hidden_BTD).__name__}")
            found[name] = hidden_BTD.flatten(0, 1)[kept_N]

        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
            for name, module in self._modules.items()
        ]
        try:
            with torch.inference_mode():
                self.model(input_ids=input_ids_BT, attention_mask=mask_BT, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found
