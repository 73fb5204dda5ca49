"""Corpus to plan: read, render, sort, pack, and put the plan's tables into the store.

Everything larger than a block or a unit lies on local disk meanwhile; large corpora are drafted and rendered by
several processes. Nothing is written to the store before `write_plan`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore import __version__
from cliffstore.access import check_url
from cliffstore.config import ExtractConfig
from cliffstore.corpus.scratch import new_folder
from cliffstore.corpus.sources import read_corpus
from cliffstore.corpus.template import RenderCounts, Renderer, ThinkMarkers, tokenizer_digest
from cliffstore.errors import ConfigError, CorpusError, StoreError
from cliffstore.model.identity import ModelSource
from cliffstore.plan.positions import Positions, parse_positions
from cliffstore.plan.sorting import HELD, SortedExamples, members_of
from cliffstore.plan.tables import TokenText, examples_table, tokens_table
from cliffstore.plan.units import CHUNK_ROWS, Member, Survey, build_unit, pack, plan_digest, whole_chunks
from cliffstore.records import PlannedUnit
from cliffstore.run.executor import available_cpus
from cliffstore.run.parallel import BlockPool
from cliffstore.run.places import claim, next_numbers, place_of, read_places
from cliffstore.run.progress import Reporter
from cliffstore.run.rendering import RenderSpec, RenderTask, forget_renderer, renderer_of
from cliffstore.schema import (
    EXAMPLES,
    Chunking,
    CorpusRecipe,
    Manifest,
    PlanCounts,
    PlanDocument,
    PlanPlace,
    TokenizerIdentity,
)
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanTables, PlanWriter, put_tables
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import commit_plan, create_manifest

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and its tables where they are not in the store yet.

    Attributes
    ----------
    document : as it is, or will be, in the store
    units : all its units, in order
    manifest : of the store, or with which it begins
    folder : local folder with the tables below it, which goes at the end of `with`; None where the store has the plan
    """

    document: PlanDocument
    units: tuple[PlannedUnit, ...]
    manifest: Manifest
    place: PlanPlace | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def tables(self) -> Path | None:
        """Where the tables are, None where they are in the store."""
        return Path(self.folder.name) / "plan" if self.folder is not None else None

    def __enter__(self) -> Planned:
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def plan_corpus(
    config: ExtractConfig, source: ModelSource, held: StoreReader | None, bytes_per_row: int, reporter: Reporter
) -> Planned:
    """Read the corpus, render it and plan it. Nothing is written to the store.

    Parameters
    ----------
    held : the store, where there is one already
    bytes_per_row : see `choose_unit_rows`

    Raises
    ------
    CorpusError, ModelError, ConfigError
        The input is wrong.
    StoreError
        The store was made with another tokenizer, template or size of units, or holds other corpora and the
        configuration does not say `append`.
    """
    positions = parse_positions(config.positions)
    for url in config.corpus:
        check_url(url)
    forget_renderer()  # its tokenizer may have changed on disk since
    spec = RenderSpec(source, _markers(config), config.template_date, config.max_tokens or source.context)
    renderer = renderer_of(spec)
    identity = tokenizer_identity(source, renderer, config.template_date)
    if held is not None:
        check_tokenizer(config.store, held.manifest, identity)
    folder = new_folder()
    try:
        return _Planning(config, spec, positions, identity, held, bytes_per_row, reporter, folder).run()
    except BaseException:
        folder.cleanup()
        raise


def tokenizer_identity(source: ModelSource, renderer: Renderer, template_date: str) -> TokenizerIdentity:
    """Return what a store keeps of tokenizer and template."""
    return TokenizerIdentity(
        name=source.identity.name,
        digest=tokenizer_digest(renderer.tokenizer),
        template_digest=renderer.digest,
        think_open=renderer.markers.open,
        think_close=renderer.markers.close,
        template_date=template_date,
    )


