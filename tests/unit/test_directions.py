"""Directions in files: what is written is read again, whatever the kind; nothing is unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import make_probe
from made_up_store import made_up_capture
from safetensors import safe_open
from safetensors.torch import save_file

from cliffstore.errors import ConfigError
from cliffstore.run.interventions.directions import as_vector, read_direction, write_direction

CAPTURE = made_up_capture("capture-1", 2, 8, "float32", "main")


class Boom:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["d.safetensors", "d.npz", "sub/folder/d.npy"])
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    document, weights = make_probe(CAPTURE, "p", layer=1)
    path = str(tmp_path / name)
    write_direction(path, document, weights)
    w_D, b = read_direction(path)
    assert np.array_equal(w_D, weights.w_D)
    assert b == (None if name.endswith(".npy") else weights.b)


def test_safetensors_say_what_the_probe_is_of(tmp_path: Path) -> None:
    document, weights = make_probe(CAPTURE, "p", layer=1)
    write_direction(str(tmp_path / "d.safetensors"), document, weights)
    with safe_open(tmp_path / "d.safetensors", "np") as file:
        said = file.metadata()
    assert (said["site"], said["layer"], said["positions"]) == ("resid_post", "1", "decision")
    assert said["model_config_digest"] == CAPTURE.model.config_digest
    assert said["digest"] == weights.digest


@pytest.mark.parametrize(
    "given",
    [
        np.arange(4, dtype=np.float64),
        np.arange(4)[None, :],
        torch.arange(4, dtype=torch.bfloat16, requires_grad=False),
        torch.nn.Parameter(torch.arange(4.0)),
        [0, 1, 2, 3],
    ],
    ids=["float64", "one line", "bfloat16", "parameter", "list"],
)
def test_vectors_of_many_kinds(given: object) -> None:
    found = as_vector(given)
    assert found.dtype == np.float32
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("given", [np.zeros((2, 3)), "w", [[1], [2, 3]], {"w": 1}])
def test_what_is_no_vector_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="direction"):
        as_vector(given)


def test_bfloat16_in_safetensors(tmp_path: Path) -> None:
    save_file({"direction": torch.tensor([1.0, -2.5], dtype=torch.bfloat16)}, tmp_path / "d.safetensors")
    w_D, b = read_direction(str(tmp_path / "d.safetensors"))
    assert (w_D.tolist(), b) == ([1.0, -2.5], None)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    objects = np.array([Boom(mark)], dtype=object)
    np.save(tmp_path / "d.npy", objects, allow_pickle=True)
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Boom(mark)))
    (tmp_path / "e.npy").write_bytes(pickle.dumps(Boom(mark)))
    for name, told in (("d.npy", "cannot be read"), ("e.npy", "cannot be read"), ("d.pt", "safetensors")):
        with pytest.raises(ConfigError, match=told):
            read_direction(str(tmp_path / name))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "arrays", "told"),
    [
        ("d.npz", {"a": np.zeros(2), "c": np.zeros(2)}, "must be called w"),
        ("d.npz", {"w": np.zeros(2), "b": np.zeros(2)}, "b must be one number"),
        ("d.npz", {"w": np.zeros((2, 2))}, "one vector"),
    ],
)
def test_files_that_say_something_else(name: str, arrays: dict[str, np.ndarray], told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / name, **arrays)
    with pytest.raises(ConfigError, match=told):
        read_direction(str(tmp_path / name))


@pytest.mark.parametrize("name", ["none.npy", "text.txt", "damaged.safetensors", "damaged.npz"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    if name.startswith("damaged"):
        (tmp_path / name).write_bytes(b"0123456789" * 3)
    with pytest.raises(ConfigError, match=name):
        read_direction(str(tmp_path / name))


def test_a_file_of_no_known_kind_is_not_written(tmp_path: Path) -> None:
    document, weights = make_probe(CAPTURE, "p")
    with pytest.raises(ConfigError, match=r"\.npz"):
        write_direction(str(tmp_path / "d.csv"), document, weights)
    assert list(tmp_path.iterdir()) == []
