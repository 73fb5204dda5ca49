"""`cliffstore judge`: which responses refuse, and how often a model does.

Each judge gives a verdict to every row with a response; a row without one, or whose response is unfinished thinking, is
counted as missing. With several judges the first gives the columns `refused`, `judge`, `verdict` and `reason`, the
second `refused_2` and so on, and their agreement is measured on the rows where both have a verdict.

An endpoint's answers are kept every few requests: a run that was cut off asks for what is missing only. Nothing is
written before all is judged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow as pa

from cliffstore.access import scheme_of
from cliffstore.analyze.rates import MISSING, UNDECIDED, Agreement, GroupRates, Judged, agreements, group_rates
from cliffstore.corpus.rows import normalise_label
from cliffstore.errors import ConfigError, InterruptedRunError
from cliffstore.publish.completions import Endpoint
from cliffstore.publish.endpoint import AnswerBook
from cliffstore.publish.judges import (
    COLUMN,
    NO_RESPONSE,
    PATTERN,
    RULES,
    TEMPLATE,
    VERDICTS,
    ColumnJudge,
    EndpointJudge,
    Judge,
    Reading,
    RulesJudge,
    Verdict,
)
from cliffstore.publish.refusals import Refusals, answer_in, read_phrases
from cliffstore.publish.targets import TemplateTarget
from cliffstore.run.judging.config import JudgeConfig
from cliffstore.run.judging.rows import Row, check_columns, judged_input
from cliffstore.run.progress import LineReporter, Piece, Reporter
from cliffstore.run.row_files import RowWriter, without_answer
from cliffstore.run.saving import saving
from cliffstore.settings import read_config
from cliffstore.store.objects import ObjectStore

_AT_ONCE = 64
_COLUMNS = (("refused", pa.bool_()), ("judge", pa.string()), ("verdict", pa.string()), ("reason", pa.string()))


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What was judged.

    Attributes
    ----------
    output : file with the verdicts; None where none was asked for
    examples : rows that were read; `skipped` ones, which cannot be used, are not among them
    missing : rows without a response
    harmful, benign : labels that count as such
    rates : of each judge, over all rows and by group
    agreements : of each pair of judges
    """

    output: str | None
    examples: int
    skipped: int
    missing: int
    harmful: str
    benign: tuple[str, ...]
    rates: tuple[GroupRates, ...]
    agreements: tuple[Agreement, ...]


def judge(corpus: str | Sequence[str], output: str | None = None, **settings: object) -> JudgeReport:
    """Judge the responses of a corpus, or of the examples of a store.

    Parameters
    ----------
    corpus : files, folders or URLs; or one store
    output : file that ends in `.jsonl` or `.parquet`
    settings : other fields of `JudgeConfig`; `reporter` is told of progress and notices

    Raises
    ------
    ConfigError, CorpusError, StoreError, SelectionError, QueryError
        It cannot be judged as asked.
    EndpointError
        An endpoint does not answer; what it has answered is kept.
    InterruptedRunError
        Ctrl-C; what an endpoint has answered is kept.
    """
    reporter = settings.pop("reporter", None)
    asked = {"corpus": (corpus,) if isinstance(corpus, str) else tuple(corpus), "output": output, **settings}
    return run_judging(read_config(JudgeConfig, None, asked), reporter or LineReporter())  # type: ignore[arg-type]


def run_judging(config: JudgeConfig, reporter: Reporter) -> JudgeReport:
    """Judge as settings say. Errors as for `judge`."""
    _check_output(config)
    judges = [_judge(kind, config) for kind in config.judges]
    names = [
        f"{name}{config.suffix}{'' if n == 0 else f'_{n + 1}'}" for n in range(len(judges)) for name, _ in _COLUMNS
    ]
    with ExitStack() as stack:
        rows = stack.enter_context(judged_input(config, reporter.notice))
        needed = {"label": config.label if config.label != "label" else None, "group-by": config.group_by}
        check_columns(rows.schema, names if config.output is not None else (), needed)
        for one in judges:
            if isinstance(one, ColumnJudge):
                check_columns(rows.schema, (), {"judge": one.column})
        kinds = [kind for _ in judges for _, kind in _COLUMNS]
        schema = pa.schema([*rows.schema, *(pa.field(*column) for column in zip(names, kinds, strict=True))])
        writer = None
        if config.output is not None:
            sink = stack.enter_context(saving(config.output, config.storage_options))
            writer = stack.enter_context(RowWriter(config.output, sink, schema))
        tally = _Tally(judges, config)
        reporter.begin("judge", rows.n_rows)
        try:
            for block in _pieces(rows.blocks()):
                verdicts = [_verdicts(one, block) for one in judges]
                tally.add(block, verdicts)
                if writer is not None:
                    writer.add(
                        [
                            {**row, "messages": without_answer(row.get("messages")), **_columns(names, judges, *said)}
                            for row, *said in zip(block, *verdicts, strict=True)
                        ]
                    )
                for _ in block:
                    reporter.advance(Piece(noun="rows"))
        except KeyboardInterrupt:
            kept = "; what was answered is kept, run the same command again to go on" if config.endpoint else ""
            raise InterruptedRunError(f"interrupted{kept}") from None
        finally:
            reporter.end()
    if rows.n_skipped:
        reporter.notice(f"{rows.n_skipped} rows of the corpus cannot be used and are left out")
    return tally.report(rows.n_skipped, reporter.notice)


