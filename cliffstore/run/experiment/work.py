"""The pieces of an experiment, and what they become: which conditions are there, and the document that vouches for all.

A piece is what each example gave under one condition. Its name is a digest of all that bears on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cliffstore import __version__
from cliffstore.errors import DamagedStoreError, StoreError
from cliffstore.model.identity import ModelSource
from cliffstore.run.experiment.conditions import for_thinking, interventions_of
from cliffstore.run.experiment.examples import ChosenExamples, ExampleLine
from cliffstore.run.experiment.settings import CHOSEN, Condition, ExperimentSettings, Thinking
from cliffstore.run.experiment.table import PIECE, Found
from cliffstore.run.heads.pieces import digest_of
from cliffstore.run.heads.results import spell_heads
from cliffstore.schema import EXPERIMENTS, ExperimentDocument, HeadsDocument, ProbeDocument
from cliffstore.store import documents, layout, tables
from cliffstore.store.catalog import Catalog


@dataclass(slots=True)
class Work:
    """All conditions and their pieces."""

    catalog: Catalog
    settings: ExperimentSettings
    conditions: Sequence[Condition]
    ways: Sequence[Thinking]
    facts: Mapping[str, object]

    @property
    def all(self) -> list[tuple[Thinking, Condition]]:
        return [(way, one) for way in self.ways for one in for_thinking(self.conditions, way)]

    @property
    def digest(self) -> str:
        settings = self.settings
        bears = {"resamples": settings.resamples, "level": settings.level, "seed": settings.seed}
        named = [(way, one.kind, one.share, one.number, self.key_of(way, one)) for way, one in self.all]
        return digest_of({**bears, "conditions": named})

    def key_of(self, way: Thinking, condition: Condition) -> str:
        """Return the key of a piece: a digest of all that bears on what is in it."""
        changes = interventions_of(condition, self.settings)
        bears = {
            **self.facts,
            "thinking": way,
            "interventions": None if changes is None else changes.digest,
            "generates": condition.generates,
        }
        return layout.experiment_piece(self.settings.name, digest_of(bears)[:32])

    def pending(self) -> list[tuple[Thinking, Condition]]:
        """Return what has no piece yet."""
        there = set(self.catalog.reader.objects.list(layout.experiment_pieces(self.settings.name)))
        return [(way, one) for way, one in self.all if self.key_of(way, one) not in there]

    def found(self) -> list[Found]:
        """Return what all pieces say. A damaged one is removed, and told."""
        objects, found = self.catalog.reader.objects, []
        for way, one in self.all:
            key = self.key_of(way, one)
            try:
                table = tables.read(objects, key).cast(PIECE)
            except DamagedStoreError as error:
                objects.delete(key)
                raise StoreError(f"{key} {error.problem} and is removed: run again, with --replace") from None
            found.append(Found(way, one, table))
        return found

    def settle(self) -> dict[str, str]:
        """Remove pieces of other settings; return the digest of the bytes of each that stays, by its name."""
        objects = self.catalog.reader.objects
        own = {self.key_of(way, one) for way, one in self.all}
        for key in set(objects.list(layout.experiment_pieces(self.settings.name))) - own:
            objects.delete(key)
        return {layout.stem(key): hashlib.sha256(objects.get(key)).hexdigest() for key in sorted(own)}


def facts_of(
    probe: ProbeDocument,
    source: ModelSource,
    chosen: ChosenExamples,
    settings: ExperimentSettings,
    openers: Sequence[Mapping[str, int]],
    lines: Sequence[ExampleLine],
) -> dict[str, object]:
    """Return what bears on every piece."""
    identity = source.identity
    return {
        "probe": probe.digest,
        "model": [identity.weights_digest or identity.revision, identity.config_digest, probe.dtype],
        "adapter": identity.adapter.digest if identity.adapter is not None else None,
        "examples": chosen.measured,
        "openers": [sorted(set(one.values())) for one in openers],
        "text": digest_of([line.answer_N.tolist() for line in lines]),
        "new_tokens": settings.new_tokens,
        "thinking_tokens": settings.thinking_tokens,
        "batch_size": settings.batch_size,
    }


def write(
    rows: list[dict],
    settings: ExperimentSettings,
    work: Work,
    probe: ProbeDocument,
    trace: HeadsDocument,
    chosen: ChosenExamples,
    openers: Sequence[Mapping[str, int]],
    source: ModelSource,
    ways: Sequence[Thinking],
    lines: Sequence[ExampleLine],
) -> ExperimentDocument:
    """Write table, then document."""
    name, objects = settings.name, work.catalog.reader.objects
    documents.delete(objects, layout.experiment_document(name))
    provenance = {"name": name, "probe": probe.name, "probe_digest": probe.digest, "trace": trace.name}
    digest = tables.write(objects, layout.experiment_table(name), pa.Table.from_pylist(rows, schema=EXPERIMENTS),
                          provenance)  # fmt: skip
    has_text = any(len(line.answer_N) for line in lines)
    document = ExperimentDocument(
        name=name,
        inputs=work.digest,
        probe=probe.name,
        probe_digest=probe.digest,
        model=source.identity,
        dtype=probe.dtype,
        trace=trace.name,
        trace_digest=trace.digest,
        harmful_where=settings.harmful_where,
        benign_where=settings.benign_where,
        traced=len(chosen.traced) if settings.trace is None else trace.examples,
        harmful=len(chosen.harmful),
        benign=len(chosen.benign),
        thinking=list(ways),
        positions=settings.positions,
        scale=settings.scale,
        keep_norm=settings.keep_norm,
        heads={f"{one.share:g}": spell_heads(one.heads).split(",") for one in work.conditions if one.kind == CHOSEN},
        n_heads=source.identity.n_layers * source.identity.n_heads,
        random=settings.random,
        random_generated=min(settings.random_generate, settings.random),
        refusal_openers=dict(openers[0]),
        compliance_openers=dict(openers[1]),
        benign_text=settings.benign_text if has_text else None,
        new_tokens=settings.new_tokens,
        thinking_tokens=settings.thinking_tokens,
        resamples=settings.resamples,
        level=settings.level,
        seed=settings.seed,
        pieces=work.settle(),
        digest=digest,
        cliffstore_version=__version__,
    )
    documents.put(objects, document)
    return document
