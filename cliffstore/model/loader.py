"""Finding a model, telling it apart from every other, and loading it without its LM head.

A model is a local folder, a hub name, or a `.gguf` file (converted once, see `gguf.py`). Weights come from safetensors
only: nothing is unpickled, and no code from a model's repository runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cliffstore.errors import ModelError
from cliffstore.model.gguf import converted
from cliffstore.schema import ModelIdentity

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_VOLATILE_CONFIG = ("_name_or_path", "_model_name_or_path", "transformers_version", "_commit_hash")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is, and who it is.

    Attributes
    ----------
    location : folder or hub name that transformers loads from
    context : longest sequence that the model takes, None where its configuration does not say
    dtype : what the checkpoint is in
    """

    location: str
    revision: str | None
    identity: ModelIdentity
    context: int | None
    dtype: str


def find_model(name: str, revision: str | None, notice: Callable[[str], None]) -> ModelSource:
    """Look a model up and read its configuration; no weights are loaded.

    Parameters
    ----------
    notice : told where a GGUF file is unpacked, which takes a while the first time

    Raises
    ------
    ModelError
        There is no such model, or it is none that transformers knows.
    """
    location = _location(name, notice)
    config = _read_config(name, location, revision)
    text = config.get_text_config()
    if not hasattr(text, "num_hidden_layers") or not hasattr(text, "hidden_size"):
        raise ModelError(f"model {name}: a {config.model_type} has no layers of one width to capture")
    dtype = str(getattr(text, "dtype", None) or getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    commit = getattr(config, "_commit_hash", None)
    identity = ModelIdentity(
        name=_public_name(name),
        revision=commit,
        config_digest=_config_digest(config),
        weights_digest=_weights_digest(Path(location)) if Path(location).is_dir() else None,
        model_type=str(text.model_type),
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
    )
    return ModelSource(location, commit or revision, identity, getattr(text, "max_position_embeddings", None), dtype)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises `ModelError` where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.identity.name} has no tokenizer that loads: {_first_line(error)}") from None


def load_model(source: ModelSource, dtype: str, device: str) -> PreTrainedModel:
    """Load a model without its LM head, in evaluation mode.

    Raises
    ------
    ModelError
        It has no safetensors weights, or they lack parameters.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            source.location,
            revision=source.revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.identity.name} does not load: {_first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(f"model {source.identity.name} lacks {len(missing)} weights, the first is {missing[0]}")
    return model.eval().requires_grad_(False).to(choose_device(device))


def choose_device(device: str) -> torch.device:
    """Return the named device; `auto` is the GPU where there is one."""
    import torch

    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ModelError(f"device {device!r}: {_first_line(error)}") from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _location(name: str, notice: Callable[[str], None]) -> str:
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {name}: no such file")
        return str(converted(path, notice))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name}: the folder has no config.json; give the folder that save_pretrained wrote")
        if not any(path.glob("*.safetensors")):
            raise ModelError(f"model {name}: the folder has no .safetensors weights; pickled weights are never loaded")
        return str(path)
    if name.startswith((".", "/", "~")) or path.exists() or name.count("/") > 1:
        raise ModelError(f"model {name}: no such folder")
    return name


def _public_name(name: str) -> str:
    """Hub names stay whole; of local paths only the last part is kept, so that stores do not depend on a machine."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _read_config(name: str, location: str, revision: str | None) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=revision)
    except OSError as error:
        raise ModelError(f"model {name}: no such folder, and not found on the hub ({_first_line(error)})") from None
    except ValueError as error:
        raise ModelError(f"model {name}: {_first_line(error)}") from None


def _config_digest(config: PretrainedConfig) -> str:
    values = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE_CONFIG}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _weights_digest(folder: Path) -> str:
    """Digest name, size and evenly spread samples of every weight file: a tuned twin differs, and it takes no time."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * sample // max(_SAMPLES - 1, 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
