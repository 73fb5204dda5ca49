"""Which examples an experiment is on: half of the harmful ones to trace, the others and benign ones to measure.

Equal prompts never part: a harmful prompt is on one side with all its examples, and no benign one has a prompt that was
traced. Halves are dealt by a seeded hash of prompts, so they do not depend on the order of the corpus.

Tokens are those of the plan. What the model is to write its own thinking behind is rendered again, from the example's
turns, by the store's template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.analyze.split import Groups, prompt_digests
from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.markers import ThinkMarkers
from cliffstore.corpus.template import Renderer
from cliffstore.errors import ConfigError, StoreError
from cliffstore.model.forced import Line
from cliffstore.records import SEGMENTS, CorpusRow, Message, Segment, SkippedRow
from cliffstore.run.experiment.settings import MOST_TRACED, ExperimentSettings
from cliffstore.schema import Manifest
from cliffstore.store.catalog import Catalog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 512
_CODES = {str(segment): code for code, segment in enumerate(SEGMENTS)}
_TOKENS = """
SELECT t.example, any_value(e.id) AS id, any_value(e.decision) AS decision,
    list(t.token_id ORDER BY t.position) AS token_ids,
    list(CAST(t.segment AS VARCHAR) ORDER BY t.position) AS segments
FROM tokens t JOIN examples e USING (example)
WHERE t.example BETWEEN {first} AND {last} AND list_contains($1, t.example)
GROUP BY t.example ORDER BY t.example
"""


@dataclass(frozen=True, slots=True)
class ChosenExamples:
    """Ordinals, ascending: what is traced, and what is measured."""

    traced: tuple[int, ...]
    harmful: tuple[int, ...]
    benign: tuple[int, ...]

    @property
    def measured(self) -> list[int]:
        return sorted((*self.harmful, *self.benign))


@dataclass(frozen=True, slots=True)
class ExampleLine:
    """An example to measure.

    Attributes
    ----------
    prompt : up to the decision position, with the thinking that the example has
    answer_N : tokens of its response, int64; empty where it has none
    opens : whether `prompt` ends within thinking; `has_thinking` whether it has some
    """

    example: int
    id: str
    prompt: Line
    answer_N: npt.NDArray[np.int64]
    opens: bool
    has_thinking: bool


def choose(catalog: Catalog, settings: ExperimentSettings) -> ChosenExamples:
    """Choose examples.

    Raises
    ------
    ConfigError
        Conditions overlap, or too few examples satisfy one.
    """
    harmful, benign = (_found(catalog, where) for where in (settings.harmful_where, settings.benign_where))
    if both := sorted(set(harmful) & set(benign)):
        raise ConfigError(
            f"{len(both)} examples are harmful and benign at once, such as #{both[0]}: choose --harmful-where and "
            "--benign-where that exclude each other"
        )
    if not benign:
        raise ConfigError(f"no example is left where {settings.benign_where}: choose others with --benign-where")
    groups_N = prompt_digests(harmful.values())
    distinct = _shuffled(np.unique(groups_N), settings.seed)
    if len(distinct) < 2:
        raise ConfigError(
            f"{len(distinct)} prompts are left where {settings.harmful_where}: half of them are traced and half "
            "measured, so two at least are needed; choose others with --harmful-where"
        )
    traced_G = distinct[: len(distinct) // 2]
    is_traced_N = np.isin(groups_N, traced_G)
    ordinals_N = np.array(list(harmful), dtype=np.int64)
    traced = _some(ordinals_N[is_traced_N], groups_N[is_traced_N], MOST_TRACED, settings.seed)
    measured = _some(ordinals_N[~is_traced_N], groups_N[~is_traced_N], settings.limit, settings.seed)
    benign_N, benign_groups_N = np.array(list(benign), dtype=np.int64), prompt_digests(benign.values())
    free_N = ~np.isin(benign_groups_N, traced_G)
    if not free_N.any():
        raise ConfigError("every benign example has a prompt that is traced: choose others with --benign-where")
    others = _some(benign_N[free_N], benign_groups_N[free_N], settings.limit, settings.seed)
    return ChosenExamples(traced, measured, others)


def _found(catalog: Catalog, where: str) -> dict[int, str | None]:
    table = catalog.arrow(f"SELECT e.example, e.prompt FROM examples e WHERE (\n{where}\n) ORDER BY e.example")
    return dict(zip(table["example"].to_pylist(), table["prompt"].to_pylist(), strict=True))


def _shuffled(groups_G: Groups, seed: int) -> Groups:
    return np.random.default_rng([seed, 0]).permutation(groups_G)


def _some(ordinals_N: npt.NDArray[np.int64], groups_N: Groups, most: int, seed: int) -> tuple[int, ...]:
    """Return at most so many examples, whole groups in a seeded order (the last may be cut)."""
    rank = {int(group): at for at, group in enumerate(_shuffled(np.unique(groups_N), seed + 1))}
    order = sorted(range(len(ordinals_N)), key=lambda at: (rank[int(groups_N[at])], int(ordinals_N[at])))
    return tuple(sorted(int(ordinals_N[at]) for at in order[:most]))


def read_lines(catalog: Catalog, ordinals: Sequence[int]) -> Iterator[ExampleLine]:
    """Yield examples as tokens, in the order of their ordinals."""
    for first in range(0, len(ordinals), _AT_ONCE):
        part = list(ordinals[first : first + _AT_ONCE])
        for row in catalog.arrow(_TOKENS.format(first=part[0], last=part[-1]), [part]).to_pylist():
            segments_T = np.array([_CODES[name] for name in row["segments"]], dtype=np.uint8)
            token_ids_T, end = np.array(row["token_ids"], dtype=np.int64), row["decision"] + 1
            is_answer_N = segments_T[end:] == _CODES[Segment.RESPONSE]
            yield ExampleLine(
                example=row["example"],
                id=row["id"],
                prompt=Line(token_ids_T[:end], segments_T[:end], row["decision"]),
                answer_N=token_ids_T[end:][is_answer_N],
                opens=SEGMENTS[segments_T[end - 1]] == Segment.THINK_OPEN,
                has_thinking=bool((segments_T == _CODES[Segment.THINK]).any()),
            )


def with_text(
    catalog: Catalog, lines: Sequence[ExampleLine], column: str, tokenizer: PreTrainedTokenizerBase
) -> list[ExampleLine]:
    """Return examples whose answer is the text of a column; empty where it has none.

    Raises
    ------
    ConfigError
        There is no such column, or it is no text.
    """
    there = set(catalog.arrow("SELECT * FROM examples LIMIT 0").column_names)
    if column not in there:
        raise ConfigError(f"examples have no column {column!r} for --benign-text: they have {', '.join(sorted(there))}")
    quoted = '"' + column.replace('"', '""') + '"'
    ordinals = [line.example for line in lines]
    statement = f"SELECT example, {quoted} AS said FROM examples WHERE list_contains($1, example)"
    table = catalog.arrow(statement, [ordinals])
    texts = dict(zip(table["example"].to_pylist(), table["said"].to_pylist(), strict=True))
    if wrong := [text for text in texts.values() if not isinstance(text, str | None)]:
        raise ConfigError(f"column {column!r} for --benign-text is no text: it holds a {type(wrong[0]).__name__}")
    found = []
    for line in lines:
        text = texts.get(line.example) or ""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text.strip() else []
        found.append(replace(line, answer_N=np.array(ids, dtype=np.int64)))
    return found


def renderer_of(manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """Return what renders as the store's examples were rendered, up to where the model goes on."""
    held = manifest.tokenizer
    own = Renderer(tokenizer, template_date=held.template_date, to_answer=True)
    if own.digest == held.template_digest:
        return own
    markers = ThinkMarkers(held.think_open, held.think_close)
    return Renderer(tokenizer, markers=markers, template_date=held.template_date, to_answer=True)


