"""GGUF files: unpacked once into a folder of safetensors, which loads in seconds from then on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cliffstore.errors import ModelError
from cliffstore.model.location import first_line

_CONVERTER = "1"


def cache_folder() -> Path:
    """Return the folder that converted models are kept in: CLIFFSTORE_CACHE, else the user's cache folder."""
    given = os.environ.get("CLIFFSTORE_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cliffstore"


def converted(gguf: Path, notice: Callable[[str], None]) -> Path:
    """Return the folder with the file's model and tokenizer in bfloat16 safetensors, made if it is not there yet.

    The folder's name carries the content's digest, and it appears only when complete, so an interrupted or
    simultaneous conversion does no harm.
    """
    target = cache_folder() / f"{gguf.stem}-{_digest(gguf)}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        notice(f"unpacking {gguf.name} into {target}, once")
        _convert(gguf, staging)
        try:
            os.replace(staging, target)
        except OSError:  # another process was first: a folder does not replace one that holds something
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # Newer transformers keep GGUF weights packed unless told otherwise; packed weights cannot be saved.
    unpack = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars, one a tensor
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, **unpack)
    except Exception as error:  # on a damaged file the readers of transformers and tokenizers raise anything
        raise ModelError(
            f"model {gguf}: the GGUF file does not load; it may be cut off, or of a kind that transformers does not "
            f"read ({first_line(error)})"
        ) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(path: Path) -> str:
    digest = hashlib.sha256(_CONVERTER.encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
