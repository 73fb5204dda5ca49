"""A selection as a training set: Parquet files with what trainers read and with lineage, and a dataset card.

First it is settled which rows there are (a few values of each), then their texts are read in the order of the export
and written, a few hundred rows at a time. Every row leads back to its example, scores, probe, capture, plan and store.
The same store and settings give the same bytes, wherever they are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from cliffstore import __version__
from cliffstore.access import check_url, scheme_of
from cliffstore.config import ExportConfig
from cliffstore.errors import DamagedStoreError, SelectionError
from cliffstore.publish import mixture
from cliffstore.publish.card import HEADING, CardFacts, Counts, dataset_card
from cliffstore.publish.completions import Endpoint
from cliffstore.publish.endpoint import ANSWERS, AnswerBook, EndpointTarget
from cliffstore.publish.formats import Thinking
from cliffstore.publish.mixture import MIXED, TRAIN, VALIDATION
from cliffstore.publish.rows import BATCH, ExportRows, Tally, batches, public_url
from cliffstore.publish.shards import FILE_BYTES, DataFile, ShardWriter
from cliffstore.publish.snippets import Snippets
from cliffstore.publish.targets import ColumnTarget, Target, TemplateTarget, TextTarget
from cliffstore.store import tables
from cliffstore.store.catalog import Catalog
from cliffstore.store.objects import ObjectStore

_RESPONSE = "response"
_DATA_FILE = re.compile(rf"(?:{TRAIN}|{VALIDATION})(?:-\d{{5}}-of-\d{{5}})?\.parquet")
_PLACE = {"store", "storage_options", "output", "output_options", "selection", "target_template", "target_answers"}
"""Settings that do not shape the rows, or that the card says in its own words."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written where. `without_target` examples of the selection are left out.

    Attributes
    ----------
    path : of the first file
    mixed, validation : of the rows, how many are mixed in, and how many validate
    """

    path: str
    card: str
    rows: int
    mixed: int
    validation: int
    without_target: int
    files: tuple[DataFile, ...]


def check_export(config: ExportConfig, section: str = "") -> Thinking:
    """Find what is wrong with an export without its store; return what becomes of thinking.

    Raises
    ------
    ConfigError, SelectionError
        A URL has credentials, `thinking` is malformed, or the template or the endpoint cannot be used.
    """
    for url in (config.output, config.target_answers):
        check_url(url or "")
    if config.target_template is not None:
        TemplateTarget.read(config.target_template)
    if config.target_endpoint is not None:
        _endpoint(config.target_endpoint, config)
    try:
        return Thinking.parse(config.thinking)
    except SelectionError as error:
        raise SelectionError(f"{section}{error}") from None


def _target(config: ExportConfig, options: Mapping[str, object], book: str) -> Target:
    """Return what is to be learnt. `book` is where an endpoint's answers are kept."""
    if config.target_text is not None:
        return TextTarget(config.target_text)
    template = None if config.target_template is None else TemplateTarget.read(config.target_template)
    if config.target_endpoint is not None:
        endpoint = _endpoint(config.target_endpoint, config)
        folder, _, name = book.rpartition("/")
        held = ObjectStore(folder or ".", options if scheme_of(book) == scheme_of(config.output) else {})
        return EndpointTarget(endpoint, AnswerBook(held, name), config.target_max_tokens, template)
    return template or ColumnTarget(config.target_column or _RESPONSE)


def _endpoint(url: str, config: ExportConfig) -> Endpoint:
    return Endpoint.check(url, config.target_model, "target-endpoint", of_model="target-model")