@dataclass(frozen=True, slots=True)
class _Planning:
    """The way from a corpus to its plan."""

    config: ExtractConfig
    spec: RenderSpec
    positions: Positions
    identity: TokenizerIdentity
    held: StoreReader | None
    bytes_per_row: int
    reporter: Reporter
    folder: tempfile.TemporaryDirectory[str]

    def run(self) -> Planned:
        examples = SortedExamples(self.folder.name)
        try:
            extra_schema = self._read(examples)
            examples.sort()
            survey, seen_V = self._survey(examples)
            unit_rows = self._unit_rows(survey)
            digest = plan_digest(
                examples.digests(),
                examples.skipped(),
                {"tokenizer": self.identity.digest, "template": self.identity.template_digest},
                self._settings(),
                unit_rows,
            )
            name = f"plan-{digest[:12]}"
            if self.held is not None and (there := _held_plan(self.held, name)) is not None:
                self._tell_skipped(examples)
                self.folder.cleanup()
                return there
            place, base = self._find_place(name)
            if base:
                n_held = examples.leave_out(_held_examples(self.held, base))
                self.reporter.notice(f"{n_held} of {n_held + examples.n_examples} examples are in the store already")
            self._tell_skipped(examples)
            return self._write_tables(examples, extra_schema, unit_rows, digest, place, self._token_text(seen_V))
        finally:
            examples.close()

    def _read(self, examples: SortedExamples) -> pa.Schema:
        """Read and render the corpus. Return the types of its further columns."""
        config, renderer = self.config, renderer_of(self.spec)
        clock = _Clock(self.reporter)
        with BlockPool(available_cpus()) as pool:
            corpus = read_corpus(
                config.corpus,
                self.folder.name,
                mapping=config.map,
                where=config.where,
                limit=config.limit,
                storage_options=config.storage_options,
                apply=pool.map,
                on_rows=lambda n: clock.tell(f"plan: {n:,} rows read"),
            )
            try:
                counts, n_rendered = RenderCounts(), 0
                for rows, found in pool.map(RenderTask(self.spec, self.positions, corpus.settled), corpus.tables()):
                    examples.add(rows)
                    counts += found
                    n_rendered += rows.examples.num_rows + rows.skipped.num_rows
                    clock.tell(f"plan: {n_rendered:,} of {corpus.n_rows:,} rows rendered")
                for notice in (*corpus.notices, *renderer.notices(counts)):
                    self.reporter.notice(notice)
                examples.skip(corpus.skipped())
                return corpus.extra_schema
            finally:
                corpus.close()

    def _survey(self, examples: SortedExamples) -> tuple[Survey, npt.NDArray[np.bool_]]:
        """Return what all examples take, and which token ids occur, bool [V]."""
        survey, seen_V = Survey(self.positions), np.zeros(1 << 20, dtype=np.bool_)
        for member in examples.members():
            survey.add(member)
            highest = int(member.token_ids.max())
            if highest >= len(seen_V):
                seen_V = np.pad(seen_V, (0, highest + 1))
            seen_V[member.token_ids] = True
        if not survey.n_examples:
            raise CorpusError(f"every row of the corpus was skipped: {count_reasons(examples.reasons())}")
        return survey, seen_V

    def _settings(self) -> dict[str, str | int | None]:
        return {"max_tokens": self.config.max_tokens, "positions": str(self.positions)}

    def _unit_rows(self, survey: Survey) -> int:
        """Return the rows of a unit.

        What the user asks for is rounded before it is compared with the store, so that the command that began a store
        also goes on with it.
        """
        asked = None
        if self.config.unit_rows is not None:
            asked = whole_chunks(max(self.config.unit_rows, survey.longest))
        if self.held is None:
            return asked or survey.unit_rows(self.bytes_per_row)
        held = self.held.manifest.chunking.unit_rows
        if asked not in (None, held):
            raise StoreError(f"store {self.config.store} has units of {held} rows: leave --unit-rows out")
        if survey.longest > held:
            raise StoreError(
                f"store {self.config.store}: an example stores {survey.longest} tokens, which do not fit into a unit "
                f"of {held} rows; give another --store, or --max-tokens"
            )
        return held

    def _find_place(self, name: str) -> tuple[PlanPlace, list[str]]:
        """Return the plan's place, its size still open, and the plans whose examples it leaves out."""
        places = read_places(self.held.objects) if self.held is not None else []
        found = place_of(name, places)
        if found is not None:
            return found, found.base
        base = [plan.plan for plan in self.held.plans()] if self.held is not None else []
        if base and not self.config.append:
            assert self.held is not None
            document = self.held.plans()[0]
            raise StoreError(
                f"store {self.config.store} holds another corpus or other settings ({document.plan}: "
                f"{document.counts.examples} examples of {', '.join(document.sources)}): add this one with --append, "
                "or give another --store"
            )
        number, first_unit, first_example = next_numbers(places)
        place = PlanPlace(
            number=number,
            plan=name,
            first_unit=first_unit,
            n_units=0,
            first_example=first_example,
            n_examples=0,
            base=base,
        )
        return place, base

    def _tell_skipped(self, examples: SortedExamples) -> None:
        reasons = {reason: n for reason, n in examples.reasons().items() if reason != HELD}
        if reasons:
            self.reporter.notice(
                f"{sum(reasons.values())} rows skipped: {count_reasons(reasons)} (SELECT * FROM skipped)"
            )

    def _token_text(self, seen_V: npt.NDArray[np.bool_]) -> TokenText:
        ids = [int(token) for token in np.flatnonzero(seen_V)]
        texts = renderer_of(self.spec).tokenizer.batch_decode([[token] for token in ids])
        text = dict(zip(ids, texts, strict=True))
        return lambda tokens: [text[token] for token in tokens]

    def _write_tables(
        self,
        examples: SortedExamples,
        extra_schema: pa.Schema,
        unit_rows: int,
        digest: str,
        place: PlanPlace,
        token_text: TokenText,
    ) -> Planned:
        """Write the plan's tables into the local folder."""
        clock = _Clock(self.reporter)
        provenance = {"store_tokenizer": self.identity.digest, "plan": place.plan}
        folder = Path(self.folder.name) / "plan"
        writer = PlanWriter(folder, place.plan, pa.schema([*EXAMPLES, *extra_schema]), provenance)
        units: list[PlannedUnit] = []
        n_examples = 0
        for members, rows in _units_of(examples, self.positions, unit_rows):
            number, ordinal = place.first_unit + len(units), place.first_example + n_examples
            unit = build_unit(number, ordinal, members, self.positions, unit_rows)
            facts = unit.facts(place.plan, *writer.place())
            writer.add(facts, examples_table(unit, rows, extra_schema), tokens_table(unit, token_text))
            units.append(facts)
            n_examples += len(members)
            clock.tell(f"plan: {n_examples:,} of {examples.n_examples:,} examples in {len(units):,} units")
        written = writer.finish(examples.skipped_tables())
        document = PlanDocument(
            plan=place.plan,
            digest=digest,
            counts=PlanCounts(
                examples=n_examples,
                tokens=sum(unit.n_tokens for unit in units),
                rows=sum(unit.n_rows for unit in units),
                units=len(units),
                skipped=sum(examples.reasons().values()),
            ),
            settings=self._settings(),
            sources=examples.sources(),
            corpus=CorpusRecipe(
                inputs=list(self.config.corpus),
                map=dict(self.config.map),
                where=self.config.where,
                limit=self.config.limit,
            ),
            place=place.number,
            tables=written,
            cliffstore_version=__version__,
        )
        whole = place.model_copy(update={"n_units": len(units), "n_examples": n_examples})
        manifest = self.held.manifest if self.held is not None else self._new_manifest(unit_rows)
        return Planned(document, tuple(units), manifest, whole, self.folder)

    def _new_manifest(self, unit_rows: int) -> Manifest:
        return Manifest(
            cliffstore_version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tokenizer=self.identity,
            chunking=Chunking(chunk_rows=CHUNK_ROWS, unit_rows=unit_rows),
        )


