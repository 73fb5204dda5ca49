"""Directions in files: NumPy and safetensors, read without unpickling anything, and written with their provenance."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cliffstore.access import filesystem
from cliffstore.errors import ConfigError
from cliffstore.schema import ProbeDocument
from cliffstore.store.probes import ProbeWeights

FORMATS = (".safetensors", ".npz", ".npy")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")


def as_vector(weights: object) -> npt.NDArray[np.float32]:
    """Return a NumPy array, a torch tensor or a list of numbers as float32 [D]; axes of length one are dropped.

    Raises
    ------
    ConfigError
        It is not one vector of numbers.
    """
    detach = getattr(weights, "detach", None)
    if detach is not None:  # a torch tensor, of whatever device and dtype
        weights = detach().cpu().float().numpy()
    try:
        found = np.squeeze(np.asarray(weights)).astype(np.float32)
    except (TypeError, ValueError):
        raise ConfigError("a direction must be a vector of numbers") from None
    found = found.reshape(-1) if found.ndim == 0 else found
    if found.ndim != 1:
        raise ConfigError(f"a direction must be one vector, found an array of shape {list(found.shape)}")
    return found


def read_direction(
    path: str, options: Mapping[str, object] | None = None
) -> tuple[npt.NDArray[np.float32], float | None]:
    """Return w [D], and b where the file has it, of a `.npy`, `.npz` or `.safetensors` file.

    In a file of several arrays they are called `w` and `b`.

    Raises
    ------
    ConfigError
        There is no such file, or it is of another kind or damaged.
    """
    arrays = read_arrays(path, options)
    name = "w" if "w" in arrays else next(iter(arrays)) if len(arrays) == 1 else None
    if name is None:
        raise ConfigError(f"{path} has the arrays {', '.join(sorted(arrays))}: the direction must be called w")
    offset = np.ravel(arrays["b"]) if "b" in arrays and name != "b" else None
    if offset is not None and offset.size != 1:
        raise ConfigError(f"{path}: b must be one number, found {offset.size}")
    return as_vector(arrays[name]), None if offset is None else float(offset[0])


def is_file(text: str) -> bool:
    """Return whether a text that may name a probe names a file of arrays."""
    return text.lower().endswith((*FORMATS, *_PICKLED))


def read_arrays(path: str, options: Mapping[str, object] | None = None) -> dict[str, npt.NDArray]:
    """Return the arrays of a `.npy`, `.npz` or `.safetensors` file by name. Errors as for `read_direction`."""
    if path.lower().endswith(_PICKLED):
        raise ConfigError(
            f"{path} may be pickled, and cliffstore unpickles nothing: write it as safetensors, "
            "safetensors.torch.save_file({'w': tensor}, 'direction.safetensors'), or hand the tensor to "
            "Store.import_probe"
        )
    if not path.lower().endswith(FORMATS):
        raise ConfigError(f"{path} is of no kind that is read: give a file that ends in {', '.join(FORMATS)}")
    try:
        fs, place = filesystem(path, options or {})
        content: bytes = fs.cat_file(place)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    try:
        return _arrays(path.lower(), content)
    except Exception as error:  # noqa: BLE001  # each library has errors of its own for a damaged file
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def write_direction(
    path: str, document: ProbeDocument, weights: ProbeWeights, options: Mapping[str, object] | None = None
) -> None:
    """Write a probe to a file: w and b, in `.npy` w alone; safetensors carry what the probe is of.

    Raises
    ------
    ConfigError
        The file is of no known kind, or cannot be written.
    """
    arrays = {"w": weights.w_D, "b": np.array([weights.b], dtype=np.float32)}
    buffer = io.BytesIO()
    if path.lower().endswith(".npy"):
        np.save(buffer, weights.w_D, allow_pickle=False)
    elif path.lower().endswith(".npz"):
        np.savez(buffer, allow_pickle=False, **arrays)
    elif path.lower().endswith(".safetensors"):
        from safetensors.numpy import save

        buffer.write(save(arrays, metadata=provenance(document)))
    else:
        raise ConfigError(f"{path} is of no kind that is written: choose a name that ends in {', '.join(FORMATS)}")
    put_file(path, buffer.getvalue(), options)


def put_file(path: str, content: bytes, options: Mapping[str, object] | None = None) -> None:
    """Write a file, in one piece, in the place of what was there. Raises `ConfigError` where that cannot be."""
    try:
        fs, place = filesystem(path, options or {})
        parent = place.rpartition("/")[0]
        if parent:
            fs.makedirs(parent, exist_ok=True)
        fs.pipe_file(place, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or type(error).__name__}") from None


def provenance(document: ProbeDocument) -> dict[str, str]:
    """Return what a probe is of, as texts."""
    named = {
        "name": document.name,
        "kind": document.kind,
        "site": document.site,
        "layer": document.layer,
        "positions": document.positions,
        "label": document.label,
        "positive": document.positive,
        "model": document.model.name,
        "model_revision": document.model.revision,
        "model_config_digest": document.model.config_digest,
        "model_weights_digest": document.model.weights_digest,
        "dtype": document.dtype,
        "capture": document.capture,
        "digest": document.digest,
        "cliffstore_version": document.cliffstore_version,
    }
    return {name: str(value) for name, value in named.items() if value is not None}


def _arrays(path: str, content: bytes) -> dict[str, npt.NDArray]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load  # NumPy has no bfloat16

        return {name: tensor.float().numpy() for name, tensor in load(content).items()}
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    return {"w": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
