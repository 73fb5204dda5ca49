"""The rows of an export: which examples there are, and what of the store becomes of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from cliffstore.config import ExportConfig
from cliffstore.errors import SelectionError
from cliffstore.publish import mixture
from cliffstore.publish.formats import CONVERSATION, Shape, Thinking, columns_of_examples
from cliffstore.publish.mixture import MIXED, SELECTED, Chosen
from cliffstore.publish.targets import ColumnTarget, Target
from cliffstore.schema import TRAINING_SET_VERSION, TRAINING_SETS, ProbeDocument, SelectionDocument
from cliffstore.store import documents, layout
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

T = TypeVar("T")

BATCH = 256
"""Rows that are made at a time."""

_SELECTED = """
SELECT s.example, s.rank, s.strategy, s.value, e.id, e.prompt, {group}, {text} {columns}
FROM selections s JOIN examples e ON e.example = s.example WHERE s.selection = $1 ORDER BY s.rank
"""
_MIXED = """
SELECT e.example, NULL, NULL, NULL, e.id, e.prompt, {group}, {text} {columns}
FROM (SELECT * FROM examples e WHERE (
{where}
)) e
WHERE {text} <> '' AND e.example NOT IN (SELECT example FROM selections WHERE selection = $1)
ORDER BY md5(concat($2, ' ', e.id)), e.id, e.example LIMIT $3
"""
_TEXTS = """
SELECT t.place, u.plan, c.plateau, c.final, c.cliff, e.digest, {text}, {mixed_text} {columns}
FROM (SELECT unnest(CAST($1 AS BIGINT[])) AS example, unnest(CAST($2 AS BIGINT[])) AS place) t
JOIN examples e ON e.example = t.example
JOIN (SELECT DISTINCT unit, plan FROM units) u ON u.unit = e.unit
LEFT JOIN cliffs c ON c.example = e.example AND c.probe = CAST($3 AS VARCHAR)
ORDER BY t.place
"""


class ExportRows:
    """One export: what is read of the store, and how it becomes rows."""

    def __init__(
        self,
        catalog: Catalog,
        config: ExportConfig,
        thinking: Thinking,
        target: Target,
        notice: Callable[[str], object],
    ) -> None:
        self._catalog, self._config, self.target, self._notice = catalog, config, target, notice
        self.mixed_target = ColumnTarget(config.mix_target_column)
        self.columns = catalog.arrow("SELECT * FROM examples LIMIT 0").schema
        for option, column in (
            ("target-column", target.column),
            ("mix-target-column", config.mix_target_column if config.mix is not None else None),
            ("group-by", config.group_by),
        ):
            if column is not None and column not in self.columns.names:
                known = ", ".join(self.columns.names)
                raise SelectionError(f"{option}: examples have no column {column!r}; there are: {known}")
        self.selection = _read_selection(catalog, config.selection)
        self.probe = self._read_probe()
        self.schema = TRAINING_SETS[config.format]
        renamed: dict[str, str] = {}
        if config.format == "raw":
            self.schema, renamed = columns_of_examples(self.columns)
            if renamed:
                names = ", ".join(f"{old} as {new}" for old, new in renamed.items())
                notice(f"{len(renamed)} columns of the corpus have names of lineage and are kept by others: {names}")
        markers = catalog.reader.manifest.tokenizer
        self.shape = Shape(config.format, thinking, markers.think_open, markers.think_close, renamed)
        self.with_thinking = 0
        self.plans: set[str] = set()

    def choose(self) -> tuple[list[Chosen], int]:
        """Return all rows in the order of the export, and how many selected examples have no target."""
        config = self._config
        text = self._text(self.target.column)
        selected, without_target = self._found(_SELECTED, self.target, SELECTED, [config.selection], text=text)
        if not selected:
            what = f"column {self.target.column!r}" if self.target.column else str(self.target)
            raise SelectionError(
                f"none of the {without_target} selected examples has a target in {what}: name a column with "
                "--target-column, or give one answer for all with --target-text"
            )
        if without_target:
            self._notice(f"{without_target} selected examples have no target in {self.target} and are left out")
        if config.mix is None:
            return selected, without_target
        wanted = mixture.count_mixed(len(selected), config.mix)
        mixed, _ = self._found(
            _MIXED,
            self.mixed_target,
            MIXED,
            [config.selection, str(config.seed), wanted],
            text=self._text(config.mix_target_column),
            where=config.mix_where or "true",
        )
        if not mixed:
            raise SelectionError(
                f"mix-where: no example outside the selection satisfies {config.mix_where} and has a "
                f"{config.mix_target_column}"
            )
        if len(mixed) < wanted:
            self._notice(
                f"{len(mixed)} examples are mixed in, not the {wanted} that {config.mix:.4g} of the training set "
                "would be: no more satisfy mix-where and have a target"
            )
        return mixture.shuffled([*selected, *mixed], config.seed), without_target

    def rows(self, chosen: Sequence[Chosen]) -> Iterator[tuple[int, dict[str, object]]]:
        """Yield the place and the columns of each row, in order."""
        needed = self._needed()
        statement = _TEXTS.format(
            text=self._text(self.target.column),
            mixed_text=self._text(self.mixed_target.column if self._config.mix is not None else None),
            columns=_listed(needed),
        )
        parameters: list[object] = [
            [row.example for row in chosen],
            list(range(len(chosen))),
            self.probe and self.probe.name,
        ]
        constant = {
            "selection": self._config.selection,
            "probe": self.probe and self.probe.name,
            "probe_digest": self.probe and self.probe.digest,
            "capture": self.probe and self.probe.capture,
            "store": public_url(self._catalog.reader.url),
        }
        for lines in batches(self._lines(statement, parameters), BATCH):
            examples = [dict(zip(needed, line[8:], strict=True)) for line in lines]
            texts = self.target.of(examples, [line[6] for line in lines])
            for line, example, own in zip(lines, examples, texts, strict=True):
                place, plan, plateau, final, cliff, digest, _, mixed_text = line[:8]
                row = chosen[place]
                learnt = mixed_text if row.part == MIXED else own
                assert learnt, "rows without a target are not chosen"
                self.plans.add(plan)
                self.with_thinking += bool(self.shape.thinking.of(example["thinking"]))
                yield (
                    place,
                    {
                        **self.shape.columns(example, learnt),
                        **{name: example[name] for name in ("id", "label", "source", "example")},
                        "part": row.part,
                        "rank": row.rank,
                        "strategy": row.strategy,
                        "value": row.value,
                        "plateau": plateau,
                        "final": final,
                        "cliff": cliff,
                        "example_digest": digest,
                        "plan": plan,
                        **constant,
                    },
                )

    def provenance(self) -> dict[str, str]:
        """Return what goes into the metadata of each file."""
        known = {
            "training_set_version": str(TRAINING_SET_VERSION),
            "selection": self._config.selection,
            "format": self._config.format,
        }
        if self.probe is None:
            return known
        return {
            **known,
            "probe": self.probe.name,
            "probe_digest": self.probe.digest,
            "capture": self.probe.capture,
        }

    def _read_probe(self) -> ProbeDocument | None:
        """Return the probe that the selection was made with, if it was made with one."""
        name = self.selection.probe
        return read_probe(self._catalog.reader.objects, name)[0] if name else None

    def _found(
        self, template: str, target: Target, part: str, parameters: list[object], *, text: str, where: str = ""
    ) -> tuple[list[Chosen], int]:
        """Return the examples of a part that have a target, and how many have none."""
        needed = [name for name in self.columns.names if target.needs is None or name in target.needs]
        group = f"CAST({_quoted(self._config.group_by)} AS VARCHAR)" if self._config.group_by else "NULL"
        statement = template.format(group=group, text=text, columns=_listed(needed), where=where)
        found, without = [], 0
        for lines in batches(self._lines(statement, parameters), BATCH):
            examples = [dict(zip(needed, line[8:], strict=True)) for line in lines]
            targets = target.of(examples, [line[7] for line in lines])
            for (example, rank, strategy, value, id_, prompt, group_value, *_), learnt in zip(
                lines, targets, strict=True
            ):
                if not learnt:
                    without += 1
                    continue
                digest = mixture.prompt_digest(prompt)
                found.append(Chosen(example, id_, part, digest, group_value, rank, strategy, value))
        return found, without

    def _lines(self, statement: str, parameters: list[object]) -> Iterator[tuple[Any, ...]]:
        """Yield the lines of a result, by the places of its columns: names of the corpus's own may repeat."""
        with self._catalog.batches(statement, BATCH * 4, parameters) as found:
            for batch in found:
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _needed(self) -> list[str]:
        """Return the columns of `examples` that rows are made of."""
        names = self.columns.names
        if self._config.format == "raw" or self.target.needs is None:
            return list(names)
        wanted = {*CONVERSATION, "example", "label", "source", *self.target.needs}
        return [name for name in names if name in wanted]

    @staticmethod
    def _text(column: str | None) -> str:
        return "CAST(NULL AS VARCHAR)" if column is None else f"CAST({_quoted(column)} AS VARCHAR)"