def without_thinking(catalog: Catalog, lines: Sequence[ExampleLine], renderer: Renderer) -> list[ExampleLine]:
    """Return examples whose prompt ends where the model begins to think.

    Raises
    ------
    StoreError
        The template does not take an example that it took once.
    """
    ordinals = [line.example for line in lines]
    columns = set(catalog.arrow("SELECT * FROM examples LIMIT 0").column_names)
    messages = "messages" if "messages" in columns else "NULL"
    rows = catalog.arrow(
        f"SELECT id, prompt, system, {messages} AS messages FROM examples WHERE list_contains($1, example) "
        "ORDER BY example", [ordinals]
    ).to_pylist()  # fmt: skip
    located = [LocatedRow(CorpusRow(row["id"], row["prompt"], _turns(row), row["system"]), row["id"]) for row in rows]
    found = []
    for line, example in zip(lines, renderer.render(located)[0], strict=True):
        if isinstance(example, SkippedRow):
            raise StoreError(f"example {line.id!r} cannot be rendered without its thinking: {example.detail}")
        prompt = Line(example.token_ids.astype(np.int64), example.segments, example.decision)
        opens = SEGMENTS[example.segments[-1]] == Segment.THINK_OPEN
        found.append(replace(line, prompt=prompt, opens=opens, has_thinking=False))
    return found


def _turns(row: dict[str, object]) -> tuple[Message, ...]:
    messages = row["messages"]
    if messages:
        assert isinstance(messages, list)
        turns = tuple(Message(str(one["role"]), str(one["content"])) for one in messages)
        return turns[:-1] if turns[-1].role == "assistant" else turns
    system = (Message("system", str(row["system"])),) if row["system"] else ()
    return (*system, Message("user", str(row["prompt"])))