def _check_output(config: JudgeConfig) -> None:
    """Raise `ConfigError` where a file would be written over by some of its own rows."""
    if config.output is not None and _place(config.output) in map(_place, config.corpus):
        raise ConfigError(f"-o {config.output} is a file that is judged: give the verdicts another one")


def _place(url: str) -> str:
    return os.path.realpath(url.removeprefix("file://")) if scheme_of(url) == "file" else url


def _judge(kind: str, config: JudgeConfig) -> Judge:
    if kind == RULES:
        return RulesJudge(Refusals(None if config.rules is None else read_phrases(config.rules)))
    if kind.startswith(f"{COLUMN}:"):
        return ColumnJudge(kind.partition(":")[2])
    assert config.endpoint is not None
    template = (
        TemplateTarget.of_text(TEMPLATE, "of judges", "the built-in template")
        if config.template is None
        else TemplateTarget.read(config.template)
    )
    verdicts = dict(pair.rsplit("=", 1) for pair in config.verdict) or VERDICTS
    folder, _, name = (config.answers or f"{config.output}.answers.jsonl").rpartition("/")
    book = AnswerBook(ObjectStore(folder or ".", config.storage_options if "://" in folder else {}), name)
    return EndpointJudge(
        endpoint=Endpoint.check(config.endpoint, config.model, timeout=config.timeout),
        book=book,
        template=template,
        reading=Reading.check(config.pattern or PATTERN, verdicts),
        max_tokens=config.max_tokens,
        at_a_time=config.concurrency,
    )


def _pieces(blocks: Iterator[list[Row]]) -> Iterator[list[Row]]:
    for block in blocks:
        for first in range(0, len(block), _AT_ONCE):
            yield block[first : first + _AT_ONCE]


def _verdicts(judge: Judge, rows: Sequence[Row]) -> list[Verdict]:
    """Return a verdict for each row; rows without a response are not shown to the judge."""
    found = [Verdict(None, None, NO_RESPONSE)] * len(rows)
    there = [n for n, row in enumerate(rows) if not _is_missing(row)]
    for n, verdict in zip(there, judge.judge([rows[n] for n in there]) if there else [], strict=True):
        found[n] = verdict
    return found


def _is_missing(row: Row) -> bool:
    response = row["response"]
    return not isinstance(response, str) or not answer_in(response)


def _columns(names: Sequence[str], judges: Sequence[Judge], *verdicts: Verdict) -> dict[str, object]:
    values: list[object] = []
    for judge, verdict in zip(judges, verdicts, strict=True):
        values += [verdict.refused, judge.name, verdict.verdict, verdict.reason]
    return dict(zip(names, values, strict=True))


class _Tally:
    """What the report needs of each row: a few values, whatever the length of its texts."""

    def __init__(self, judges: Sequence[Judge], config: JudgeConfig) -> None:
        self._config = config
        self._names = [judge.name for judge in judges]
        if len(set(self._names)) < len(self._names):
            raise ConfigError(f"two judges are called {self._names[0]!r}: say each once")
        self._judged: list[list[Judged]] = [[] for _ in judges]
        self._labels: dict[str, None] = {}
        self._undecided: dict[str, str] = {}

    def add(self, rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]]) -> None:
        config = self._config
        for n, row in enumerate(rows):
            label = _text(row.get(config.label))
            if label is not None:
                self._labels[label] = None
            group = None if config.group_by is None else _text(row.get(config.group_by))
            missing = _is_missing(row)
            for name, judged, given in zip(self._names, self._judged, verdicts, strict=True):
                why = None if given[n].refused is not None else MISSING if missing else UNDECIDED
                judged.append(Judged(given[n].refused, self._is_harmful(label), group, why))
                if why == UNDECIDED:
                    self._undecided.setdefault(name, f"{row['id']}, {given[n].reason}")

    def _is_harmful(self, label: str | None) -> bool | None:
        if label is None or label == self._config.harmful_value:
            return None if label is None else True
        return False if self._config.benign_value in (None, label) else None

    def report(self, skipped: int, notice: Callable[[str], object]) -> JudgeReport:
        config = self._config
        benign = tuple(sorted(one for one in self._labels if self._is_harmful(one) is False))
        if config.harmful_value not in self._labels:
            there = ", ".join(sorted(self._labels)) or "none"
            wanted = f"{config.label} = {config.harmful_value}"
            notice(f"no row has {wanted}, so attack success is not defined; labels are: {there}")
        if len(benign) > 1:
            notice(f"{len(benign)} labels count as benign: {', '.join(benign)}; say --benign-value for one of them")
        rates = [
            one
            for name, judged in zip(self._names, self._judged, strict=True)
            for one in group_rates(name, judged, by_group=config.group_by is not None)
        ]
        for one in rates:
            if one.group is None and one.undecided:
                notice(
                    f"{one.undecided} responses have no verdict of {one.judge}, see the column reason; the first: "
                    f"{self._undecided[one.judge]}"
                )
        missing = rates[0].missing
        if missing:
            notice(f"{missing} of {len(self._judged[0])} rows have no response and are not judged")
        return JudgeReport(
            output=config.output,
            examples=len(self._judged[0]),
            skipped=skipped,
            missing=missing,
            harmful=config.harmful_value,
            benign=benign,
            rates=tuple(rates),
            agreements=tuple(
                agreements(
                    {
                        name: [one.refused for one in judged]
                        for name, judged in zip(self._names, self._judged, strict=True)
                    }
                )
            ),
        )


def _text(value: object) -> str | None:
    """Return a value as a label would be: equal for 1, 1.0 and "1", none where it is NaN."""
    return normalise_label(value if isinstance(value, bool | int | float) or value is None else str(value))
