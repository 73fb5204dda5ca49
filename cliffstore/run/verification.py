"""`verify` as a user calls it: on a store that may be too damaged to open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cliffstore.plan.units import example_digest
from cliffstore.records import CorpusRow, RenderedExample
from cliffstore.run.progress import Reporter
from cliffstore.store.checks.sample import parse_sample
from cliffstore.store.objects import ObjectStore
from cliffstore.store.verify import VerifyReport, verify_store

_FIELDS = ("id", "prompt", "system", "thinking", "response", "label", "source")


def verify(
    objects: ObjectStore,
    reporter: Reporter,
    *,
    sample: str | None = None,
    seed: int | None = None,
    only_documents: bool = False,
) -> VerifyReport:
    """Check a store; nothing is changed.

    Parameters
    ----------
    sample : units to read, such as `100` or `5%`; documents and receipts are always read
    seed : of the sample, to look at the same units again

    Raises
    ------
    ConfigError
        The sample is malformed.
    StoreError
        There is no store, or it is of a newer format.
    """
    chosen = parse_sample(sample, seed) if sample is not None else None
    try:
        return verify_store(
            objects,
            digest_of,
            lambda total: reporter.begin("verify", total),
            reporter.advance,
            sample=chosen,
            only_documents=only_documents,
        )
    finally:
        reporter.end()


def digest_of(
    known: Mapping[str, object],
    further: Mapping[str, object],
    token_ids_T: npt.NDArray[np.int32],
    segments_T: npt.NDArray[np.uint8],
) -> str:
    """Return an example's digest from its columns and tokens."""
    fields = {name: None if known[name] is None else str(known[name]) for name in _FIELDS}
    row = CorpusRow(
        id=str(fields["id"]),
        prompt=str(fields["prompt"]),
        turns=(),
        system=fields["system"],
        thinking=fields["thinking"],
        response=fields["response"],
        label=fields["label"],
        source=fields["source"],
        extra=dict(further),
    )
    decision = known["decision"]
    assert isinstance(decision, int)
    return example_digest(RenderedExample(row, token_ids_T, segments_T, decision, ""))
