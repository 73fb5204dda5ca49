"""`cliffstore heads attention`: where chosen heads look, by segment, over the examples of a store.

Tokens come from the store, so nothing is tokenised again; the model is found by the identity that the store holds, and
believed only where it is that one. Examples go through side by side, those of like length together, cut behind the last
position that looks. What is kept of an example is G numbers a head.

A long segment gathers much attention by its length alone. So the mass also comes per token: divided by the segment's
part of the tokens that the head sees, so that 1 is what attention spread evenly would give.

Legend: E examples, H heads, G segments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.analyze.clipping import mean_interval
from cliffstore.analyze.places import Place, parse_places
from cliffstore.errors import ConfigError, QueryError, StoreError
from cliffstore.records import SEGMENTS
from cliffstore.run.heads.prompts import check_lengths
from cliffstore.run.origins import Origins, source_of
from cliffstore.run.progress import Piece, Reporter
from cliffstore.run.queries import StoreQueries
from cliffstore.schema import CaptureDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader

if TYPE_CHECKING:
    from cliffstore.model.attention_mass import AttentionMass
    from cliffstore.model.attention_rows import Head, Line

SINK = "sink"
"""In the place of a segment: what a model with attention sinks pays to no token."""
ATTENTION = pa.schema(
    [
        *(pa.field(name, pa.int32()) for name in ("layer", "head")),
        pa.field("segment", pa.string()),
        pa.field("n", pa.int32()),
        *(pa.field(name, pa.float64()) for name in ("mass", "mass_low", "mass_high", "share")),
        *(pa.field(name, pa.float64()) for name in ("per_token", "per_token_low", "per_token_high")),
    ]
)
"""Means over the n examples in which the head sees the segment, with 95 % bootstrap intervals over these. `share` is
the segment's part of the tokens seen; `per_token` is the mean of mass / share."""

_HEAD = re.compile(r"\s*([0-9]{1,6}):([0-9]{1,6})\s*")
_EXAMPLES = 512
_PASS_TOKENS = 2_048
_SINK_FROM = 1e-4
_TOKENS = """
SELECT t.example, any_value(e.decision) AS decision, list(t.token_id ORDER BY t.position) AS token_ids,
    list(CAST(t.segment AS VARCHAR) ORDER BY t.position) AS segments
FROM tokens t JOIN examples e USING (example)
WHERE t.example BETWEEN {first} AND {last} AND e.example BETWEEN {first} AND {last} AND list_contains($1, t.example)
GROUP BY t.example ORDER BY t.example
"""


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """Where heads look.

    Attributes
    ----------
    examples : that were measured
    without_position : examples that have none of the positions, and are left out
    table : columns of `ATTENTION`, by head in the order asked for, then segment
    """

    model: str
    positions: str
    examples: int
    without_position: int
    table: pa.Table


class StoreAttention(StoreQueries):
    """The part of `Store` that looks at attention."""

    def attention(
        self,
        heads: str | Sequence[tuple[int, int]],
        *,
        positions: str = "decision",
        where: str | None = None,
        limit: int | None = None,
        model: str | None = None,
        **origins: object,
    ) -> AttentionReport:
        """Return how much attention heads pay to each segment, from chosen positions.

        Parameters
        ----------
        heads : `3:1,5:0`, or pairs of layer and head; or a SQL statement with the columns layer and head
        positions : as for `fit_probe`: decision, distances from it such as -8..0, segments
        where : SQL condition over examples (`e`)
        limit : the first examples only
        model : its alias, where the store has several
        origins : fields of `Origins`: where the model and its adapter are, and the device

        Raises
        ------
        ConfigError, ModelError, StoreError, QueryError
            Attention cannot be looked at as asked.
        """
        chosen = read_heads(self._own, heads) if isinstance(heads, str) else tuple(heads)
        places = parse_places(positions)
        capture = _capture_of(self.reader, model)
        found = Origins(**origins)  # type: ignore[arg-type]
        return _measure(self._own, capture, chosen, places, where, limit, found, self._reporter)


