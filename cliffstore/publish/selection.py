"""The choice of training examples: candidates, gates that keep some out, and table and document of what is left.

`selections/<name>.parquet` says who was chosen; `selections/<name>.json` has all that it takes to choose again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore import __version__
from cliffstore.errors import SelectionError
from cliffstore.publish.candidates import cliffs_read, find_probe, nothing_left, read_candidates
from cliffstore.publish.choice import Gate, QuotaGate, choose
from cliffstore.publish.criteria import SelectionSettings, check_settings, count_top, parse_dedupe, parse_quota
from cliffstore.publish.duplicates import ActivationGate, PromptGate, Vectors, spread
from cliffstore.schema import SELECTIONS, ProbeDocument, SelectionDocument
from cliffstore.store import documents, layout, tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader

_DECISION_ROWS = "SELECT example, row FROM tokens WHERE to_decision = 0 AND row IS NOT NULL ORDER BY example"


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """What was chosen from how many candidates.

    Attributes
    ----------
    wanted : what `top` means; fewer are chosen where gates leave too few
    last : the value of the last that was chosen
    left_out : how many examples for which reason, those behind the last that was chosen apart
    """

    name: str
    strategy: str
    probe: str | None
    candidates: int
    wanted: int
    chosen: int
    last: float
    left_out: Mapping[str, int] = field(default_factory=dict)


def select_examples(catalog: Catalog, settings: SelectionSettings, *, replace: bool) -> SelectionReport:
    """Choose the best candidates, and write `selections/<name>.parquet` and its document.

    Raises
    ------
    SelectionError
        Malformed settings, nothing to choose from, or another selection has the name.
    ProbeError
        There is no such probe, or none is said where one is needed.
    QueryError
        A condition or an expression is malformed.
    StoreError
        Near-duplicates are told by activations that are not stored.
    """
    check_settings(settings)
    objects = catalog.reader.objects
    probe = find_probe(catalog, settings)
    name = probe.name if probe else None
    found = read_candidates(catalog, settings, name)
    ranked, left_out = found.table, dict(found.left_out)
    row_N: npt.NDArray[np.int64] | None = None
    if settings.needs_vectors and probe is not None:
        ranked, row_N = _with_vectors(catalog, ranked, probe)
        if without := found.table.num_rows - ranked.num_rows:
            left_out["without_vector"] = without
    if not ranked.num_rows:
        raise SelectionError(nothing_left(settings, left_out))
    wanted = count_top(settings.top, ranked.num_rows)
    choice = choose(ranked.num_rows, wanted, list(_gates(catalog.reader, settings, ranked, wanted, probe, row_N)))
    left_out |= choice.left_out
    if not len(choice.index_N):
        raise SelectionError(nothing_left(settings, left_out))
    chosen = ranked.take(choice.index_N)
    table = _table(chosen, settings.strategy, name)
    document = SelectionDocument(
        name=settings.name,
        strategy=settings.strategy,
        top=settings.top,
        ascending=settings.ascending,
        seed=settings.seed,
        where=settings.where,
        phrases=None if settings.phrases is None else list(settings.phrases),
        min_plateau=settings.min_plateau,
        quotas=list(settings.quotas),
        dedupe=list(settings.dedupe),
        probe=name,
        probe_digest=probe.digest if probe else None,
        capture=probe.capture if probe else None,
        cliffs_digest=cliffs_read(objects, settings, name),
        candidates=ranked.num_rows,
        examples=table.num_rows,
        left_out=left_out,
        digest="",
        cliffstore_version=__version__,
    )
    content = tables.encode(table, _provenance(document))
    key = layout.selection_table(settings.name)
    if objects.exists(key) and not replace and objects.get(key) != content:
        raise SelectionError(f"selection {settings.name!r} is there already: choose another --name, or pass --replace")
    objects.put(key, content)
    documents.put(objects, document.model_copy(update={"digest": hashlib.sha256(content).hexdigest()}))
    last = float(chosen["value"][-1].as_py())
    return SelectionReport(
        settings.name, settings.strategy, name, ranked.num_rows, wanted, table.num_rows, last, left_out
    )


def told(report: SelectionReport) -> str:
    """Return what was left out and why, for people."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(report.left_out.items()))


