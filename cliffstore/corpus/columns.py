"""The columns of a corpus beyond the known ones: their names and Arrow types, settled over all rows.

A column whose values share no Arrow type becomes JSON text. A name that cliffstore uses itself gets the
prefix `corpus_`. Names are compared without case, as SQL does. Every change is told in a notice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from cliffstore.corpus.kinds import NULL, Kind, arrow_type

RESERVED = frozenset(
    {"example", "id", "unit", "n_tokens", "decision", "digest", "plan"}
    | {"prompt", "system", "thinking", "response", "label", "source"}
)
MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))


def settle_names(columns: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Give each extra column the name it is kept under, and a notice for each one renamed."""
    taken = {*RESERVED}
    names: dict[str, str] = {}
    notices = []
    for column in sorted(columns):
        name = column
        while not name or name.lower() in taken:
            name = f"corpus_{name or 'column'}"
        taken.add(name.lower())
        names[column] = name
        if name != column:
            notices.append(f"the corpus column {column!r} is kept as {name!r}: the name is already in use")
    return names, tuple(notices)


class Settled:
    """The further columns of a whole corpus: what a row's values become, and their types.

    Parameters
    ----------
    names : column of the corpus -> name that it is kept under
    kinds : column of the corpus -> what it holds over all rows

    Attributes
    ----------
    schema : Arrow types by kept name, sorted
    notices : one for each column that becomes JSON text
    """

    def __init__(self, names: Mapping[str, str], kinds: Mapping[str, Kind]) -> None:
        self._names = dict(sorted(names.items(), key=lambda pair: pair[1]))
        types = {column: _type_of(column, kinds.get(column, NULL)) for column in self._names}
        self._as_text = {column for column, kind in types.items() if kind is None}
        self.schema = pa.schema([(name, types[column] or pa.string()) for column, name in self._names.items()])
        self.notices = tuple(
            f"the column {self._names[column]!r} holds values of several types: it is kept as JSON text"
            for column in self._names
            if column in self._as_text
        )

    def row(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return every kept column of a row, null where it has none."""
        found = {}
        for column, name in self._names.items():
            value = values.get(column)
            found[name] = as_json(value) if column in self._as_text and value is not None else value
        return found


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _type_of(column: str, kind: Kind) -> pa.DataType | None:
    found = arrow_type(kind)
    return MESSAGES_TYPE if column == "messages" and (found == _MESSAGES or kind == ("list", NULL)) else found
