"""Figures of heads in a store: a table and its document, written together, read by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from cliffstore.config import check_name
from cliffstore.errors import ConfigError, StoreError
from cliffstore.schema import HEADS, HeadsDocument
from cliffstore.store import documents, layout, tables
from cliffstore.store.objects import ObjectStore

Head = tuple[int, int]


def usual_name(probe: str, kind: Literal["direct", "knockout"]) -> str:
    """Return the name of figures that is used where none is given."""
    return f"{probe}-{kind}"


def check_free(objects: ObjectStore, name: str, *, replace: bool) -> None:
    """Raise `ConfigError` where figures cannot be kept under a name."""
    check_name(name, "name of figures of heads")
    if not replace and objects.exists(layout.heads_document(name)):
        raise ConfigError(f"figures of heads {name!r} are there already: choose another --name, or pass --replace")


def write_heads(objects: ObjectStore, rows: Sequence[dict[str, object]], facts: dict[str, object]) -> HeadsDocument:
    """Write figures in the place of those of the same name.

    Parameters
    ----------
    rows : of `HEADS`; columns that are left out are null
    facts : fields of `HeadsDocument` but the table's digest
    """
    table = pa.Table.from_pylist(list(rows), schema=HEADS)
    name = str(facts["name"])
    provenance = {key: str(facts[key]) for key in ("name", "kind", "probe", "probe_digest", "capture", "source")}
    documents.delete(objects, layout.heads_document(name))
    digest = tables.write(objects, layout.heads_table(name), table, provenance)
    document = HeadsDocument.model_validate({**facts, "digest": digest})
    documents.put(objects, document)
    return document


def read_heads(objects: ObjectStore, name: str) -> tuple[HeadsDocument, pa.Table]:
    """Return figures by name.

    Raises
    ------
    StoreError
        There are none; the message names those there are.
    DamagedStoreError
        Document or table are damaged.
    """
    try:
        document = documents.read(objects, HeadsDocument, layout.heads_document(name))
    except FileNotFoundError:
        known = ", ".join(heads_names(objects)) or "none yet; make some with `cliffstore heads trace`"
        raise StoreError(f"store {objects.url} has no figures of heads {name!r}; it has: {known}") from None
    return document, tables.read(objects, layout.heads_table(name))


def heads_names(objects: ObjectStore) -> list[str]:
    """Return the names of all figures of heads."""
    return [layout.stem(key) for key in objects.list(layout.HEADS) if layout.kind_of(key) == "heads"]


def parse_heads(text: str) -> list[Head]:
    """Return the heads that `3:1,4:0` names (layer:head). Raises `ConfigError` where it names none."""
    try:
        heads = [(int(layer), int(head)) for layer, head in (one.split(":") for one in text.split(","))]
    except ValueError:
        heads = []
    if not heads or any(number < 0 for head in heads for number in head):
        raise ConfigError(f"heads {text!r}: write layer:head, with commas between them, such as 3:1,4:0")
    return list(dict.fromkeys(heads))


def spell_heads(heads: Sequence[Head]) -> str:
    """Return heads as `parse_heads` reads them."""
    return ",".join(f"{layer}:{head}" for layer, head in heads)
