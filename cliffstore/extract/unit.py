"""One unit: read its tokens from the plan, run its passes, write its vectors, commit its receipt.

A worker is a plain object; the Ray actor only wraps it. `extract` may be called from two threads at once: computing
takes turns, writing does not, so one unit is compressed and written while the next one is computed, and at most two
units are in memory.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cliffstore.errors import CliffstoreError, ExtractionError, InterruptedRunError
from cliffstore.extract.passes import Pass, UnitExample, plan_passes
from cliffstore.model.capture import SiteCapture
from cliffstore.model.loader import ModelSource, load_model
from cliffstore.schema import CaptureDocument, Receipt, UnitError
from cliffstore.store import layout, receipts, tables
from cliffstore.store.arrays import STORED_DTYPE, Vectors
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import UnitFacts, capture_specs, commit_unit

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything that a worker needs to begin, small enough to send anywhere.

    Attributes
    ----------
    threads : CPU threads of a pass; None leaves torch's own choice
    """

    store: str
    plan: str
    capture: CaptureDocument
    source: ModelSource
    device: str
    threads: int | None = None
    allow_nonfinite: bool = False
    storage_options: Mapping[str, object] = field(default_factory=dict)


class UnitWorker:
    """Extracts units of one capture of one plan. Loads its model when it is made."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._reader = StoreReader(spec.store, spec.storage_options)
        self._unit_rows = self._reader.manifest.chunking.unit_rows
        self._compute = threading.Lock()
        self._stop = threading.Event()
        model = load_model(spec.source, spec.capture.dtype, spec.device)
        self._capture = SiteCapture(model, spec.capture.arrays, spec.capture.model.n_layers)
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def stop(self) -> None:
        """Make running and later calls of `extract` end at the next pass."""
        self._stop.set()

    def extract(self, unit: int, attempt: int = 1) -> Receipt:
        """Compute and commit one unit; return its receipt, the existing one if it is committed already.

        Raises
        ------
        ExtractionError
            The unit cannot be computed; why is recorded in the store.
        """
        objects, capture = self._reader.objects, self._spec.capture
        try:
            if objects.exists(layout.receipt(capture.capture, unit)):
                return receipts.read_one(objects, capture.capture, unit)
            return self._extract(unit, attempt)
        except InterruptedRunError:
            raise
        except Exception as error:  # whatever a unit dies of, the others go on
            message = str(error) if isinstance(error, CliffstoreError) else f"{type(error).__name__}: {error}"
            receipts.record_error(
                objects,
                UnitError(capture=capture.capture, unit=unit, attempt=attempt, worker=self.name, error=message),
            )
            raise ExtractionError(f"unit {unit}: {message}") from error

    def _extract(self, unit: int, attempt: int) -> Receipt:
        examples = self._read_examples(unit)
        row_start = unit * self._unit_rows
        n_rows = max(int(example.rows[-1]) for example in examples) - row_start + 1
        with self._compute:
            begun = time.monotonic()
            blocks = self._run_passes(unit, plan_passes(examples, self._spec.capture.batch_tokens))
            seconds = time.monotonic() - begun
        facts = UnitFacts(
            plan=self._spec.plan,
            unit=unit,
            row_start=row_start,
            n_rows=n_rows,
            n_examples=len(examples),
            n_tokens=sum(len(example.token_ids) for example in examples),
            attempt=attempt,
            worker=self.name,
        )
        return commit_unit(self._reader.objects, self._reader.arrays, self._spec.capture, facts, blocks, seconds)

    def _read_examples(self, unit: int) -> list[UnitExample]:
        key = layout.tokens_table(self._spec.plan, unit)
        table = tables.read(self._reader.objects, key, ["example", "token_id", "row"])
        return split_examples(table)

    def _run_passes(self, unit: int, passes: list[Pass]) -> dict[str, Vectors]:
        import torch

        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)  # per thread of the process, hence set where it computes
        capture, device = self._spec.capture, self._capture.device
        dtype = np.dtype(STORED_DTYPE[capture.dtype])
        blocks: dict[str, Vectors] = {
            spec.name: np.zeros((self._unit_rows, *spec.row_shape), dtype=dtype) for spec in capture_specs(capture)
        }
        for one in passes:
            if self._stop.is_set():
                raise InterruptedRunError("stopped")
            input_ids_BT = torch.from_numpy(one.input_ids).to(device)
            mask_BT = torch.from_numpy(one.mask).to(device)
            kept_N = torch.from_numpy(one.kept).to(device)
            for name, vectors_ND in self._capture.forward(input_ids_BT, mask_BT, kept_N).items():
                self._check(unit, name, vectors_ND, one)
                blocks[name][one.rows - unit * self._unit_rows] = as_stored(vectors_ND)
        return blocks

    def _check(self, unit: int, name: str, vectors_ND: torch.Tensor, one: Pass) -> None:
        import torch

        dtype = str(vectors_ND.dtype).removeprefix("torch.")
        if dtype != self._spec.capture.dtype:
            raise ExtractionError(f"{name} came out as {dtype}, the store holds {self._spec.capture.dtype}")
        if self._spec.allow_nonfinite or bool(torch.isfinite(vectors_ND).all()):
            return
        bad = int(torch.isfinite(vectors_ND).all(dim=1).logical_not().nonzero()[0])
        ordinal = one.examples[int(one.kept[bad]) // one.mask.shape[1]]
        raise ExtractionError(
            f"NaN or Inf at site {name.replace('/', ', layer ')} in example {self._id_of(unit, ordinal)}; "
            "pass --allow-nonfinite to store it as it is"
        )

    def _id_of(self, unit: int, ordinal: int) -> str:
        key = layout.examples_table(self._spec.plan, unit)
        table = tables.read(self._reader.objects, key, ["example", "id"])
        return str(table["id"][table["example"].to_pylist().index(ordinal)].as_py())


def as_stored(vectors_ND: torch.Tensor) -> Vectors:
    """Return vectors as the store keeps them: bfloat16 as raw bits, bit for bit."""
    import torch

    on_host = vectors_ND.contiguous().cpu()
    return on_host.view(torch.uint16).numpy() if on_host.dtype == torch.bfloat16 else on_host.numpy()


def split_examples(tokens: pa.Table) -> list[UnitExample]:
    """Split a unit's tokens table (example, token_id, row; sorted by example and position) into its examples."""
    ordinals = tokens["example"].to_numpy()
    token_ids = tokens["token_id"].to_numpy().astype(np.int32)
    rows = tokens["row"].to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordinals)) + 1, [len(ordinals)]])
    return [
        UnitExample(int(ordinals[first]), token_ids[first:last], rows[first:last]) for first, last in pairwise(starts)
    ]
