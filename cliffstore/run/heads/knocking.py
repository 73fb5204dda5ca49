"""Workers that switch heads off: each has a model of its own, measures parts, and writes their pieces.

`KnockoutSpec` makes workers, wherever the executor wants them; a job says what is measured of the parts: z of all heads
(what means are made of), or scores with choices of heads off. A part whose piece is there is left alone.

Legend: M examples of a batch, V choices of heads, X figures: V effects and the score as it is; K positions, H heads, W
width of a head.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cliffstore.access import without_secrets
from cliffstore.errors import CliffstoreError, ExtractionError, InterruptedRunError, StorageError, StoreError
from cliffstore.extract.memory import free_memory, is_out_of_memory
from cliffstore.model.identity import ModelSource
from cliffstore.model.knockout import Knockouts
from cliffstore.model.knockout_hooks import Heads
from cliffstore.model.loader import load_model
from cliffstore.model.products import use_float32_products
from cliffstore.model.sites import arrays_of
from cliffstore.model.undisturbed import Prompt
from cliffstore.records import UnitReport
from cliffstore.run.heads.parts import Part
from cliffstore.run.heads.pieces import Floats, digest_of, write_piece
from cliffstore.run.heads.prompts import Ablated, id_of, read_unit
from cliffstore.run.heads.results import spell_heads
from cliffstore.schema import ProbeDocument
from cliffstore.store import layout
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader

TOKENS = {"cpu": 2_048, "accelerator": 16_384}
"""Positions of all lines of a pass."""
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest difference to whole passes, of the largest score or effect among those compared."""

MeanZ = Mapping[int, npt.NDArray[np.float32]]
"""Layer -> [H, W]."""


@dataclass(frozen=True, slots=True)
class KnockoutSpec:
    """What a worker needs to load its model. `products` as in `PassSettings`."""

    source: ModelSource
    probe: ProbeDocument
    weights: ProbeWeights
    device: str
    products: str
    threads: int | None = None

    def make(self, threads: int) -> KnockoutWorker:
        """Load the model into a worker."""
        return KnockoutWorker(replace(self, threads=self.threads or threads))

    def in_flight(self, threads: int) -> int:
        """Return how many parts a worker has at once."""
        return 1

    @property
    def facts(self) -> dict[str, object]:
        """Return what of it decides figures."""
        identity = self.source.identity
        return {
            "probe": [self.probe.digest, self.probe.capture, self.probe.site, self.probe.layer, self.probe.dtype],
            "model": [identity.weights_digest or identity.revision, identity.config_digest],
            "adapter": identity.adapter.digest if identity.adapter is not None else None,
            "products": self.products,
        }


@dataclass(frozen=True, slots=True)
class Ability:
    """What a worker's model can do: positions of a pass, whether prefixes are shared, which examples may be cut."""

    tokens: int
    shared: bool
    whole_below: int | None


@dataclass(frozen=True, slots=True)
class KnockoutJob:
    """What is measured of parts.

    Attributes
    ----------
    name : of the result
    choices : heads that are off; none: z is summed
    means : what replaces z; None for zero
    shared : whether prefixes are held once
    facts : digests and words of all that decides figures beside the part
    """

    store: str
    name: str
    parts: tuple[Part, ...]
    positions: Ablated
    shared: bool
    facts: Mapping[str, object]
    choices: tuple[Heads, ...] = ()
    means: MeanZ | None = None
    storage_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def receipts_name(self) -> str:
        """What the work is called in metrics."""
        return layout.HEADS

    def key_of(self, part: Part) -> str:
        """Return the key of the piece of a part."""
        return layout.heads_piece(self.name, digest_of({**self.facts, "batches": part.batches})[:32])

    def record_failure(self, unit: int, attempt: int, worker: str, error: str) -> None:
        """A failure is told by the run that meets it, and tried again by the next: there is nothing to keep."""


