"""Corpus to work: what is generated, in which batches, and what is left out, with reasons.

Rows are rendered up to where the answer begins, and go into windows in the order of the corpus. Within a window those
of about one length are side by side, so a batch has little padding. Memory holds a window; the work lies in one local
Parquet file, a row group a window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.markers import DEFAULT_MARKERS, ThinkMarkers, split_thinking
from cliffstore.corpus.sources import Corpus
from cliffstore.corpus.template import RenderCounts, Renderer
from cliffstore.errors import ConfigError, CorpusError
from cliffstore.records import SEGMENTS, CorpusRow, RenderedExample, Segment, SkippedRow
from cliffstore.run.generation.config import GenerateConfig
from cliffstore.run.generation.job import WORK, Windows
from cliffstore.run.planning import count_reasons

_RENDERED_AT_ONCE = 256
_WINDOW = 1024
"""At least so many items are put in order of length."""
HAS_THINKING = "has thinking already"

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks around thinking, and whether the template writes the first of them."""

    markers: ThinkMarkers = DEFAULT_MARKERS
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What a corpus gives to generate.

    Attributes
    ----------
    rows : usable rows, in the order of the corpus
    items : samples of all rows
    skipped : reason -> rows
    skipped_ids : of rows that reading the corpus had not skipped yet
    fixed : rows whose own thinking is kept
    replaced : rows whose response, or thinking, is generated anew
    marks : by which thinking is found in a response
    digest : sha256 over the work, and over what the output has of the rows as they are
    path : local Parquet file of the work
    """

    rows: int
    items: int
    windows: Windows
    skipped: dict[str, int]
    skipped_ids: frozenset[str]
    first_skipped: str
    fixed: int
    replaced: int
    notices: tuple[str, ...]
    marks: Marks
    digest: str
    path: Path

    @property
    def units(self) -> int:
        return -(-self.items // self.windows.unit)

    def items_of(self, unit: int) -> int:
        """Return how many items a unit has; the last may have fewer."""
        return min(self.windows.unit, self.items - unit * self.windows.unit)


def plan_generation(
    config: GenerateConfig, corpus: Corpus, renderer: Renderer | None, context: int | None, path: Path
) -> GenerationPlan:
    """Lay out the work of a corpus in a local file.

    Parameters
    ----------
    renderer : None where an endpoint renders
    context : longest sequence of the model, prompt and answer together

    Raises
    ------
    CorpusError
        No row is left.
    ConfigError
        An endpoint would have to go on from thinking that the corpus has.
    """
    unit = config.batch_size if config.endpoint is None else 1
    marks = Marks(config.markers or DEFAULT_MARKERS)
    if renderer is not None:
        marks = Marks(renderer.markers, renderer.opens)
    planning = _Planning(config, Windows(-(-_WINDOW // unit) * unit, unit), context, marks)
    digest = hashlib.sha256()
    window: list[Item] = []
    with pq.ParquetWriter(path, WORK, compression="zstd") as writer:
        for item in planning.items(corpus, renderer):
            digest.update(json.dumps(item, sort_keys=True, default=list).encode() + b"\n")
            window.append(item)
            if len(window) == planning.windows.items:
                planning.write(writer, window)
                window = []
        if window:
            planning.write(writer, window)
    for one in corpus.skipped():
        planning.skip(one)
    return planning.finish(digest.hexdigest(), path, _notices(planning, renderer))


@dataclass(slots=True)
class _Planning:
    """The way from rows to items, and its counts."""

    config: GenerateConfig
    windows: Windows
    context: int | None
    marks: Marks
    rows: int = 0
    written: int = 0
    fixed: int = 0
    replaced: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    skipped_ids: set[str] = field(default_factory=set)
    first_skipped: str = ""

    def items(self, corpus: Corpus, renderer: Renderer | None) -> Iterator[Item]:
        """Yield the samples of all rows, in the order of the corpus."""
        rows = corpus.rows()
        while some := list(islice(rows, _RENDERED_AT_ONCE)):
            for item in self._asked(some) if renderer is None else self._rendered(some, renderer):
                for sample in range(self.config.samples):
                    name = item["id"] if self.config.samples == 1 else sample_name(item["id"], sample)
                    number = self.rows * self.config.samples + sample
                    yield {**item, "item": number, "name": name, "sample": sample}
                self.rows += 1

    def _asked(self, rows: Sequence[LocatedRow]) -> Iterator[Item]:
        for one in rows:
            if own_thinking(one.row, self.marks) is not None and not self.config.regenerate_thinking:
                raise ConfigError(
                    f"{one.location} has thinking, from which an endpoint cannot go on: say --regenerate-thinking, or "
                    "leave such rows out with --where"
                )
            self._count(one.row)
            turns = [{"role": turn.role, "content": turn.content} for turn in one.row.turns]
            limit = self.config.max_new_tokens
            yield {
                "id": one.row.id, "fixed": False, "open": False, "limit": limit, "turns": turns,
                "carried": _carried(one.row),
            }  # fmt: skip

    def _rendered(self, rows: Sequence[LocatedRow], renderer: Renderer) -> Iterator[Item]:
        config, to_render = self.config, []
        for one in rows:
            thinking = None if config.regenerate_thinking else own_thinking(one.row, self.marks)
            if thinking is not None and config.stop_at_thinking:
                self.skip(SkippedRow(one.row.id, None, one.location, HAS_THINKING, "say --regenerate-thinking"))
                continue
            to_render.append(replace(one, row=replace(one.row, thinking=thinking, response=None)))
        originals = {one.row.id: one.row for one in rows}
        found, _ = renderer.render(to_render)
        for example in found:
            if isinstance(example, SkippedRow):
                self.skip(example)
            else:
                row = originals[example.row.id]
                self._count(row)
                yield {**self._item(example), "carried": _carried(row)}

    def _item(self, example: RenderedExample) -> Item:
        n_tokens, is_fixed = len(example.token_ids), example.row.thinking is not None
        self.fixed += is_fixed
        most = self.config.max_new_tokens
        return {
            "id": example.row.id,
            "fixed": is_fixed,
            "open": SEGMENTS[example.segments[-1]] == Segment.THINK_OPEN,
            "limit": most if self.context is None else min(most, self.context - n_tokens),
            "token_ids": example.token_ids.tolist(),
            "segments": example.segments.tobytes(),
            "decision": example.decision,
        }

    def _count(self, row: CorpusRow) -> None:
        self.replaced += row.response is not None or (row.thinking is not None and self.config.regenerate_thinking)

    def skip(self, row: SkippedRow) -> None:
        """Count a row that is left out."""
        self.skipped[row.reason] = self.skipped.get(row.reason, 0) + 1
        if row.id is not None:
            self.skipped_ids.add(row.id)
        self.first_skipped = self.first_skipped or f"{row.location}: {row.detail}"

    def write(self, writer: pq.ParquetWriter, window: list[Item]) -> None:
        """Write a window, its batches in order of length."""
        if self.config.endpoint is None:
            window = sorted(window, key=lambda item: (len(item["token_ids"]), item["item"]))
        first = self.written // self.windows.unit
        units = [first + place // self.windows.unit for place in range(len(window))]
        rows = [{**item, "unit": unit} for item, unit in zip(window, units, strict=True)]
        writer.write_table(pa.Table.from_pylist(rows, schema=WORK), row_group_size=len(rows))
        self.written += len(rows)

    def finish(self, digest: str, path: Path, notices: tuple[str, ...]) -> GenerationPlan:
        """Return the plan. Raises `CorpusError` where no row is left."""
        if not self.rows:
            raise CorpusError(
                f"every row was skipped: {count_reasons(self.skipped)}; the first is {self.first_skipped}"
            )
        return GenerationPlan(
            rows=self.rows,
            items=self.rows * self.config.samples,
            windows=self.windows,
            skipped=self.skipped,
            skipped_ids=frozenset(self.skipped_ids),
            first_skipped=self.first_skipped,
            fixed=self.fixed,
            replaced=self.replaced,
            notices=notices,
            marks=self.marks,
            digest=digest,
            path=path,
        )


def own_thinking(row: CorpusRow, marks: Marks) -> str | None:
    """Return the thinking that a row brings along, in its column or within its response."""
    if row.thinking is not None or row.response is None:
        return row.thinking if row.thinking and row.thinking.strip() else None
    parts = split_thinking(row.response, marks.markers, is_open=marks.is_open)
    return parts[0] if parts is not None and parts[0].strip() else None


def _carried(row: CorpusRow) -> str:
    """Return a digest of what the output has of a row as it is; of another corpus it is another."""
    content = [row.prompt, row.system, row.label, row.source, row.extra]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def sample_name(id_: str, sample: int) -> str:
    """Return what one of several samples of an example is called."""
    return f"{id_}#{sample}"


def _notices(planning: _Planning, renderer: Renderer | None) -> tuple[str, ...]:
    config, notices = planning.config, []
    if planning.skipped:
        counted = f"{sum(planning.skipped.values())} rows skipped: {count_reasons(planning.skipped)}"
        notices.append(f"{counted}; the first is {planning.first_skipped}")
    if planning.replaced:
        notices.append(f"{planning.replaced} rows have a response, or thinking, that is generated anew")
    if planning.fixed:
        notices.append(f"{planning.fixed} rows have thinking, which is kept: their response alone is generated")
    if renderer is not None and config.stop_at_thinking and not renderer.thinks:
        raise ConfigError("this model has no thinking markers: give --think-open and --think-close, or leave out "
                          "--stop-at-thinking")  # fmt: skip
    return (*notices, *renderer.notices(RenderCounts())) if renderer is not None else tuple(notices)