def settings_of(document: SelectionDocument) -> SelectionSettings:
    """Return the settings that a selection was made with."""
    return SelectionSettings(
        name=document.name,
        top=document.top,
        strategy=document.strategy,
        ascending=document.ascending,
        seed=document.seed,
        probe=document.probe,
        where=document.where,
        phrases=None if document.phrases is None else tuple(document.phrases),
        min_plateau=document.min_plateau,
        quotas=tuple(document.quotas),
        dedupe=tuple(document.dedupe),
    )


def _gates(
    reader: StoreReader,
    settings: SelectionSettings,
    ranked: pa.Table,
    wanted: int,
    probe: ProbeDocument | None,
    row_N: npt.NDArray[np.int64] | None,
) -> Iterator[Gate]:
    """Yield the gates: those first that cost least."""
    for number, text in enumerate(settings.quotas):
        quota, values = parse_quota(text), ranked[f"quota_{number}"].to_pylist()
        if quota.value is not None and quota.value not in values:
            known = ", ".join(sorted({str(value) for value in values})[:8])
            raise SelectionError(f"--quota {text}: no candidate has {quota.column} {quota.value!r}; there are: {known}")
        yield QuotaGate(quota, values, quota.most(wanted))
    for one in sorted(map(parse_dedupe, settings.dedupe), key=lambda dedupe: dedupe.kind != "prompt"):
        if one.kind == "prompt":
            yield PromptGate(ranked["prompt"].combine_chunks(), one.threshold)
        elif probe is not None and row_N is not None:
            yield _activation_gate(reader, one.threshold, wanted, probe, row_N)


def _activation_gate(
    reader: StoreReader, threshold: float, wanted: int, probe: ProbeDocument, row_N: npt.NDArray[np.int64]
) -> ActivationGate:
    def read(index_N: npt.NDArray[np.int64]) -> Vectors:
        found = reader.vectors(probe.site, probe.layer, row_N[index_N], probe.alias)
        return found.reshape(len(index_N), -1)

    sample_N = np.argsort(row_N, kind="stable")[spread(len(row_N))]
    return ActivationGate(len(row_N), read, threshold, wanted, sample_N)


def _with_vectors(catalog: Catalog, ranked: pa.Table, probe: ProbeDocument) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Return the candidates whose vector at the decision position is extracted, and its row, int64."""
    reader = catalog.reader
    capture, _ = reader.find_array(probe.site, probe.layer, probe.alias)
    decisions = catalog.arrow(_DECISION_ROWS)
    example_M, row_M = (decisions[name].to_numpy().astype(np.int64) for name in ("example", "row"))
    if not len(example_M):
        return ranked.slice(0, 0), row_M
    example_N = ranked["example"].to_numpy()
    at_N = np.minimum(np.searchsorted(example_M, example_N), len(example_M) - 1)
    row_N = np.where(example_M[at_N] == example_N, row_M[at_N], -1)
    there_N = reader.extracted(capture.capture, row_N)
    return ranked.filter(pa.array(there_N)), row_N[there_N]


def _table(chosen: pa.Table, strategy: str, probe: str | None) -> pa.Table:
    n = chosen.num_rows
    columns = {
        "rank": pa.array(range(1, n + 1), pa.int32()),
        "example": chosen["example"],
        "id": chosen["id"],
        "strategy": pa.repeat(pa.scalar(strategy, pa.string()), n),
        "probe": pa.repeat(pa.scalar(probe, pa.string()), n),
        "value": chosen["value"],
    }
    return pa.table(columns, schema=SELECTIONS)


def _provenance(document: SelectionDocument) -> dict[str, str]:
    """Return all that the selection was made with; so another way to the same examples is another table."""
    named = ("probe", "probe_digest", "capture", "strategy", "top", "where")
    made_with = document.model_dump(mode="json", exclude={"name", "digest", "examples", "cliffstore_version", *named})
    plain = {name: str(getattr(document, name) or "") for name in named}
    return {**plain, "settings": json.dumps(made_with, sort_keys=True)}
