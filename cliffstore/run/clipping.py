"""`cliffstore clip`: a corpus of thinking cut to fractions, and what a probe says of it by fraction kept.

The corpus is extracted like any other, with `--append` into the same store: rows of one example share all tokens up to
their cut, so they come to lie in one unit, and the tokens that they share are computed once.

Whoever chooses among the examples of a store with clipped ones (a probe's `--where`, a selection's) says
`kept IS NULL` to choose among the originals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cliffstore.analyze.clipping import check_keep, cut, mean_interval, token_ends
from cliffstore.errors import ConfigError, ProbeError, StoreError
from cliffstore.run.row_files import SUFFIXES, RowWriter, without_answer
from cliffstore.run.saving import saving
from cliffstore.schema import MESSAGES
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe

CLIPPED = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "prompt", "system")),
        pa.field("messages", MESSAGES),
        *(pa.field(name, pa.string()) for name in ("thinking", "response", "label", "source", "clipped_from")),
        pa.field("kept", pa.float64()),
    ]
)
"""Columns of the corpus. `kept` is a fraction, 0 to 1, of the thinking of the example `clipped_from`."""

_EXAMPLES = 500
_ORDINALS = "SELECT example, thinking IS NOT NULL AS has FROM examples WHERE {where} ORDER BY example"
_TEXTS = """
SELECT e.id, e.prompt, e.system, {messages} AS messages, e.thinking, e.response, e.label, e.source, t.pieces
FROM examples e LEFT JOIN (
    SELECT example, list(token ORDER BY position) AS pieces FROM tokens
    WHERE segment = 'think' AND example BETWEEN {first} AND {last} GROUP BY example
) t USING (example)
WHERE e.example BETWEEN {first} AND {last} AND list_contains($1, e.example) ORDER BY e.example
"""
_SCORES = """
SELECT e.kept, s.score FROM (SELECT * FROM examples WHERE kept IS NOT NULL AND clipped_from IS NOT NULL AND ({where})) e
LEFT JOIN (SELECT example, score FROM scores WHERE probe = $1 AND to_decision = 0) s USING (example)
ORDER BY e.kept DESC, e.clipped_from, e.id
"""


@dataclass(frozen=True, slots=True)
class ClipReport:
    """What was written. `by_words` examples are cut between words; `without_thinking` ones are left out."""

    path: str
    examples: int
    rows: int
    without_thinking: int
    by_words: int


@dataclass(frozen=True, slots=True)
class KeptFigures:
    """Scores at the decision position where a fraction of the thinking is kept, with 95 % bootstrap intervals.

    Attributes
    ----------
    kept : fraction, 0 to 1
    n : examples
    logit, probability : means over examples
    """

    kept: float
    n: int
    logit: float
    logit_low: float
    logit_high: float
    probability: float
    probability_low: float
    probability_high: float


def clip_corpus(
    catalog: Catalog,
    output: str,
    keep: tuple[float, ...],
    where: str | None,
    options: Mapping[str, object],
    notice: Callable[[str], object],
) -> ClipReport:
    """Write a corpus with one row for each example that has thinking, and each percentage of it that is kept.

    A row keeps the response, though it followed all of the thinking: into which tokens the white space before an answer
    falls may depend on what follows, and so may the score at the decision position. Where only positions before it are
    stored (`--positions think,decision`), it is not computed. A row with 0 % has no thinking, and hence no marks of
    thinking, unless the chat template opens it by itself. Examples that were clipped before are left out.

    Parameters
    ----------
    output : path or URL that ends in `.jsonl` or `.parquet`; it takes its place once it is whole
    options : storage options of `output`

    Raises
    ------
    ConfigError
        `keep` or the name of the file cannot be used.
    QueryError
        `where` is malformed, or the file cannot be written.
    StoreError
        No example has thinking.
    """
    keep = check_keep(keep)
    if not output.lower().endswith(SUFFIXES):
        raise ConfigError(f"{output}: a clipped corpus is written to a file that ends in {' or '.join(SUFFIXES)}")
    columns = _columns(catalog)
    condition = f"({where})" if where else "true"
    if "clipped_from" in columns:
        condition += " AND clipped_from IS NULL"
    found = catalog.arrow(_ORDINALS.format(where=condition))
    ordinals = [row["example"] for row in found.to_pylist() if row["has"]]
    without = found.num_rows - len(ordinals)
    if not ordinals:
        chosen_from = f" where {where}" if where else ""
        raise StoreError(f"none of {found.num_rows} examples{chosen_from} has thinking to clip")
    if without:
        notice(f"{without} of {found.num_rows} examples have no thinking and are left out")
    by_words = unanswered = 0
    with saving(output, options) as sink, RowWriter(output, sink, CLIPPED) as writer:
        for first in range(0, len(ordinals), _EXAMPLES):
            rows: list[dict[str, object]] = []
            for example in _texts(catalog, ordinals[first : first + _EXAMPLES], has_messages="messages" in columns):
                ends = token_ends(example["thinking"], example["pieces"] or [])
                ends = ends or None
                by_words += ends is None
                unanswered += example["response"] is None
                rows += [_row(example, ends, percent) for percent in keep]
            writer.add(rows)
    if by_words:
        notice(f"{by_words} examples are cut between words: the texts of their tokens are not found in their thinking")
    if unanswered and 0 in keep:
        notice(
            f"{unanswered} examples have no response: where the chat template opens the thinking by itself, their "
            "rows with 0 % of it end where it opens"
        )
    return ClipReport(output, len(ordinals), len(ordinals) * len(keep), without, by_words)


def clip_figures(
    catalog: Catalog, probe: str, where: str | None, notice: Callable[[str], object]
) -> tuple[KeptFigures, ...]:
    """Return the scores of clipped examples at the decision position, by fraction kept, the largest first.

    Intervals are over resamples of examples, with a fixed seed.

    Raises
    ------
    ProbeError
        There is no such probe, or it has no score of a clipped example.
    StoreError
        The store has no clipped examples.
    QueryError
        `where` is malformed.
    """
    from scipy.special import expit

    url = catalog.reader.url
    read_probe(catalog.reader.objects, probe)
    if not {"kept", "clipped_from"} <= _columns(catalog):
        raise StoreError(
            f"store {url} has no clipped examples: write them with `cliffstore clip make {url} -o clipped.jsonl`, and "
            "run `cliffstore extract clipped.jsonl --append`"
        )
    table = catalog.arrow(_SCORES.format(where=where or "true"), [probe])
    unscored = table["score"].null_count
    if unscored == table.num_rows:
        raise ProbeError(
            f"probe {probe!r} has no score of {table.num_rows} clipped examples: run `cliffstore score {url} "
            f"--probe {probe}`"
            if unscored
            else f"no clipped example satisfies {where}"
        )
    if unscored:
        notice(f"{unscored} of {table.num_rows} clipped examples have no score at the decision position yet")
    table = table.drop_null()
    kept_N = table["kept"].to_numpy().astype(np.float64)
    logit_N = table["score"].to_numpy().astype(np.float64)
    figures = []
    for kept in sorted(set(kept_N.tolist()), reverse=True):
        chosen_N = logit_N[kept_N == kept]
        figures.append(
            KeptFigures(kept, len(chosen_N), *mean_interval(chosen_N), *mean_interval(np.asarray(expit(chosen_N))))
        )
    return tuple(figures)


def _columns(catalog: Catalog) -> set[str]:
    return set(catalog.arrow("SELECT * FROM examples LIMIT 0").column_names)


def _texts(catalog: Catalog, ordinals: list[int], *, has_messages: bool) -> Iterator[dict]:
    messages = "e.messages" if has_messages else "NULL"
    statement = _TEXTS.format(messages=messages, first=ordinals[0], last=ordinals[-1])
    yield from catalog.arrow(statement, [ordinals]).to_pylist()


def _row(example: dict, ends: list[int] | None, percent: float) -> dict[str, object]:
    return {
        "id": f"{example['id']}@{percent:g}",
        "prompt": example["prompt"],
        "system": example["system"],
        "messages": without_answer(example["messages"]),  # an answer may carry the thinking
        "thinking": cut(example["thinking"], ends, percent / 100).text or None,
        "response": example["response"],
        "label": example["label"],
        "source": example["source"],
        "clipped_from": example["id"],
        "kept": percent / 100,
    }