class KnockoutWorker:
    """Measures parts with a model, which is loaded when the worker is made."""

    def __init__(self, spec: KnockoutSpec) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._spec, self._stopped = spec, threading.Event()
        self._notices: list[str] = []
        self._set_threads()
        model = load_model(spec.source, spec.probe.dtype, spec.device)
        if spec.products == "float32":
            use_float32_products(model)
        self._device = model.device.type
        self._tokens = TOKENS["cpu" if self._device == "cpu" else "accelerator"]
        (array,) = arrays_of(spec.source.identity, [spec.probe.site], [spec.probe.layer])
        self._model = Knockouts(
            model, spec.source.identity, array, spec.weights.w_D, spec.weights.b, tokens=self._tokens
        )

    def ability(self) -> Ability:
        """Return what the model can do."""
        return Ability(self._tokens, self._model.shared, self._model.whole_below)

    def check(self, prompts: Sequence[Prompt], choices: Sequence[Heads]) -> str | None:
        """Compare choices of heads on prompts with whole passes.

        Where they disagree, sharing is left, and why is returned.
        """
        self._set_threads()
        try:
            found = np.stack(self._scores(prompts, choices, None))
        except Exception as failure:  # noqa: BLE001  # whatever a model does not take, whole passes are the way out
            reason = " ".join([type(failure).__name__, *str(failure).splitlines()[:1]])[:200]
            found = None
        expected = np.stack(self._model.by_whole_passes(prompts, choices))
        if found is not None:
            difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1.0))
            if difference <= _TOLERANCE[self._spec.probe.dtype]:
                return None
            reason = f"scores differ by {difference:.1e}"
        self._model.leave_sharing()
        return reason

    def begin(self, job: KnockoutJob) -> None:
        """Open the job's store, and measure as the first worker was found to be able to."""
        self._job, self._reader = job, StoreReader(job.store, job.storage_options)
        self._keys = {part: job.key_of(part) for part in job.parts}
        if self._model.shared and not job.shared:
            self._model.leave_sharing()

    def run(self, unit: int, attempt: int) -> UnitReport:
        """Measure and commit one part, whose number is `unit`. Errors as for `executor.Worker.run`."""
        self._set_threads()
        part, begun = self._job.parts[unit], time.monotonic()
        key, objects = self._keys[part], self._reader.objects
        if objects.exists(key):
            return UnitReport(unit, 0, len(part.examples), 0, 0.0, self.name)
        try:
            prompts = {one.example: one.prompt(self._job.positions)
                       for one in read_unit(self._reader, part.unit, part.examples)}  # fmt: skip
            batches = [[prompts[one] for one in batch] for batch in part.batches]
            if self._job.choices:
                figures = [self._figures(*one) for one in zip(part.batches, batches, strict=True)]
                write_piece(objects, key, part.examples, np.concatenate(figures))
            else:
                sums = self._sums_of_z(part, batches)
                write_piece(objects, key, list(sums), np.stack(list(sums.values())))
        except (InterruptedRunError, StorageError, StoreError):
            raise
        except Exception as error:  # whatever a part dies of, the others go on
            raise _failure(error, part, self._job) from error
        n_tokens = sum(len(one.token_ids_T) for one in prompts.values())
        notices, self._notices = tuple(self._notices), []
        seconds = time.monotonic() - begun
        return UnitReport(unit, n_tokens, len(part.examples), 0, seconds, self.name, notices)

    def stop(self) -> None:
        """Make running and later calls of `run` end at the next batch."""
        self._stopped.set()

    def _figures(self, ordinals: Sequence[int], batch: Sequence[Prompt]) -> Floats:
        """Return effects and scores of a batch, [M, X]."""
        self._check_stopped()
        choices = self._job.choices
        scored_MV, plain_MV = self._scores(batch, choices, self._job.means)
        for what_MV, is_off in ((plain_MV, False), (scored_MV, True)):
            bad = np.argwhere(~np.isfinite(what_MV))
            if len(bad):
                number, choice = bad[0]
                heads = choices[choice] if is_off else ()
                where = f"layer {self._model.nonfinite_layer(batch[number], heads)}"
                raise self._nonfinite(where, ordinals[number], f" without heads {spell_heads(heads)}" if heads else "")
        return np.concatenate([scored_MV - plain_MV, plain_MV[:, :1]], axis=1)

    def _sums_of_z(self, part: Part, batches: Sequence[Sequence[Prompt]]) -> dict[int, Floats]:
        """Return z of each layer's heads, summed over the ablated positions of all examples, and how many these are."""
        sums: dict[int, Floats] = {}
        for ordinals, batch in zip(part.batches, batches, strict=True):
            for example, prompt in zip(ordinals, batch, strict=True):
                self._check_stopped()
                for layer, z_KHW in self._model.z_of(prompt).items():
                    if not np.isfinite(z_KHW).all():
                        raise self._nonfinite(f"site z, layer {layer}", example, "")
                    own = np.append(z_KHW.sum(axis=0, dtype=np.float64).reshape(-1), float(len(z_KHW)))
                    sums[layer] = sums[layer] + own if layer in sums else own
        return dict(sorted(sums.items()))

    def _scores(self, batch: Sequence[Prompt], choices: Sequence[Heads], means: MeanZ | None) -> tuple[Floats, Floats]:
        """Return what `Knockouts.scores` returns; where memory runs out, passes are halved."""
        while True:
            try:
                return self._model.scores(batch, choices, means)
            except Exception as error:
                if not is_out_of_memory(error) or not self._model.halve():
                    raise
            free_memory(self._device)
            self._notices.append(f"passes do not fit into memory: {self._model.tokens:,} positions from now on")

    def _nonfinite(self, where: str, example: int, more: str) -> ExtractionError:
        error = ExtractionError(
            f"NaN or Inf at {where} in example {id_of(self._reader, example)!r}{more}: leave it out with --where"
        )
        error.final = True
        return error

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise InterruptedRunError("interrupted")

    def _set_threads(self) -> None:
        import torch

        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)  # per thread of the process, hence set where it computes


def _failure(error: Exception, part: Part, job: KnockoutJob) -> ExtractionError:
    if isinstance(error, ExtractionError):
        return error
    message = str(error) if isinstance(error, CliffstoreError) else f"{type(error).__name__}: {error}"
    message = without_secrets(" ".join(message.split()), job.storage_options)
    return ExtractionError(f"examples #{part.examples[0]} to #{part.examples[-1]}: {message}")