class _Clock:
    """Says how far a long step is, from time to time."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._last = reporter, time.monotonic()

    def tell(self, text: str) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._reporter.stage(text)


def _units_of(
    examples: SortedExamples, positions: Positions, unit_rows: int
) -> Iterator[tuple[list[Member], pa.Table]]:
    """Yield the members of each unit, and the same examples as they are kept."""
    waiting: list[pa.Table] = []

    def members() -> Iterator[Member]:
        for table in examples.tables():
            waiting.append(table)
            yield from members_of(table)

    for unit in pack(members(), positions, unit_rows):
        kept = pa.concat_tables(waiting)
        waiting[:] = [kept.slice(len(unit))]
        yield unit, kept.slice(0, len(unit))


def _held_plan(held: StoreReader, name: str) -> Planned | None:
    """Return a plan that the store has."""
    document = next((plan for plan in held.plans() if plan.plan == name), None)
    return held_plan(held, document) if document is not None else None


def held_plan(held: StoreReader, document: PlanDocument) -> Planned:
    """Return a plan of a store with its units."""
    units = PlanTables(held.objects, [document.plan]).units
    return Planned(document, tuple(units.values()), held.manifest)


def _held_examples(held: StoreReader | None, plans: Iterable[str]) -> Iterator[pa.Table]:
    """Yield ids and digests of the examples of some plans, a unit at a time."""
    assert held is not None
    tables = PlanTables(held.objects, list(plans))
    for unit in tables.units:
        yield tables.examples(unit, ["id", "digest"])


def check_tokenizer(url: str, manifest: Manifest, identity: TokenizerIdentity) -> None:
    """Raise `StoreError` unless the store was made with the same tokenizer and template."""
    held = manifest.tokenizer
    check_tokens(url, manifest, identity.digest, identity.name)
    if held.template_digest != identity.template_digest:
        raise StoreError(
            f"store {url} was made with another chat template, thinking markers or template date "
            f"(markers {held.think_open!r} {held.think_close!r}, date {held.template_date}): "
            "give the same, or another --store"
        )


def check_tokens(url: str, manifest: Manifest, digest: str, name: str) -> None:
    """Raise `StoreError` unless the store was made with this tokenizer, whatever the template."""
    if manifest.tokenizer.digest != digest:
        raise StoreError(
            f"store {url} was made with another tokenizer (that of {manifest.tokenizer.name}), not that of {name}: "
            "give another --store"
        )


def write_plan(objects: ObjectStore, planned: Planned) -> None:
    """Begin the store where there is none, and write the plan unless it is there already."""
    if planned.place is None:
        return
    create_manifest(objects, planned.manifest)
    claim(objects, planned.place)
    assert planned.tables is not None
    put_tables(objects, planned.document.plan, planned.tables, planned.document.tables)
    commit_plan(objects, planned.document)


def count_reasons(reasons: Mapping[str, int]) -> str:
    """Return '2 empty prompt, 1 bad row', most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def _markers(config: ExtractConfig) -> ThinkMarkers | None:
    if config.think_open is None and config.think_close is None:
        return None
    if config.think_open is None or config.think_close is None:
        raise ConfigError("give --think-open and --think-close together")
    return ThinkMarkers(config.think_open, config.think_close)
