"""Corpus to plan: read, render, sort, pack, and put the plan's tables into the store.

Everything larger than a block or a unit lies on local disk meanwhile; large corpora are drafted and rendered by
several processes. Nothing is written to the store before `write_plan`.
"""

from __future__ import annotations

import tempfile
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
from cliffstore.corpus.template import RenderCounts
from cliffstore.errors import CorpusError, StoreError
from cliffstore.model.identity import ModelSource
from cliffstore.plan.positions import Positions, parse_positions
from cliffstore.plan.sorting import HELD, SortedExamples
from cliffstore.plan.tables import TokenText
from cliffstore.plan.units import CHUNK_ROWS, Survey, plan_digest, whole_chunks
from cliffstore.run.executor import available_cpus
from cliffstore.run.packing import write_units
from cliffstore.run.parallel import BlockPool
from cliffstore.run.places import next_numbers, place_of, read_places
from cliffstore.run.planned import Planned, find_plan
from cliffstore.run.progress import Clock, Reporter
from cliffstore.run.rendering import RenderSpec, RenderTask, forget_renderer, renderer_of
from cliffstore.run.tokenizers import check_tokenizer, think_markers, tokenizer_identity
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
from cliffstore.store.plans import PlanTables, PlanWriter
from cliffstore.store.reader import StoreReader


def plan_corpus(
    config: ExtractConfig,
    source: ModelSource,
    held: StoreReader | None,
    bytes_per_row: int,
    reporter: Reporter,
    again: str | None = None,
) -> Planned:
    """Read the corpus, render it and plan it. Nothing is written to the store.

    Parameters
    ----------
    held : the store, where there is one already
    bytes_per_row : see `choose_unit_rows`
    again : name of a plan of the store whose tables are to be made a second time

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
    spec = RenderSpec(source, think_markers(config), config.template_date, config.max_tokens or source.context)
    renderer = renderer_of(spec)
    identity = tokenizer_identity(source, renderer, config.template_date)
    if held is not None:
        check_tokenizer(config.store, held.manifest, identity)
    folder = new_folder()
    try:
        return _Planning(config, spec, positions, identity, held, bytes_per_row, reporter, folder, again).run()
    except BaseException:
        folder.cleanup()
        raise


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
    again: str | None

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
            if self.again not in (None, name):
                raise CorpusError(
                    f"the corpus is no longer what {self.again} was made of (it would be {name}): give it as it was"
                )
            if self.again is None and self.held is not None and (there := find_plan(self.held, name)) is not None:
                self._tell_skipped(examples)
                self.folder.cleanup()
                return there
            place, base = self._find_place(name)
            if base and (n_held := examples.leave_out(_held_examples(self.held, base))):
                n_all = n_held + examples.n_examples
                self.reporter.notice(f"{n_held} of {n_all} examples are in the store already")
            self._tell_skipped(examples)
            return self._write_tables(examples, extra_schema, unit_rows, digest, place, self._token_text(seen_V))
        finally:
            examples.close()

    def _read(self, examples: SortedExamples) -> pa.Schema:
        """Read and render the corpus. Return the types of its further columns."""
        config, renderer = self.config, renderer_of(self.spec)
        clock = Clock(self.reporter)
        with BlockPool(available_cpus(), without_torch=True) as pool:
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
        clock = Clock(self.reporter)
        provenance = {"store_tokenizer": self.identity.digest, "plan": place.plan}
        folder = Path(self.folder.name) / "plan"
        writer = PlanWriter(folder, place.plan, pa.schema([*EXAMPLES, *extra_schema]), provenance)
        units = write_units(examples, self.positions, unit_rows, place, writer, extra_schema, token_text, clock.tell)
        n_examples = sum(unit.n_examples for unit in units)
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


def _held_examples(held: StoreReader | None, plans: Iterable[str]) -> Iterator[pa.Table]:
    """Yield ids and digests of the examples of some plans, a unit at a time."""
    assert held is not None
    tables = PlanTables(held.objects, list(plans))
    for unit in tables.units:
        yield tables.examples(unit, ["id", "digest"])


def count_reasons(reasons: Mapping[str, int]) -> str:
    """Return '2 empty prompt, 1 bad row', most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)