def read_heads(catalog: Catalog, text: str) -> tuple[Head, ...]:
    """Return the heads that `3:1,5:0` or a SQL statement names, each once, in the order given.

    Raises
    ------
    ConfigError
        It names none.
    QueryError
        The statement is malformed, or has not the columns layer and head.
    """
    matched = [_HEAD.fullmatch(part) for part in text.split(",")]
    if all(matched):
        return tuple(dict.fromkeys((int(one[1]), int(one[2])) for one in matched if one))
    if not re.match(r"\s*(?:select|with|from)\b", text, re.IGNORECASE):
        raise ConfigError(
            f"--heads {text!r}: write LAYER:HEAD, several joined by commas, such as 3:1,5:0; or a SQL statement, such "
            'as "SELECT layer, head FROM heads"'
        )
    table = catalog.arrow(text)
    if not {"layer", "head"} <= set(table.column_names):
        raise QueryError(f"--heads: the statement must give the columns layer and head, not {table.column_names}")
    for name in ("layer", "head"):
        if not (pa.types.is_integer(table[name].type) or pa.types.is_null(table[name].type)):
            raise QueryError(
                f"--heads: the column {name} of the statement must hold whole numbers, not {table[name].type}"
            )
    pairs = zip(table["layer"].to_pylist(), table["head"].to_pylist(), strict=True)
    found = tuple(dict.fromkeys((layer, head) for layer, head in pairs if None not in (layer, head)))
    if not found:
        raise ConfigError("--heads: the statement gives no head")
    return found


def _capture_of(reader: StoreReader, alias: str | None) -> CaptureDocument:
    captures = {one.alias: one for one in reader.captures()}
    if not captures:
        raise StoreError(f"store {reader.url} has no capture, so its model is not known: run `cliffstore extract`")
    if alias is None and len(captures) > 1:
        raise StoreError(f"say which model with --model-alias; the store has: {', '.join(sorted(captures))}")
    if alias is not None and alias not in captures:
        raise StoreError(f"store {reader.url} has no model {alias!r}; it has: {', '.join(sorted(captures))}")
    capture = captures[alias] if alias is not None else next(iter(captures.values()))
    if capture.interventions is not None:
        raise StoreError(
            f"model {capture.alias!r} of store {reader.url} was changed while it ran, and attention is read of models "
            "as they are: choose another with --model-alias"
        )
    return capture


def _measure(
    catalog: Catalog,
    capture: CaptureDocument,
    heads: tuple[Head, ...],
    places: tuple[Place, ...],
    where: str | None,
    limit: int | None,
    origins: Origins,
    reporter: Reporter,
) -> AttentionReport:
    from cliffstore.model.attention_mass import AttentionMass, check_heads
    from cliffstore.model.loader import load_model

    identity = capture.model
    check_heads(heads, identity.n_layers, identity.n_heads)
    condition = f" WHERE (\n{where}\n)" if where else ""
    count = f" LIMIT {int(limit)}" if limit is not None else ""
    ordinals = catalog.arrow(f"SELECT e.example FROM examples e{condition} ORDER BY e.example{count}")
    examples = ordinals["example"].to_pylist()
    if not examples:
        raise StoreError(f"no example satisfies {where}" if where else f"store {catalog.reader.url} has no examples")
    source = source_of(capture, origins, reporter)
    reporter.stage(f"attention: {len(heads)} heads of {identity.name}, {len(examples)} examples")
    measured = AttentionMass(
        load_model(source, capture.dtype, origins.device), heads, identity.n_layers, identity.n_heads
    )
    check_lengths(catalog, examples, measured.whole_below)
    masses: list[npt.NDArray[np.float32]] = []
    shares: list[npt.NDArray[np.float32]] = []
    without = 0
    reporter.begin("attention", len(examples))
    try:
        for first in range(0, len(examples), _EXAMPLES):
            lines = list(_lines(catalog, examples[first : first + _EXAMPLES], places))
            there = [line for line in lines if line is not None]
            without += len(lines) - len(there)
            if there and not masses:
                measured.check(max(there, key=lambda line: len(line.token_ids_T)))
            found = _side_by_side(measured, there, lambda: reporter.advance(Piece(noun="examples")))
            masses += [mass_HG for mass_HG, _ in found]
            shares += [share_HG for _, share_HG in found]
            for _ in range(len(lines) - len(there)):
                reporter.advance(Piece(noun="examples"))
    finally:
        reporter.end()
    said = ",".join(place.name for place in places)
    if not masses:
        raise StoreError(f"none of {len(examples)} examples has a position {said}")
    if without:
        reporter.notice(f"{without} of {len(examples)} examples have no position {said} and are left out")
    table = _table(heads, np.stack(masses), np.stack(shares))
    return AttentionReport(identity.name, said, len(masses), without, table)


