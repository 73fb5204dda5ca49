"""Which (example, position) pairs satisfy a condition, and which of these have a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.errors import StoreError
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader

Notice = Callable[[str], None]

PAIR_COLUMNS = ("example", "id", "position", "to_decision", "segment", "row")
_FROM = "FROM tokens t JOIN examples e USING (example)"
IN_TURN = "example, position"
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)


def find_pairs(
    catalog: Catalog,
    captures: Sequence[str],
    *,
    where: str | None,
    columns: Sequence[str],
    order: str,
    limit: int | None,
    notice: Notice,
) -> pa.Table:
    """Return the pairs that satisfy a condition and are extracted in all of some captures.

    Parameters
    ----------
    where : SQL condition over `tokens t JOIN examples e`
    columns : names of columns of the two, the result's; texts come as dictionaries
    order : SQL, as after ORDER BY; by example and position where it leaves two in the same place
    notice : told how many pairs are left out, and why

    Raises
    ------
    QueryError
        The condition, a column or the order is not SQL over the two views.
    StoreError
        No pair is left.
    """
    if limit is not None and limit < 1:
        raise StoreError(f"limit {limit}: at least one line must be asked for")
    asked = dict.fromkeys(("row", *columns))
    statement = f"SELECT {', '.join(map(_column, asked))} {_FROM} {_condition('t.row IS NOT NULL', where)}"
    statement += f"\nORDER BY {order}, t.example, t.position"
    is_whole = _is_whole(catalog.reader, captures)
    if limit is not None and is_whole:
        statement += f"\nLIMIT {limit}"
    table = catalog.arrow(statement)
    if not is_whole:
        table = _extracted_only(catalog.reader, table, captures, notice)
    _tell_of_unstored(catalog, where, notice)
    if not table.num_rows:
        chosen = f" where {where}" if where else ""
        raise StoreError(f"store {catalog.reader.url} has no extracted position{chosen}")
    return _compact(table if limit is None else table.slice(0, limit)).select(list(dict.fromkeys(columns)))


def _column(name: str) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    table = {"example": "t.", "id": "e.", "row": "t.", "position": "t."}.get(name, "")
    return f"{table}{quoted}"


def _condition(first: str, where: str | None) -> str:
    # On lines of its own, so that a comment in it ends where it does.
    return f"WHERE {first}" + (f" AND (\n{where}\n)" if where else "")


def _is_whole(reader: StoreReader, captures: Sequence[str]) -> bool:
    """Return whether the captures have every planned unit."""
    first_U = [unit.row_start for unit in reader.plan_tables.units.values() if unit.n_rows]
    return bool(extracted_in_all(reader, captures, np.array(first_U, dtype=np.int64)).all())


def extracted_in_all(
    reader: StoreReader, captures: Sequence[str], rows_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return for each row whether receipts of all of the captures cover it."""
    held_N = np.ones(len(rows_N), dtype=np.bool_)
    for capture in captures:
        held_N &= reader.extracted(capture, rows_N)
    return held_N


def _extracted_only(reader: StoreReader, table: pa.Table, captures: Sequence[str], notice: Notice) -> pa.Table:
    held_N = extracted_in_all(reader, captures, table["row"].to_numpy())
    if not held_N.all():
        missing = int((~held_N).sum())
        notice(f"{missing:,} of {len(held_N):,} positions asked for are not extracted yet and are left out")
        table = table.filter(pa.array(held_N))
    return table


def _tell_of_unstored(catalog: Catalog, where: str | None, notice: Notice) -> None:
    if all(plan.settings.get("positions", "all") == "all" for plan in catalog.reader.plans()):
        return
    counted = catalog.arrow(f"SELECT count(*) AS n {_FROM} {_condition('t.row IS NULL', where)}")
    if n := counted["n"][0].as_py():
        notice(f"{n:,} positions asked for are not among those stored (`extract --positions`) and are left out")


def _compact(table: pa.Table) -> pa.Table:
    """Keep each text once: ids and labels repeat with every position of an example."""
    for index, field in enumerate(table.schema):
        if any(is_text(field.type) for is_text in _TEXTS):
            texts = pc.dictionary_encode(table[field.name].cast(pa.string()))
            table = table.set_column(index, field.name, texts.unify_dictionaries())
    return table.combine_chunks()
