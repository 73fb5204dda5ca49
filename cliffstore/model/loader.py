"""Loading a model's tokenizer and weights, without the LM head, onto one device or spread over several GPUs.

Weights come from safetensors only: nothing is unpickled, and no code from a model's repository runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cliffstore.errors import ModelError
from cliffstore.model.adapters import lay_over
from cliffstore.model.identity import ModelSource
from cliffstore.model.location import first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS_SHARE = 0.9
"""Part of a GPU's free memory that weights may take; activations need the rest."""


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises `ModelError` where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.identity.name} has no tokenizer that loads: {first_line(error)}") from None


def load_model(source: ModelSource, dtype: str, device: str, gpus: int = 1, *, head: bool = False) -> PreTrainedModel:
    """Load a model without its LM head, its adapter laid over it, in evaluation mode.

    With an adapter the LM head is loaded too, and dropped: adapters name their weights after the whole model.

    Parameters
    ----------
    head : keep the LM head, for a model that generates
    device : see `choose_device`; `auto` or `cuda` where there are several GPUs
    gpus : GPUs that the model's blocks are spread over

    Raises
    ------
    ModelError
        It has no safetensors weights, they lack parameters, the device is not there, the adapter does not fit, or
        the model does not fit on the GPUs.
    """
    chosen = choose_device(device)
    placement: Mapping[str, object] = {}
    if gpus > 1:
        if device not in ("auto", "cuda"):
            raise ModelError(f"--device {device} is one device, --gpus-per-actor {gpus} needs several: give only one")
        placement = spread(gpu_memory(), gpus)
    model = _load_weights(source, dtype, placement, head=head)
    if gpus > 1:
        check_placement(source.identity.name, getattr(model, "hf_device_map", {}), gpus)
    if source.adapter is not None:
        body = lay_over(model, source.adapter, source.identity.name)  # changes the whole model
        model = model if head else body
    model = model.eval().requires_grad_(False)
    return model if gpus > 1 else model.to(chosen)


def choose_device(device: str) -> torch.device:
    """Return the named device; `auto` is the GPU where there is one.

    Raises
    ------
    ModelError
        There is no such device on this machine.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r}: {first_line(error)}") from None
    count = device_count(chosen.type)
    if (chosen.index or 0) >= count:
        have = f"{count} of kind {chosen.type}, counted from 0" if count else f"none of kind {chosen.type}"
        raise ModelError(f"device {device!r} is not on this machine, which has {have}: choose another with --device")
    return chosen


def spread(free_bytes: Sequence[int], gpus: int) -> dict[str, object]:
    """Return the arguments of `from_pretrained` that spread a model over the first `gpus` GPUs.

    Parameters
    ----------
    free_bytes : free memory of each visible GPU

    Raises
    ------
    ModelError
        Fewer GPUs are visible.
    """
    if len(free_bytes) < gpus:
        raise ModelError(f"--gpus-per-actor {gpus}: only {len(free_bytes)} GPU(s) are visible here")
    share = {index: int(free * _WEIGHTS_SHARE) for index, free in enumerate(free_bytes[:gpus])}
    return {"device_map": "auto", "max_memory": share}


def check_placement(name: str, placement: Mapping[str, object], gpus: int) -> None:
    """Raise `ModelError` where part of a model (module -> device) was left off the GPUs, which would crawl."""
    if any(str(device).partition(":")[0] in ("cpu", "disk", "meta") for device in placement.values()):
        raise ModelError(f"model {name} does not fit on {gpus} GPUs: give more with --gpus-per-actor")


def _load_weights(source: ModelSource, dtype: str, placement: Mapping[str, object], *, head: bool) -> PreTrainedModel:
    """Load a model, with its LM head only if it is wanted or there is an adapter. All weights of layers must be there,
    and those of the head where it is wanted."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    whole = head or source.adapter is not None
    try:
        model, report = (AutoModelForCausalLM if whole else AutoModel).from_pretrained(
            source.location,
            revision=source.revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below by name
            **placement,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {source.identity.name} does not load: {first_line(error)}") from None
    body = f"{model.base_model_prefix}." if whole and not head and model.base_model is not model else ""
    missing = sorted(key for key in report["missing_keys"] if key.startswith(body))
    if missing:
        raise ModelError(f"model {source.identity.name} lacks {len(missing)} weights, the first is {missing[0]}")
    misshapen = sorted(key for key, *_ in report["mismatched_keys"] if key.startswith(body))
    if misshapen:
        raise ModelError(f"model {source.identity.name}: {misshapen[0]} has not the shape that config.json implies")
    return model


def device_count(kind: str) -> int:
    """Return how many devices of a kind torch can use here."""
    import torch

    if kind == "cuda" and not torch.cuda.is_available():  # the driver may count devices that torch cannot use
        return 0
    count = getattr(getattr(torch, kind, None), "device_count", None)
    return int(count()) if count is not None else 0


def gpu_memory() -> list[int]:
    """Return the free memory of each GPU that torch can use, in bytes."""
    import torch

    return [torch.cuda.mem_get_info(index)[0] for index in range(device_count("cuda"))]
