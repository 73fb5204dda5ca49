"""Corpus to plan: read, render, plan, write the plan's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from cliffstore import __version__
from cliffstore.config import ExtractConfig
from cliffstore.corpus.sources import read_corpus
from cliffstore.corpus.template import Renderer, ThinkMarkers, tokenizer_digest
from cliffstore.errors import ConfigError, CorpusError, StoreError
from cliffstore.model.identity import ModelSource
from cliffstore.model.loader import load_tokenizer
from cliffstore.plan.positions import Positions, parse_positions
from cliffstore.plan.tables import examples_table, skipped_table, tokens_table, units_table
from cliffstore.plan.units import CHUNK_ROWS, Plan, longest_example, make_plan, whole_chunks
from cliffstore.records import RenderedExample, SkippedRow
from cliffstore.run.progress import Reporter
from cliffstore.schema import Chunking, Manifest, PlanCounts, PlanDocument, TokenizerIdentity
from cliffstore.store import layout, tables
from cliffstore.store.objects import ObjectStore
from cliffstore.store.writer import UnitTables, commit_plan, create_manifest, write_plan_tables


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what is needed to write it."""

    plan: Plan
    tokenizer: TokenizerIdentity
    token_text: dict[int, str]
    extra_schema: pa.Schema


def plan_corpus(
    config: ExtractConfig, source: ModelSource, manifest: Manifest | None, bytes_per_row: int, reporter: Reporter
) -> Planned:
    """Read the corpus, render it and plan it. Nothing is written.

    Raises
    ------
    CorpusError, ModelError, ConfigError
        The input is wrong.
    StoreError
        The store was made with another tokenizer, template or size of units.
    """
    positions = parse_positions(config.positions)
    tokenizer = load_tokenizer(source)
    renderer = Renderer(
        tokenizer,
        markers=_markers(config),
        template_date=config.template_date,
        max_tokens=config.max_tokens or source.context,
    )
    identity = TokenizerIdentity(
        name=source.identity.name,
        digest=tokenizer_digest(tokenizer),
        template_digest=renderer.digest,
        think_open=renderer.markers.open,
        think_close=renderer.markers.close,
        template_date=config.template_date,
    )
    if manifest is not None:
        check_tokenizer(config.store, manifest, identity)
    corpus = read_corpus(
        config.corpus,
        mapping=config.map,
        where=config.where,
        limit=config.limit,
        storage_options=config.storage_options,
    )
    rendered = [renderer.render(located.row, located.location) for located in corpus.rows]
    examples = [one for one in rendered if isinstance(one, RenderedExample)]
    skipped = [*corpus.skipped, *(one for one in rendered if isinstance(one, SkippedRow))]
    for notice in (*corpus.notices, *renderer.notices):
        reporter.notice(notice)
    unit_rows = _unit_rows(config, manifest, examples, positions)
    plan = _plan(config, examples, skipped, positions, identity, unit_rows, bytes_per_row)
    if not plan.units:
        raise CorpusError(f"every row of the corpus was skipped: {count_reasons(plan.skipped)}")
    if plan.skipped:
        reporter.notice(f"{len(plan.skipped)} rows skipped: {count_reasons(plan.skipped)} (SELECT * FROM skipped)")
    distinct = sorted({int(token) for example in examples for token in example.token_ids})
    text = dict(zip(distinct, tokenizer.batch_decode([[token] for token in distinct]), strict=True))
    return Planned(plan, identity, text, corpus.extra_schema)


def check_tokenizer(url: str, manifest: Manifest, identity: TokenizerIdentity) -> None:
    """Raise `StoreError` unless the store was made with the same tokenizer and template."""
    held = manifest.tokenizer
    if held.digest != identity.digest:
        raise StoreError(
            f"store {url} was made with another tokenizer (that of {held.name}), not that of {identity.name}: "
            "give another --store"
        )
    if held.template_digest != identity.template_digest:
        raise StoreError(
            f"store {url} was made with another chat template, thinking markers or template date "
            f"(markers {held.think_open!r} {held.think_close!r}, date {held.template_date}): "
            "give the same, or another --store"
        )