def export_selection(
    catalog: Catalog,
    config: ExportConfig,
    output_options: Mapping[str, object],
    notice: Callable[[str], object],
) -> ExportReport:
    """Write a selection as a training set.

    Parameters
    ----------
    output_options : storage options of `config.output`
    notice : told what was left out, or is not as was asked

    Raises
    ------
    ConfigError, SelectionError, QueryError
        Unknown selection or column, a malformed condition, no example has a target, or a file is in the way.
    """
    thinking = check_export(config)
    folder, stem, card_name = _places(config.output)
    objects = ObjectStore(folder, output_options)
    _refuse_in_store(objects, catalog.reader.objects)
    _refuse_foreign(objects, card_name, _data_files_in(objects) if stem is None else ())
    answers = config.target_answers or f"{folder}/{f'{stem}.' if stem else ''}{ANSWERS}"
    target = _target(config, output_options, answers)
    export = ExportRows(catalog, config, thinking, target, notice)
    chosen, without_target = export.choose()
    splits = [TRAIN] * len(chosen)
    if config.validation is not None:
        splits = mixture.split(chosen, config.validation, config.seed)
    with TemporaryDirectory(prefix="cliffstore-export-") as temporary:
        file_bytes = FILE_BYTES if stem is None else None
        provenance = export.provenance()
        writers = {
            split: ShardWriter(Path(temporary), split, export.schema, provenance, file_bytes)
            for split in dict.fromkeys((TRAIN, *splits))
        }
        tally = Tally()
        for rows in batches(export.rows(chosen), BATCH):
            for split, writer in writers.items():
                mine = [row for place, row in rows if splits[place] == split]
                if mine:
                    writer.add(pa.Table.from_pylist(mine, schema=export.schema))
            tally.add(row for _, row in rows)
        for writer in writers.values():
            writer.close()
        files = tuple(file for split, writer in writers.items() for file in writer.put(objects, stem or split))
    n_mixed = sum(row.part == MIXED for row in chosen)
    counts = Counts(
        rows=len(chosen),
        mixed=n_mixed,
        validation=splits.count(VALIDATION),
        thinking=export.with_thinking,
        without_target=without_target,
        labels=tally.of("label"),
        sources=tally.of("source"),
    )
    objects.put_if_new(card_name, dataset_card(_facts(catalog, config, export, counts, files)).encode())
    stale = sorted(_data_files_in(objects) - {file.name for file in files}) if stem is None else []
    if stale:
        notice(f"{folder} has files of another export that the new card does not name: {', '.join(stale)}")
    return ExportReport(
        path=f"{folder}/{files[0].name}",
        card=f"{folder}/{card_name}",
        rows=len(chosen),
        mixed=n_mixed,
        validation=counts.validation,
        without_target=without_target,
        files=files,
    )


def _places(output: str) -> tuple[str, str | None, str]:
    """Return folder, stem of the data file's name where it is said, and name of the card."""
    if output.endswith(".parquet"):
        folder, slash, name = output.rpartition("/")
        stem = name.removesuffix(".parquet")
        return folder or slash or ".", stem, f"{stem}.md"
    return output.rstrip("/") or "/", None, "README.md"


def _data_files_in(objects: ObjectStore) -> set[str]:
    return {key for key in objects.list("") if _DATA_FILE.fullmatch(key)}


def _refuse_in_store(objects: ObjectStore, store: ObjectStore) -> None:
    """Find an output in the store itself, whose tables it could replace. Raises `SelectionError`."""
    if type(objects.fs) is type(store.fs) and f"{objects.root}/".startswith(f"{store.root}/"):
        raise SelectionError(f"output {objects.url} is in the store: choose a folder outside")


def _refuse_foreign(objects: ObjectStore, card: str, data_files: Iterable[str]) -> None:
    """Find files in the way that no export has made. Raises `SelectionError`: they would be lost."""
    if objects.is_local and Path(objects.root).is_file():
        raise SelectionError(f"output {objects.url} is a file: name a folder, or a file that ends in .parquet")
    foreign = [card] if objects.exists(card) and HEADING.encode() not in objects.get(card) else []
    foreign += [name for name in sorted(data_files) if not _is_exported(objects, name)]
    if foreign:
        raise SelectionError(
            f"output {objects.url} has {', '.join(foreign)}, which no export has made: choose another --output, or "
            "move what is there"
        )


def _is_exported(objects: ObjectStore, name: str) -> bool:
    try:
        schema = tables.schema_of(objects, name, objects.size(name))
    except DamagedStoreError:
        return False
    return f"{tables.PROVENANCE}.training_set_version".encode() in (schema.metadata or {})


def _facts(
    catalog: Catalog, config: ExportConfig, rows: ExportRows, counts: Counts, files: Sequence[DataFile]
) -> CardFacts:
    """Return what the card says, once all rows are written."""
    reader, probe = catalog.reader, rows.probe
    splits = dict.fromkeys(file.split for file in files)
    captures = reader.captures()
    model = probe.model.name if probe else captures[0].model.name if captures else "MODEL"
    return CardFacts(
        selection=rows.selection,
        counts=counts,
        format=config.format,
        thinking=str(rows.shape.thinking),
        target=str(rows.target),
        mixed_target=str(rows.mixed_target),
        settings=config.model_dump(exclude=_PLACE),
        files=files,
        schema=rows.schema,
        snippets=Snippets(
            name=config.selection,
            format=config.format,
            files={split: [file.name for file in files if file.split == split] for split in splits},
            model=model,
            conversations="messages" in rows.columns.names,
        ),
        probe=probe,
        plans=[plan for plan in reader.plans() if plan.plan in rows.plans],
        tokenizer=reader.manifest.tokenizer,
        store=public_url(reader.url),
        version=__version__,
        other_cliffs=rows.other_cliffs,
    )
