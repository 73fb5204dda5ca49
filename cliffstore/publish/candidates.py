"""The examples that a selection may choose from, each with its value: read by one SQL statement.

Examples are `e`, the cliffs of the probe `c`; values that are null or not finite are no values. Only what the settings
ask for is read: prompts where near-duplicates are told by them, responses where refusals are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.errors import ProbeError, QueryError, SelectionError
from cliffstore.publish.choice import rank
from cliffstore.publish.criteria import Quota, SelectionSettings, Strategy, parse_dedupe, parse_quota, parse_strategy
from cliffstore.publish.refusals import LOOKED_AT, THINKING_ENDS, Refusals, answer_in
from cliffstore.schema import CliffsDocument, ProbeDocument
from cliffstore.store import documents, layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe

_WITH_CLIFFS = "examples e LEFT JOIN (SELECT * EXCLUDE (probe) FROM cliffs WHERE probe = $1) c USING (example)"
_VALUES = {"cliff": "c.cliff", "final": "c.final", "random": "NULL", "rules": "NULL"}


@dataclass(frozen=True, slots=True)
class Candidates:
    """Examples that have a value, in their order, and how many more there are that are none, by reason.

    Attributes
    ----------
    table : example, id, value; and as asked for: prompt, quota_0, quota_1, ... (text)
    """

    table: pa.Table
    left_out: Mapping[str, int]


def find_probe(catalog: Catalog, settings: SelectionSettings) -> ProbeDocument | None:
    """Return the probe whose cliffs or activations are asked for, None where no probe is.

    Raises
    ------
    ProbeError
        There is no such probe, or none is said and several have cliffs.
    SelectionError
        It has no cliffs, and they are needed.
    QueryError
        A condition or an expression is malformed.
    """
    reader = catalog.reader
    name = settings.probe
    if name is None and (settings.needs_cliffs or settings.needs_vectors or _reads_cliffs(catalog, settings)):
        name = _only_ranked_probe(catalog)
    if name is None:
        return None
    document, _ = read_probe(reader.objects, name)
    if settings.needs_cliffs and not reader.objects.exists(layout.cliffs_table(name)):
        raise SelectionError(f"probe {name!r} has no cliffs yet: run `cliffstore cliff {reader.url} --probe {name}`")
    return document


def read_candidates(catalog: Catalog, settings: SelectionSettings, probe: str | None) -> Candidates:
    """Read the candidates, best first.

    Raises
    ------
    SelectionError
        No example has a value, a column is missing, or one holds what is no number.
    QueryError
        A condition or an expression is malformed.
    """
    strategy, quotas = parse_strategy(settings.strategy), [parse_quota(one) for one in settings.quotas]
    columns = catalog.arrow("SELECT * FROM examples LIMIT 0").column_names
    for column in [*(quota.column for quota in quotas), *([strategy.of] if strategy.kind == "column" else [])]:
        if column not in columns:
            raise SelectionError(f"examples have no column {column!r}; there are: {', '.join(columns)}")
    table = _read(catalog, _statement(settings, strategy, quotas, probe), probe, strategy)
    left_out: dict[str, int] = {}

    def keep(reason: str, keep_N: pa.ChunkedArray) -> pa.Table:
        left = table.filter(pc.fill_null(keep_N, False))
        if n := table.num_rows - left.num_rows:
            left_out[reason] = n
        return left

    if strategy.kind == "rules":
        answered = [bool(response and answer_in(response)) for response in table["response"].to_pylist()]
        table = keep("without_response", pa.chunked_array([pa.array(answered, pa.bool_())]))
        refusals = Refusals(settings.phrases)
        refused = [refusals.matches(response) for response in table["response"].to_pylist()]
        table = keep("refusal", pa.chunked_array([pa.array([not one for one in refused], pa.bool_())]))
    if strategy.kind in ("random", "rules"):
        drawn = pa.array([draw(settings.seed, one) for one in table["id"].to_pylist()], pa.float64())
        table = table.set_column(table.column_names.index("value"), "value", drawn)
    table = keep("without_value", pc.is_finite(table["value"]))
    if settings.min_plateau is not None:
        table = keep("below_min_plateau", pc.greater_equal(table["plateau"], settings.min_plateau))
    wanted = [name for name in table.column_names if name not in ("response", "plateau")]
    return Candidates(rank(table.select(wanted), ascending=settings.lowest_first), left_out)


def cliffs_read(objects: ObjectStore, settings: SelectionSettings, probe: str | None) -> str | None:
    """Return the digest of the cliffs that candidates are read with, None where none are."""
    may_read = settings.needs_cliffs or settings.where or parse_strategy(settings.strategy).kind == "sql"
    return None if probe is None or not may_read else cliffs_digest(objects, probe)


def cliffs_digest(objects: ObjectStore, probe: str) -> str | None:
    """Return the digest of the cliffs that a probe has now, None where it has none."""
    try:
        return documents.read(objects, CliffsDocument, layout.cliffs_document(probe)).digest
    except FileNotFoundError:
        return None


def nothing_left(settings: SelectionSettings, left_out: Mapping[str, int]) -> str:
    """Return what to tell where there is no candidate."""
    where = f" where {settings.where}" if settings.where else ""
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(left_out.items()))
    reason = counts or "no example meets the condition"
    if left_out.get("without_value") and settings.strategy == "cliff":
        reason += " (a cliff needs thinking tokens before the answer)"
    return f"no example{where} can be chosen by {settings.strategy}: {reason}"


def draw(seed: int, name: str) -> float:
    """Return a number in [0, 1) that seed and id decide, and nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _statement(settings: SelectionSettings, strategy: Strategy, quotas: list[Quota], probe: str | None) -> str:
    if strategy.kind == "column":
        value = f"e.{_quoted(strategy.of)}"
    elif strategy.kind == "sql":
        value = f"(\n{strategy.of}\n)"
    else:
        value = _VALUES[strategy.kind]
    wanted = ["e.example", "e.id", f"CAST({value} AS DOUBLE) AS value"]
    if strategy.kind == "rules":
        wanted.append(f"trim(regexp_replace(e.response, '{THINKING_ENDS}', ''))[:{LOOKED_AT}] AS response")
    if settings.min_plateau is not None:
        wanted.append("c.plateau")
    if any(parse_dedupe(one).kind == "prompt" for one in settings.dedupe):
        wanted.append("e.prompt")
    wanted += [f"CAST(e.{_quoted(one.column)} AS VARCHAR) AS quota_{n}" for n, one in enumerate(quotas)]
    return f"SELECT {', '.join(wanted)} {_from(settings, probe)}"


