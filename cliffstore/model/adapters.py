"""PEFT adapters: who one is, and laying it over a model without merging.

Merging would add the adapter's product to the weights and round the sum to their dtype: in bfloat16 that drops most
of a small update, and what is captured would be of a model that nobody trained. Unmerged, the adapter's share is
computed beside each layer, in float32 as in training, and only the layer's output is rounded.

Weights come from `adapter_model.safetensors` only. PEFT itself falls back to a pickled file and warns where an
adapter was not (wholly) applied; here both are errors. Fit is checked on a skeleton without weights, before anything
is written: it costs the time to build the model's modules.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliffstore.errors import ModelError
from cliffstore.model.location import first_line, means_a_folder, public_name
from cliffstore.schema import AdapterIdentity

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Kinds that act within the model's own layers, where captures look. Others add virtual tokens or route by task.
KINDS = (
    *("ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR"),
    *("LORA", "MISS", "OFT", "RANDLORA", "ROAD", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT"),
)
_VOLATILE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
# Options whose effect depends on more than a layer's input, or that change how many layers there are.
_UNSUPPORTED = ("alora_invocation_tokens", "arrow_config", "layer_replication", "monteclora_config")
# Starts that also change the base model's weights, some of them at random.
_CHANGES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where an adapter is, and who it is.

    Attributes
    ----------
    location : folder or hub name
    revision : commit on the hub, None for a folder
    """

    location: str
    revision: str | None
    identity: AdapterIdentity


def find_adapter(name: str, revision: str | None = None) -> AdapterSource:
    """Look an adapter up and read its configuration.

    Parameters
    ----------
    name : local folder or hub name
    revision : of the adapter on the hub

    Raises
    ------
    ModelError
        There is no such adapter, it has no safetensors weights, it is of a kind that cannot be captured, or peft is
        not installed.
    """
    folder, commit = _folder(name, revision)
    kind = str(_read_config(name, folder).peft_type.value)
    identity = AdapterIdentity(name=public_name(name), kind=kind, digest=adapter_digest(folder))
    location = str(folder) if commit is None else name
    return AdapterSource(location, commit, identity)


def check_fit(adapter: AdapterSource, config: PretrainedConfig, model_name: str) -> None:
    """Raise `ModelError` where an adapter does not fit the model that a configuration describes."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ModelError(f"model {model_name} is no language model to adapt: {first_line(error)}") from None
    lay_over(skeleton, adapter, model_name)


def lay_over(whole: PreTrainedModel, adapter: AdapterSource, model_name: str) -> PreTrainedModel:
    """Lay an adapter over a model, unmerged, and return the model without its LM head.

    Parameters
    ----------
    whole : with its LM head, since adapters name their weights after the whole model; changed in place

    Raises
    ------
    ModelError
        The adapter was made for another model, changed since it was found, or some of its weights have no place.
    """
    peft = _peft()
    folder, _ = _folder(adapter.location, adapter.revision)
    name = adapter.identity.name
    if adapter_digest(folder) != adapter.identity.digest:
        raise ModelError(f"adapter {name} is not what it was when this run began: run again")
    names = _weight_names(name, folder)
    with_head = any(weight.startswith(f"base_model.model.{whole.base_model_prefix}.") for weight in names)
    on_meta = whole.device.type == "meta"
    try:
        # The two halves of PeftModel.from_pretrained, which keeps to itself what was loaded.
        wrapped = peft.PeftModel(
            whole if with_head else whole.base_model, _read_config(name, folder), low_cpu_mem_usage=on_meta
        )
        report = wrapped.load_adapter(str(folder), "default", torch_device="cpu", low_cpu_mem_usage=on_meta)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"adapter {name} does not fit model {model_name}: {_misfit(error)}") from None
    # Vector banks are shared: PEFT lists them once for each layer, and finds them once.
    missing = sorted(weight for weight in report.missing_keys if "vblora_vector_bank" not in weight)
    if missing or report.unexpected_keys:
        first = missing[0] if missing else sorted(report.unexpected_keys)[0]
        raise ModelError(
            f"adapter {name} does not fit model {model_name}: {len(missing)} of its weights are missing and "
            f"{len(report.unexpected_keys)} have no place, the first is {first}"
        )
    return whole.base_model


def adapter_digest(folder: Path) -> str:
    """Digest an adapter's weights and what of its configuration bears on the computation, wherever it lies.

    PEFT keeps names of modules as sets and writes them in any order, hence sorted here; an option that is null is
    one that is not set.
    """
    values = json.loads((folder / CONFIG_FILE).read_bytes())
    kept = {
        key: sorted(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value
        for key, value in values.items()
        if key not in _VOLATILE and value is not None
    }
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _folder(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the local folder with an adapter's two files, and its commit where it is from the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise ModelError(f"adapter {name}: the folder has no {CONFIG_FILE}; give the folder that PEFT wrote")
        if not (path / WEIGHTS_FILE).is_file():
            raise ModelError(_no_weights(name))
        return path, None
    if means_a_folder(name):
        raise ModelError(f"adapter {name}: no such folder")
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    try:
        config = cached_file(name, CONFIG_FILE, revision=revision)
    except OSError as error:
        raise ModelError(f"adapter {name}: no such folder, and not found on the hub ({first_line(error)})") from None
    commit = extract_commit_hash(str(config), None)
    try:
        weights = cached_file(name, WEIGHTS_FILE, revision=commit or revision)
    except OSError:
        raise ModelError(_no_weights(name)) from None
    return Path(weights).parent, commit


def _no_weights(name: str) -> str:
    return f"adapter {name} has no {WEIGHTS_FILE}; pickled weights (adapter_model.bin) are never loaded"


def _read_config(name: str, folder: Path) -> PeftConfig:
    """Return an adapter's configuration. Raises `ModelError` where its effect could not be captured faithfully."""
    kinds = _peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    try:
        values = json.loads((folder / CONFIG_FILE).read_bytes())
    except ValueError as error:
        raise ModelError(f"adapter {name}: {CONFIG_FILE} is not JSON: {first_line(error)}") from None
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind not in KINDS or kind not in kinds:
        raise ModelError(f"adapter {name}: kind {kind} cannot be captured, these can: {', '.join(KINDS)}")
    known = {field.name for field in fields(kinds[kind])}
    refused = [key for key, value in values.items() if value and (key in _UNSUPPORTED or key not in known)]
    if refused:
        raise ModelError(f"adapter {name}: its option {refused[0]} is not supported, or needs a newer peft")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise ModelError(
            f"adapter {name}: its start {start!r} also changes the base model: save it as plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    try:
        config = kinds[kind].from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"adapter {name}: {CONFIG_FILE}: {first_line(error)}") from None
    config.inference_mode = True
    return config


def _weight_names(name: str, folder: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ModelError(f"adapter {name}: {WEIGHTS_FILE} is damaged: {first_line(error)}") from None


def _misfit(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line.startswith("size mismatch")), first_line(error))[:300]


def _peft() -> Any:
    try:
        import peft
        import peft.mapping
    except ImportError:
        raise ModelError("--adapter needs the package peft: pip install 'cliffstore[adapters]'") from None
    return peft