class Tally:
    """How often each label and each source occurs, by part."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counter[str]] = {}

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Count rows."""
        for row in rows:
            for column in ("label", "source"):
                self._counts.setdefault((column, str(row["part"])), Counter())[str(row[column])] += 1

    def of(self, column: str) -> dict[str, dict[str, int]]:
        """Return the counts of a column by part."""
        parts = sorted((part for name, part in self._counts if name == column), reverse=True)
        return {part: dict(self._counts[column, part]) for part in parts}


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def public_url(url: str) -> str:
    """Return a URL without user name, password and query, which may be secrets; a path from the root on."""
    parts = urlsplit(url)
    if not parts.scheme:
        return str(Path(url).absolute())
    return (
        url
        if parts.scheme == "file"
        else urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    )


def _read_selection(catalog: Catalog, name: str) -> SelectionDocument:
    known = catalog.arrow("SELECT DISTINCT selection FROM selections ORDER BY 1")["selection"].to_pylist()
    if name not in known:
        raise SelectionError(
            f"store {catalog.reader.url} has no selection {name!r}; it has: {', '.join(known) or 'none'}"
        )
    try:
        return documents.read(catalog.reader.objects, SelectionDocument, layout.selection_document(name))
    except FileNotFoundError:
        raise SelectionError(f"selection {name!r} is not whole: run its `cliffstore select` again") from None


def _listed(columns: Sequence[str]) -> str:
    return "".join(f", {_quoted(column)}" for column in columns)


def _quoted(column: str) -> str:
    escaped = column.replace('"', '""')
    return f'e."{escaped}"'