def _from(settings: SelectionSettings, probe: str | None) -> str:
    condition = f" WHERE (\n{settings.where}\n)" if settings.where else ""
    return f"FROM {'examples e' if probe is None else _WITH_CLIFFS}{condition}"


def _read(catalog: Catalog, statement: str, probe: str | None, strategy: Strategy) -> pa.Table:
    try:
        table = catalog.arrow(statement, None if probe is None else [probe])
    except QueryError as error:
        if strategy.kind == "column" and str(error).startswith("Conversion Error"):
            text = str(error).partition(";")[0].removeprefix("Conversion Error: ")
            raise SelectionError(f"column {strategy.of!r} holds what is no number: {text}") from None
        raise
    if "prompt" not in table.column_names:
        return table
    # Taken in another order they are one array, which may be larger than 2 GiB.
    at = table.column_names.index("prompt")
    return table.set_column(at, "prompt", table["prompt"].cast(pa.large_string()))


def _reads_cliffs(catalog: Catalog, settings: SelectionSettings) -> bool:
    """Return whether expression or condition needs the columns of cliffs. `QueryError` where those do not help."""
    strategy = parse_strategy(settings.strategy)
    expression = f"(\n{strategy.of}\n)" if strategy.kind == "sql" else "1"
    try:
        catalog.arrow(f"SELECT {expression} {_from(settings, None)} LIMIT 0")
    except QueryError:
        catalog.arrow(f"SELECT {expression} {_from(settings, '')} LIMIT 0", [""])
        return True
    return False


def _only_ranked_probe(catalog: Catalog) -> str:
    ranked = [row["probe"] for row in catalog.arrow("SELECT DISTINCT probe FROM cliffs").to_pylist()]
    if len(ranked) != 1:
        known = ", ".join(sorted(ranked)) or "none yet; run `cliffstore cliff`"
        raise ProbeError(f"say which probe with --probe; probes with cliffs: {known}")
    return str(ranked[0])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
