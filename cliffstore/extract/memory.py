"""Running out of memory: how to know it, and what to do first."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short, on the device or on the host."""
    import torch

    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or ("can't allocate memory" in text)
    )


def free_memory(device: str) -> None:
    """Give back what a failed pass left behind."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
