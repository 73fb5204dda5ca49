"""Probes in a store: `probe.safetensors` (w, b) and `probe.json` beside it, written last."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from cliffstore.errors import ProbeError
from cliffstore.schema import ProbeDocument
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class ProbeWeights:
    """score = w·h + b, a logit. w_D float32."""

    w_D: npt.NDArray[np.float32]
    b: float

    def scores(self, h_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the logit of each of N vectors, float32 [N].

        A vector's score has the same bits whatever vectors are beside it: `einsum` sums each row by itself, while the
        order of sums in a BLAS product depends on how many rows there are, and on the number of threads.
        """
        return np.asarray(np.einsum("nd,d->n", h_ND, self.w_D) + np.float32(self.b), dtype=np.float32)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.w_D.tobytes() + np.float32(self.b).tobytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the weights as a safetensors file."""
        return save({"w": self.w_D, "b": np.array([self.b], dtype=np.float32)})

    @property
    def file_digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def list_probes(objects: ObjectStore) -> list[ProbeDocument]:
    """Return the probes of a store, by name."""
    keys = [key for key in objects.list(layout.PROBES) if key.endswith("/probe.json")]
    return list(documents.read_many(objects, ProbeDocument, keys))


def read_probe(objects: ObjectStore, name: str) -> tuple[ProbeDocument, ProbeWeights]:
    """Return a probe.

    Raises
    ------
    ProbeError
        There is none of that name; the message names those there are.
    DamagedStoreError
        Its document or its weights are damaged.
    """
    try:
        document = documents.read(objects, ProbeDocument, layout.probe_document(name))
    except FileNotFoundError:
        known = (
            ", ".join(probe.name for probe in list_probes(objects)) or "none yet; fit one with `cliffstore probe fit`"
        )
        raise ProbeError(f"store {objects.url} has no probe {name!r}; it has: {known}") from None
    content = objects.get(layout.probe_weights(name))
    documents.check(objects, layout.probe_weights(name), content)
    stored = load(content)
    return document, ProbeWeights(stored["w"], float(stored["b"][0]))


def write_probe(objects: ObjectStore, document: ProbeDocument, weights: ProbeWeights, *, replace: bool) -> None:
    """Write a probe. One that is there already with the same weights, made of the same inputs, is left alone.

    Raises
    ------
    ProbeError
        Another probe has the name, and `replace` is False. Replacing removes its scores and cliffs.
    """
    name = document.name
    held = {probe.name: probe for probe in list_probes(objects)}.get(name)
    if held is not None and (held.digest, held.inputs) == (document.digest, document.inputs):
        keep_copies(objects, name)
        return
    if held is not None:
        check_may_replace(name, replace=replace)
        # The probe goes last: a run that is cut off here finds it again, and with it what there is to remove.
        documents.delete(objects, layout.cliffs_document(name))
        objects.delete(layout.cliffs_table(name))
        objects.delete(layout.scores_of(name))
        objects.delete(layout.receipts_of(layout.score_errors(name)))
        documents.delete(objects, layout.probe_document(name))
        documents.delete(objects, layout.probe_weights(name))
    content = weights.to_bytes()
    objects.put(layout.probe_weights(name), content)
    # A probe of another store may have been written by another version of safetensors.
    documents.put(objects, document.model_copy(update={"file_digest": hashlib.sha256(content).hexdigest()}))
    objects.put(layout.copy_of(layout.probe_weights(name)), content)


def check_may_replace(name: str, *, replace: bool) -> None:
    """Raise `ProbeError` where another probe of a name may not be replaced."""
    if not replace:
        raise ProbeError(f"probe {name!r} is there already: choose another --name, or pass --replace")


def keep_copies(objects: ObjectStore, name: str) -> None:
    """Copy what a run that ended early has left of a probe without a copy."""
    documents.keep_copy(objects, layout.probe_document(name))
    documents.keep_copy(objects, layout.probe_weights(name))
