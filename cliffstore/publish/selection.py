"""The choice of training examples: the largest cliffs first, ties broken by id."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import pyarrow as pa

from cliffstore import __version__
from cliffstore.errors import SelectionError
from cliffstore.schema import SELECTIONS, SelectionDocument
from cliffstore.store import documents, layout, tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

STRATEGIES = ("cliff",)
_MOST = 1e12
_TOP = re.compile(r"(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """What was chosen from how many candidates; `not_ranked` examples have no cliff (no thinking)."""

    name: str
    strategy: str
    probe: str
    candidates: int
    not_ranked: int
    chosen: int
    lowest: float


def select_examples(
    catalog: Catalog, *, name: str, probe: str, strategy: str, top: str, where: str | None, replace: bool
) -> SelectionReport:
    """Choose the `top` (a number, or a share such as `1.7%`) of the ranked examples; write `selections/<name>.parquet`.

    Raises
    ------
    SelectionError
        Unknown strategy, malformed `top`, nothing to choose from, or another selection has the name.
    ProbeError
        There is no such probe.
    """
    if strategy not in STRATEGIES:
        raise SelectionError(f"strategy {strategy!r} is not known: choose from {', '.join(STRATEGIES)}")
    check_top(top)
    reader = catalog.reader
    document, _ = read_probe(reader.objects, probe)
    if not reader.objects.exists(layout.cliffs_table(probe)):
        raise SelectionError(f"probe {probe!r} has no cliffs yet: run `cliffstore cliff {reader.url} --probe {probe}`")
    condition = f"AND ({where})" if where else ""
    ranked = catalog.arrow(
        "SELECT example, id, value FROM (SELECT c.cliff AS value, e.* FROM cliffs c JOIN examples e USING (example) "
        f"WHERE c.probe = $1) WHERE true {condition} ORDER BY value DESC NULLS LAST, id",
        [probe],
    )
    candidates = ranked.num_rows - ranked["value"].null_count
    if not candidates:
        chosen_from = f" where {where}" if where else ""
        raise SelectionError(f"no example{chosen_from} has a cliff: a cliff needs thinking tokens before the answer")
    n_chosen = count_top(top, candidates)
    chosen = ranked.slice(0, n_chosen)
    table = pa.table(
        {
            "rank": pa.array(range(1, n_chosen + 1), pa.int32()),
            "example": chosen["example"],
            "id": chosen["id"],
            "strategy": pa.array([strategy] * n_chosen, pa.string()),
            "probe": pa.array([probe] * n_chosen, pa.string()),
            "value": chosen["value"],
        },
        schema=SELECTIONS,
    )
    provenance = {
        "probe": probe,
        "probe_digest": document.digest,
        "capture": document.capture,
        "strategy": strategy,
        "top": top,
        "where": where or "",
        "candidates": str(candidates),
    }
    content = tables.encode(table, provenance)
    key = layout.selection_table(name)
    if reader.objects.exists(key) and not replace and reader.objects.get(key) != content:
        raise SelectionError(f"selection {name!r} is there already: choose another --name, or pass --replace")
    reader.objects.put(key, content)
    documents.put(
        reader.objects,
        SelectionDocument(
            name=name,
            strategy=strategy,
            top=top,
            where=where,
            probe=probe,
            probe_digest=document.digest,
            capture=document.capture,
            candidates=candidates,
            examples=n_chosen,
            digest=hashlib.sha256(content).hexdigest(),
            cliffstore_version=__version__,
        ),
    )
    lowest = float(chosen["value"][n_chosen - 1].as_py())
    return SelectionReport(name, strategy, probe, candidates, ranked.num_rows - candidates, n_chosen, lowest)


def check_top(top: str) -> tuple[float, bool]:
    """Return the number in `top` and whether it is a percentage. Raises `SelectionError` where it is neither."""
    match = _TOP.fullmatch(top.strip())
    number = float(match.group(1)) if match else 0.0
    share = bool(match and match.group(2))
    usable = 0 < number <= 100 if share else 0 < number < _MOST and number.is_integer()
    if not usable:
        raise SelectionError(f"--top {top!r}: give a number of examples such as 700, or a share such as 1.7%")
    return number, share


def count_top(top: str, candidates: int) -> int:
    """Return how many of `candidates` examples `top` means: at least one, at most all."""
    number, share = check_top(top)
    wanted = round(candidates * number / 100) if share else int(number)
    return min(max(wanted, 1), candidates)