def _lines(catalog: Catalog, ordinals: list[int], places: tuple[Place, ...]) -> Iterator[Line | None]:
    """Yield the examples, cut behind the last position that looks; None for one in which none does."""
    from cliffstore.model.attention_rows import Line

    codes = {str(segment): code for code, segment in enumerate(SEGMENTS)}
    statement = _TOKENS.format(first=ordinals[0], last=ordinals[-1])
    for row in catalog.arrow(statement, [ordinals]).to_pylist():
        segments_T = np.array([codes[name] for name in row["segments"]], dtype=np.uint8)
        looks_T = np.zeros(len(segments_T), dtype=bool)
        for place in places:
            if place.segment is not None:
                looks_T |= segments_T == codes[place.segment]
            elif 0 <= (position := row["decision"] + (place.offset or 0)) < len(segments_T):
                looks_T[position] = True
        queries_Q = np.flatnonzero(looks_T)
        if not len(queries_Q):
            yield None
            continue
        end = int(queries_Q[-1]) + 1
        yield Line(np.array(row["token_ids"][:end], dtype=np.int64), segments_T[:end], queries_Q)


def _side_by_side(
    measured: AttentionMass, lines: Sequence[Line], advance: Callable[[], object]
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Return mass and share of each line, both [H, G], in the order of the lines."""
    found: dict[int, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
    waiting = sorted(range(len(lines)), key=lambda n: len(lines[n].token_ids_T))
    while waiting:
        longest = len(lines[waiting[-1]].token_ids_T)
        taken = waiting[-max(_PASS_TOKENS // longest, 1) :]
        del waiting[-len(taken) :]
        for n, one in zip(taken, measured.measure([lines[n] for n in taken]), strict=True):
            found[n] = (one.mass_HG, one.share_HG)
            advance()
    return [found[n] for n in range(len(lines))]


def _table(heads: Sequence[Head], mass_EHG: npt.NDArray[np.float32], share_EHG: npt.NDArray[np.float32]) -> pa.Table:
    rows: list[dict[str, object]] = []
    for h, (layer, head) in enumerate(heads):
        for g, segment in enumerate(SEGMENTS):
            seen_E = share_EHG[:, h, g] > 0
            if not seen_E.any():
                continue
            mass_E = mass_EHG[seen_E, h, g].astype(np.float64)
            share_E = share_EHG[seen_E, h, g].astype(np.float64)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "segment": str(segment),
                    "n": int(seen_E.sum()),
                    **dict(zip(("mass", "mass_low", "mass_high"), mean_interval(mass_E), strict=True)),
                    "share": float(share_E.mean()),
                    **dict(
                        zip(
                            ("per_token", "per_token_low", "per_token_high"),
                            mean_interval(mass_E / share_E),
                            strict=True,
                        )
                    ),
                }
            )
        left_E = 1 - mass_EHG[:, h].sum(axis=1).astype(np.float64)
        if left_E.mean() > _SINK_FROM:
            of_sink = dict(zip(("mass", "mass_low", "mass_high"), mean_interval(left_E), strict=True))
            rows.append({"layer": layer, "head": head, "segment": SINK, "n": len(left_E), **of_sink})
    return pa.Table.from_pylist(rows, schema=ATTENTION)
