"""Drafts of a corpus to rendered rows, in this process or in others: what a `BlockPool` maps over blocks."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cliffstore.corpus.columns import Settled
from cliffstore.corpus.drafts import corpus_rows
from cliffstore.corpus.template import RenderCounts, Renderer, ThinkMarkers
from cliffstore.model.identity import ModelSource
from cliffstore.model.loader import load_tokenizer
from cliffstore.plan.positions import Positions
from cliffstore.plan.sorting import RenderedRows, lay_out

_renderers: list[tuple[RenderSpec, Renderer]] = []
"""The renderer of this process, at most one."""


@dataclass(frozen=True, slots=True)
class RenderSpec:
    """What makes a renderer, in any process."""

    source: ModelSource
    markers: ThinkMarkers | None
    template_date: str
    max_tokens: int | None

    def make(self) -> Renderer:
        """Load the tokenizer. Raises `ModelError`, `ConfigError` where it cannot be used."""
        return Renderer(
            load_tokenizer(self.source),
            markers=self.markers,
            template_date=self.template_date,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True, slots=True)
class RenderTask:
    """Renders blocks of drafts."""

    spec: RenderSpec
    positions: Positions
    settled: Settled

    def __call__(self, drafts: pa.Table) -> tuple[RenderedRows, RenderCounts]:
        rendered, counts = renderer_of(self.spec).render(corpus_rows(drafts, self.settled))
        return lay_out(rendered, self.positions), counts


def renderer_of(spec: RenderSpec) -> Renderer:
    """Return the renderer that a spec means, made once in a process."""
    if not _renderers or _renderers[0][0] != spec:
        _renderers[:] = [(spec, spec.make())]
    return _renderers[0][1]


def forget_renderer() -> None:
    """Let the next renderer be made anew."""
    _renderers.clear()