def check_plan(url: str, plan: Plan, held: Sequence[PlanDocument]) -> None:
    """Raise `StoreError` where the store holds another plan."""
    if held and all(document.plan != plan.name for document in held):
        raise StoreError(
            f"store {url} holds another corpus or other settings ({held[0].plan}: {held[0].counts.examples} "
            f"examples of {', '.join(held[0].sources)}): give another --store"
        )


def write_plan(objects: ObjectStore, planned: Planned, manifest: Manifest | None, held: Sequence[PlanDocument]) -> None:
    """Begin the store where there is none, and write the plan unless it is there already."""
    plan = planned.plan
    if any(document.plan == plan.name for document in held):
        return
    if manifest is None:
        create_manifest(objects, _new_manifest(planned))
    provenance = {"store_tokenizer": planned.tokenizer.digest, "plan": plan.name}
    unit_tables = [
        UnitTables(
            unit.number,
            examples_table(unit, planned.extra_schema),
            tokens_table(unit, lambda ids: [planned.token_text[token] for token in ids]),
        )
        for unit in plan.units
    ]
    written = write_plan_tables(objects, plan.name, unit_tables, provenance)
    for key, table in (
        (layout.units_table(plan.name), units_table(plan)),
        (layout.skipped_table(plan.name), skipped_table(plan.skipped)),
    ):
        written[layout.path_in_plan(key)] = tables.write(objects, key, table, provenance)
    counts = PlanCounts(
        examples=plan.n_examples,
        tokens=plan.n_tokens,
        rows=plan.n_rows,
        units=len(plan.units),
        skipped=len(plan.skipped),
    )
    sources = sorted({planned.example.row.source or "" for unit in plan.units for planned in unit.examples})
    commit_plan(
        objects,
        PlanDocument(
            plan=plan.name,
            digest=plan.digest,
            counts=counts,
            settings=dict(plan.settings),
            sources=sources,
            tables=written,
            cliffstore_version=__version__,
        ),
    )


def count_reasons(skipped: Sequence[SkippedRow]) -> str:
    """Return '2 empty prompt, 1 bad row', most frequent first."""
    counts: dict[str, int] = {}
    for row in skipped:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def _markers(config: ExtractConfig) -> ThinkMarkers | None:
    if config.think_open is None and config.think_close is None:
        return None
    if config.think_open is None or config.think_close is None:
        raise ConfigError("give --think-open and --think-close together")
    return ThinkMarkers(config.think_open, config.think_close)


def _unit_rows(
    config: ExtractConfig, manifest: Manifest | None, examples: Sequence[RenderedExample], positions: Positions
) -> int | None:
    """Return the rows of a unit where the store or the user fixes them.

    What the user asks for is rounded before it is compared with the store, so that the command that began a store
    also goes on with it.
    """
    asked = None
    if config.unit_rows is not None:
        asked = whole_chunks(max(config.unit_rows, longest_example(examples, positions)))
    if manifest is None:
        return asked
    held = manifest.chunking.unit_rows
    if asked not in (None, held):
        raise StoreError(f"store {config.store} has units of {held} rows: leave --unit-rows out")
    return held


def _plan(
    config: ExtractConfig,
    examples: Sequence[RenderedExample],
    skipped: Sequence[SkippedRow],
    positions: Positions,
    identity: TokenizerIdentity,
    unit_rows: int | None,
    bytes_per_row: int,
) -> Plan:
    try:
        return make_plan(
            examples,
            skipped,
            positions=positions,
            bytes_per_row=bytes_per_row,
            identity={"tokenizer": identity.digest, "template": identity.template_digest},
            settings={"max_tokens": config.max_tokens},
            unit_rows=unit_rows,
        )
    except ValueError as error:
        raise StoreError(f"store {config.store}: {error}; give another --store, or --max-tokens") from None


def _new_manifest(planned: Planned) -> Manifest:
    from datetime import UTC, datetime

    return Manifest(
        cliffstore_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tokenizer=planned.tokenizer,
        chunking=Chunking(chunk_rows=CHUNK_ROWS, unit_rows=planned.plan.unit_rows),
    )
