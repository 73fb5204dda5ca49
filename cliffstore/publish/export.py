"""A selection as a training set: Parquet with `messages` and lineage columns, and a dataset card beside it.

The assistant's turn is the example's own thinking, in the model's markers, and then the target: a column of the
corpus, or one text for all. Every row leads back to its example, scores, probe, capture, plan and store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from cliffstore import __version__
from cliffstore.errors import SelectionError
from cliffstore.publish.card import CardFacts, dataset_card
from cliffstore.schema import TRAINING_SET
from cliffstore.store import tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe

FORMATS = ("messages",)

_SELECTED_SQL = """
SELECT s.rank, s.strategy, s.value, s.selection, s.probe, c.plateau, c.final, c.cliff,
       e.example, e.id, e.system, e.prompt, e.thinking, e.label, e.source, e.digest, u.plan,
       CAST({target} AS VARCHAR) AS target
       {conversation}
FROM selections s JOIN examples e USING (example) JOIN (SELECT DISTINCT unit, plan FROM units) u USING (unit)
LEFT JOIN cliffs c ON c.example = s.example AND c.probe = s.probe
WHERE s.selection = $1 ORDER BY s.rank
"""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written where. `without_target` examples of the selection are left out."""

    path: str
    card: str
    rows: int
    without_target: int
    digest: str


def export_selection(
    catalog: Catalog,
    *,
    selection: str,
    output: str,
    format: str,
    target_column: str,
    target_text: str | None,
    storage_options: Mapping[str, object] | None = None,
) -> ExportReport:
    """Write a selection as a training set.

    Parameters
    ----------
    output : URL; one that ends in `.parquet` names the file, any other a folder that gets `train.parquet`
    target_column : column of `examples` with the text that the model shall learn to answer
    target_text : one text for all, in place of the column

    Raises
    ------
    SelectionError
        Unknown selection, format or column, or no example has a target.
    """
    if format not in FORMATS:
        raise SelectionError(f"format {format!r} is not known: choose from {', '.join(FORMATS)}")
    known = catalog.arrow("SELECT DISTINCT selection FROM selections ORDER BY 1")["selection"].to_pylist()
    if selection not in known:
        raise SelectionError(
            f"store {catalog.reader.url} has no selection {selection!r}; it has: {', '.join(known) or 'none'}"
        )
    selected = _selected(catalog, selection, target_column, target_text)
    rows = [row for row in selected if row["target"]]
    if not rows:
        raise SelectionError(
            f"none of the {len(selected)} selected examples has a {target_column}: name a column with --target-column, "
            "or give one answer for all with --target-text"
        )
    if rows[0]["probe"] is None:
        raise SelectionError(
            f"selection {selection!r} was made without a probe, and rows lead back to one: select again with --probe"
        )
    probe, _ = read_probe(catalog.reader.objects, str(rows[0]["probe"]))
    markers = catalog.reader.manifest.tokenizer
    lineage = {"probe_digest": probe.digest, "capture": probe.capture, "store": public_url(catalog.reader.url)}
    table = pa.Table.from_pylist(
        [{**training_row(row, markers.think_open, markers.think_close), **lineage} for row in rows], schema=TRAINING_SET
    )
    provenance = {"selection": selection, "probe": probe.name, "probe_digest": probe.digest, "capture": probe.capture}
    content = tables.encode(table, provenance)
    folder, data_name, card_name = _places(output)
    target = ObjectStore(folder, storage_options)
    target.put_if_new(data_name, content)
    digest = hashlib.sha256(content).hexdigest()
    facts = CardFacts(
        selection=selection,
        strategy=str(rows[0]["strategy"]),
        rows=len(rows),
        without_target=len(selected) - len(rows),
        labels=_counts(rows, "label"),
        sources=_counts(rows, "source"),
        probe=probe,
        plans=tuple(sorted({str(row["plan"]) for row in rows})),
        store=lineage["store"],
        target=f"the text {target_text!r}" if target_text is not None else f"column `{target_column}`",
        digest=digest,
        data_file=data_name,
        version=__version__,
    )
    target.put_if_new(card_name, dataset_card(facts).encode())
    return ExportReport(f"{folder}/{data_name}", f"{folder}/{card_name}", len(rows), facts.without_target, digest)


def training_row(row: Mapping[str, object], think_open: str, think_close: str) -> dict[str, object]:
    """Return one row of the training set, its lineage of probe and store apart.

    Parameters
    ----------
    row : a row of the selection with its example, cliff and target; `messages` where the corpus had conversations
    """
    turns = _conversation(row)
    thinking = row["thinking"]
    answer = f"{think_open}{thinking}{think_close}{row['target']}" if thinking else str(row["target"])
    known = ("id", "label", "source", "example", "rank", "strategy", "value", "plateau", "final", "cliff")
    return {
        "messages": [*turns, {"role": "assistant", "content": answer}],
        **{name: row[name] for name in (*known, "selection", "probe", "plan")},
        "example_digest": row["digest"],
    }


def public_url(url: str) -> str:
    """Return a URL without user name, password and query, which may be secrets."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    if not parts.scheme or parts.scheme == "file":
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _conversation(row: Mapping[str, object]) -> list[dict[str, str]]:
    given = row.get("messages")
    if isinstance(given, list) and given:
        turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in given]
        return turns[:-1] if turns[-1]["role"] == "assistant" else turns
    system = [{"role": "system", "content": str(row["system"])}] if row["system"] else []
    return [*system, {"role": "user", "content": str(row["prompt"])}]


def _selected(catalog: Catalog, selection: str, target_column: str, target_text: str | None) -> list[dict[str, object]]:
    columns = catalog.arrow("SELECT * FROM examples LIMIT 0").column_names
    if target_text is None and target_column not in columns:
        raise SelectionError(f"examples have no column {target_column!r}; there are: {', '.join(columns)}")
    quoted = target_column.replace('"', '""')
    target = "$2" if target_text is not None else f'e."{quoted}"'
    conversation = ", e.messages" if "messages" in columns else ""
    statement = _SELECTED_SQL.format(target=target, conversation=conversation)
    parameters = [selection] if target_text is None else [selection, target_text]
    return catalog.arrow(statement, parameters).to_pylist()


def _places(output: str) -> tuple[str, str, str]:
    """Return folder, name of the data file and name of the card."""
    if output.endswith(".parquet"):
        folder, _, name = output.rpartition("/")
        return folder or ".", name, f"{name.removesuffix('.parquet')}.md"
    return output.rstrip("/"), "train.parquet", "README.md"


def _counts(rows: list[dict[str, object]], column: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        value = str(row[column])
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))
