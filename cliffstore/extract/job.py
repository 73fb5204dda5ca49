"""What a run and its workers tell each other: a model to load, a job, how passes are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cliffstore.model.identity import ModelSource
from cliffstore.schema import ArrayIdentity, CaptureDocument, Dtype, Interventions, PassSettings, UnitError
from cliffstore.store import layout, receipts
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.scores import ProbeKey

if TYPE_CHECKING:
    from cliffstore.extract.unit import UnitWorker

IN_FLIGHT = 2
"""Units that a worker has at once: one is computed while the one before is written."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to load its model, small enough to send anywhere.

    Attributes
    ----------
    arrays : what is captured, or what the probes of a job read
    threads : CPU threads of a pass; None leaves torch's own choice
    gpus : GPUs that the model is spread over
    interventions : what is changed in every pass, None for nothing
    """

    source: ModelSource
    arrays: tuple[ArrayIdentity, ...]
    dtype: Dtype
    device: str
    threads: int | None = None
    gpus: int = 1
    interventions: Interventions | None = None

    def make(self, threads: int) -> UnitWorker:
        """Load the model into a worker, which uses so many threads unless the spec says another number."""
        from cliffstore.extract.unit import UnitWorker

        return UnitWorker(replace(self, threads=self.threads or threads))

    def in_flight(self, threads: int) -> int:
        """Return how many units a worker has at once."""
        return IN_FLIGHT


@dataclass(frozen=True, slots=True)
class LiveProbe:
    """A probe that is scored while the model runs: its name and digest, the array it reads, its weights."""

    key: ProbeKey
    array: str
    weights: ProbeWeights


@dataclass(frozen=True, slots=True)
class Job:
    """What the units of a run are extracted for: a capture, or scores of probes.

    Attributes
    ----------
    plans : names of the plans that the units belong to
    capture : document in the store; None where only scores are wanted
    """

    store: str
    plans: tuple[str, ...]
    passes: PassSettings
    capture: CaptureDocument | None
    probes: tuple[LiveProbe, ...] = ()
    allow_nonfinite: bool = False
    storage_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def receipts_name(self) -> str:
        """Where errors of units are recorded, beside the receipts."""
        return self.capture.capture if self.capture else layout.SCORES

    def record_failure(self, unit: int, attempt: int, worker: str, error: str) -> None:
        """Write down why a unit is given up."""
        found = UnitError(capture=self.receipts_name, unit=unit, attempt=attempt, worker=worker, error=error)
        receipts.record_error(ObjectStore(self.store, self.storage_options), found)


@dataclass(frozen=True, slots=True)
class Prepared:
    """How a worker will make its passes.

    Attributes
    ----------
    seconds : expected compute time of the whole job on one such worker
    summary : what calibration found, for the user
    notices : what the user did not ask for and must know
    """

    passes: PassSettings
    seconds: float
    summary: str
    notices: tuple[str, ...]
