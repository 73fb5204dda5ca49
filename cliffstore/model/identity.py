"""Who a model is: finding it, reading its shape, and telling it apart from every other. No weights are loaded.

A model is a local folder, a hub name, or a `.gguf` file (converted once, see `gguf.py`), with or without a PEFT
adapter over it (see `adapters.py`). Two captures are of the same model where the digests of configuration, weights
and adapter are equal: the whole configuration, a sample of each tensor, the whole adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cliffstore.errors import ModelError
from cliffstore.model.adapters import AdapterSource, check_fit, find_adapter
from cliffstore.model.gguf import converted
from cliffstore.model.location import first_line, means_a_folder, public_name
from cliffstore.schema import ModelIdentity

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SAMPLES, _SAMPLE_BYTES = 4, 4096
"""What of each tensor is read to tell models apart."""
_VOLATILE_CONFIG = ("_name_or_path", "_model_name_or_path", "transformers_version", "_commit_hash")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is, and who it is.

    Attributes
    ----------
    location : folder or hub name that transformers loads from
    context : longest sequence that the model takes, None where its configuration does not say
    dtype : what the checkpoint is in
    adapter : what is laid over the model, None for the bare model
    """

    location: str
    revision: str | None
    identity: ModelIdentity
    context: int | None
    dtype: str
    adapter: AdapterSource | None = None


def find_model(
    name: str, revision: str | None, notice: Callable[[str], None], adapter: str | None = None
) -> ModelSource:
    """Look a model up and read its configuration; no weights are loaded.

    Parameters
    ----------
    revision : of the model on the hub; an adapter is taken at its newest
    notice : told where a GGUF file is unpacked, which takes a while the first time
    adapter : PEFT adapter, local folder or hub name

    Raises
    ------
    ModelError
        There is no such model, it is none that transformers knows, or the adapter does not fit it.
    """
    location = _location(name, notice)
    _refuse_embedded_adapter(name, location, revision)
    config = _read_config(name, location, revision)
    text = config.get_text_config()
    if not hasattr(text, "num_hidden_layers") or not hasattr(text, "hidden_size"):
        raise ModelError(f"model {name}: a {config.model_type} has no layers of one width to capture")
    over = None
    if adapter is not None:
        over = find_adapter(adapter)
        check_fit(over, config, name)
    dtype = str(getattr(text, "dtype", None) or getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    commit = getattr(config, "_commit_hash", None)
    n_heads, d_head = heads_of(text)
    identity = ModelIdentity(
        name=public_name(name),
        revision=commit,
        config_digest=_config_digest(config),
        weights_digest=_weights_digest(Path(location)) if Path(location).is_dir() else None,
        model_type=str(text.model_type),
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
        n_heads=n_heads,
        d_head=d_head,
        adapter=over.identity if over is not None else None,
    )
    context = getattr(text, "max_position_embeddings", None)
    return ModelSource(location, commit or revision, identity, context, dtype, over)


def heads_of(text: PretrainedConfig) -> tuple[int, int]:
    """Return the number of attention heads and the width of one head's output, (0, 0) without attention.

    Models with latent attention (DeepSeek) give queries and values different widths; `z` is made of values.
    """
    n_heads = getattr(text, "num_attention_heads", None)
    if not isinstance(n_heads, int) or n_heads < 1:
        return 0, 0
    given = getattr(text, "v_head_dim", None) or getattr(text, "head_dim", None)
    return n_heads, int(given or text.hidden_size // n_heads)


def _location(name: str, notice: Callable[[str], None]) -> str:
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {name}: no such file")
        return str(converted(path, notice))
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise ModelError(f"model {name} is an adapter: give it with --adapter, and its base with --model")
            raise ModelError(f"model {name}: the folder has no config.json; give the folder that save_pretrained wrote")
        if not any(path.glob("*.safetensors")):
            raise ModelError(f"model {name}: the folder has no .safetensors weights; pickled weights are never loaded")
        return str(path)
    if means_a_folder(name):
        raise ModelError(f"model {name}: no such folder")
    return name


def _refuse_embedded_adapter(name: str, location: str, revision: str | None) -> None:
    """Refuse a repository that carries an adapter.

    transformers would lay it over the weights where peft is installed, and not where it is not.
    """
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(location, revision=revision) is not None:
        raise ModelError(
            f"model {name} carries an adapter (adapter_config.json): give the bare model with --model and the adapter "
            "with --adapter"
        )


def _read_config(name: str, location: str, revision: str | None) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=revision)
    except OSError as error:
        raise ModelError(f"model {name}: no such folder, and not found on the hub ({first_line(error)})") from None
    except ValueError as error:
        raise ModelError(f"model {name}: {first_line(error)}") from None


def _config_digest(config: PretrainedConfig) -> str:
    values = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE_CONFIG}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _weights_digest(folder: Path) -> str:
    """Digest name, header and samples of every tensor of each weight file.

    A model that was tuned in a single tensor differs, and a large one takes seconds.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            digest.update(header)
            for first, last in _tensors(header, path.name):
                for sample in range(_SAMPLES):
                    file.seek(8 + len(header) + first + max(last - first - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                    digest.update(file.read(min(_SAMPLE_BYTES, last - first)))
    return digest.hexdigest()


def _tensors(header: bytes, name: str) -> list[tuple[int, int]]:
    """Return where the tensors of a safetensors file begin and end, behind its header."""
    try:
        found = json.loads(header)
        return sorted(tuple(one["data_offsets"]) for key, one in found.items() if key != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"weight file {name} is no safetensors file: download it again") from None
