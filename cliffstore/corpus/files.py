"""Files to raw rows: JSON Lines, JSON, CSV, Parquet and on-disk `datasets` folders, from any fsspec URL.

An input is a file, a glob, a plain folder (its supported files, sorted by name) or a folder that
`Dataset.save_to_disk` wrote. Rows come in blocks, so JSON Lines, Parquet and `datasets` take the memory of a block;
JSON arrays and CSV, whose types show at their end only, are held whole. Nothing is unpickled, nothing is evaluated.
"""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from cliffstore.access import filesystem, fsspec_options
from cliffstore.errors import CorpusError

if TYPE_CHECKING:
    from datasets import Dataset

BLOCK_ROWS, BLOCK_BYTES = 4_096, 8 << 20
"""Bounds of a block: its rows, and about the bytes of their text."""
_READ_BYTES = 1 << 20
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_DATASET_MARKS = ("dataset_dict.json", "dataset_info.json")
_MAX_BLOCK = 2**31 - 1
_MOST_TOLD = 5


class _FileSystem(Protocol):
    """The part of an fsspec filesystem that is used here."""

    def exists(self, path: str) -> bool: ...
    def isdir(self, path: str) -> bool: ...
    def glob(self, path: str) -> list[str]: ...
    def ls(self, path: str, detail: bool) -> list[str]: ...
    def cat_file(self, path: str) -> bytes: ...
    def unstrip_protocol(self, path: str) -> str: ...


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file has it. `location` is `file:line` (JSON Lines, CSV) or `file:row`, from 1."""

    values: Mapping[str, object]
    location: str
    stem: str


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Rows of one file that follow each other; a column that a row lacks is null there.

    Attributes
    ----------
    name : of the file; a file without rows gives one block without rows
    columns : of the file, or of these rows where a file does not list its columns
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[RawRow, ...]
    notices: tuple[str, ...] = ()


Blocks: TypeAlias = Iterator[RawBlock]


def read_files(
    inputs: Sequence[str], text_columns: frozenset[str], storage_options: Mapping[str, object] | None = None
) -> Blocks:
    """Read every file that the inputs name, in the order of the inputs, block by block.

    Parameters
    ----------
    text_columns : the columns that CSV must leave as text (a prompt of `123` is not a number)
    """
    for url in inputs:
        try:
            yield from _read_input(url, text_columns, storage_options or {})
        except (OSError, ImportError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise CorpusError(f"cannot read {url}: {_one_line(error) or type(error).__name__}") from error


def stem_of(path: str) -> str:
    """Give the file's name without its suffixes: `a/b.jsonl.gz` is `b`."""
    pure = PurePosixPath(path)
    # Only the last one or two: `v1.2.jsonl` keeps its `v1.2`.
    return PurePosixPath(pure.stem).stem if pure.suffix.lower() in COMPRESSIONS else pure.stem


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _read_input(url: str, text_columns: frozenset[str], options: Mapping[str, object]) -> Blocks:
    if not url.strip():
        raise CorpusError("an input is empty text: give a path or a URL")
    fs, path = _filesystem(url, options)
    if not fs.exists(path) and any(mark in path for mark in "*?["):
        paths = sorted(fs.glob(path))
        if not paths:
            raise CorpusError(f"no such file: nothing matches {url}; check the pattern")
    elif not fs.exists(path):
        raise CorpusError(f"no such file: {url}; check the path")
    elif not fs.isdir(path):
        paths = [path]
    elif _is_dataset(fs, path):
        yield from _read_dataset(fs, path, options)
        return
    else:
        children = sorted(fs.ls(path, detail=False))
        paths = [child for child in children if _reader_of(child) is not None]
        if not paths:
            raise CorpusError(f"no corpus file in the folder {url}; known are {_known()}")
        yield from _left_out(url, [child for child in children if child not in paths])
    folders = [each for each in paths if fs.isdir(each) and not _is_dataset(fs, each)]
    yield from _left_out(url, folders)
    for each in paths:
        if each in folders:
            continue
        if fs.isdir(each):
            yield from _read_dataset(fs, each, options)
        else:
            yield from _read_file(fs, each, text_columns)


def _left_out(url: str, paths: Sequence[str]) -> Blocks:
    """Tell what else a folder holds, or a pattern matches; names that begin with a dot are hidden."""
    names = [name for path in paths if not (name := PurePosixPath(path).name).startswith(".")]
    if names:
        more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
        yield RawBlock(url, (), (), (f"not read of {url}: {', '.join(names[:_MOST_TOLD])}{more}",))


def _filesystem(url: str, options: Mapping[str, object]) -> tuple[_FileSystem, str]:
    """Open the URL's filesystem. Storage options are meant for remote ones; a local path gets none."""
    is_remote = "://" in url and not url.startswith("file://")
    try:
        fs, path = filesystem(url, options if is_remote else {})
    except ValueError as error:
        raise CorpusError(f"cannot read {url}: {_one_line(error)}") from error
    return fs, path


def _read_file(fs: _FileSystem, path: str, text_columns: frozenset[str]) -> Blocks:
    reader = _reader_of(path)
    name = PurePosixPath(path).name
    if reader is None:
        raise CorpusError(f"{name}: unknown file type; known are {_known()}")
    with fsspec.core.OpenFile(fs, path, mode="rb", compression=_compression(path)) as stream:
        yield from reader(name, stream, text_columns)


def _compression(path: str) -> str | None:
    return COMPRESSIONS.get(PurePosixPath(path.lower()).suffix)


def _reader_of(path: str) -> _Reader | None:
    pure = PurePosixPath(path.lower())
    if pure.suffix in COMPRESSIONS:
        pure = pure.with_suffix("")
        return None if pure.suffix == ".parquet" else _READERS.get(pure.suffix)
    return _READERS.get(pure.suffix)


def _known() -> str:
    return ", ".join(_READERS) + f" (all but .parquet also with {', '.join(COMPRESSIONS)}) and datasets folders"


def _read_json_lines(name: str, stream: BinaryIO, _: frozenset[str]) -> Blocks:
    stem, rows, size, number = stem_of(name), list[RawRow](), 0, 0
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{name}:{number}: invalid JSON ({_one_line(error)}); fix the line") from error
        rows.append(_object_row(value, f"{name}:{number}", stem))
        size += len(line)
        if len(rows) >= BLOCK_ROWS or size >= BLOCK_BYTES:
            yield _block_of(name, rows)
            rows, size = [], 0
    yield _block_of(name, rows)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines. Only \\n ends one: others would also cut at U+2028, which JSON strings may hold."""
    rest = stream.read(_READ_BYTES).removeprefix(b"\xef\xbb\xbf")
    while chunk := stream.read(_READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
        yield from whole
    yield from rest.split(b"\n")


def _read_json(name: str, stream: BinaryIO, _: frozenset[str]) -> Blocks:
    try:
        value = json.loads(stream.read().removeprefix(b"\xef\xbb\xbf"))
    except json.JSONDecodeError as error:
        is_lines = error.msg == "Extra data"
        hint = "one object a line is .jsonl: rename the file" if is_lines else "fix the file"
        raise CorpusError(f"{name}:{error.lineno}: invalid JSON ({error.msg}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name}: invalid JSON ({_one_line(error)}); fix the file") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise CorpusError(f'{name}: neither an array of objects nor {{"data": [...]}}; make it one of these')
    stem = stem_of(name)
    for first in range(0, max(len(value), 1), BLOCK_ROWS):
        part = enumerate(value[first : first + BLOCK_ROWS], start=first + 1)
        yield _block_of(name, [_object_row(each, f"{name}:{i}", stem) for i, each in part])


def _object_row(value: object, location: str, stem: str) -> RawRow:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise CorpusError(f"{location}: each row must be a JSON object, this is {kind}; fix the line")
    return RawRow(value, location, stem)


def _block_of(name: str, rows: Sequence[RawRow]) -> RawBlock:
    columns = dict.fromkeys(column for row in rows for column in row.values)
    return RawBlock(name, tuple(columns), tuple(rows))


def _read_csv(name: str, stream: BinaryIO, text_columns: frozenset[str]) -> Blocks:
    content = stream.read()
    if not content.strip():
        yield RawBlock(name, (), ())
        return
    delimiter = "\t" if ".tsv" in PurePosixPath(name.lower()).suffixes[-2:] else ","
    table = pa_csv.read_csv(
        pa.BufferReader(content),
        # One block, so that a column's type is inferred from all its values, not from the first megabyte.
        read_options=pa_csv.ReadOptions(block_size=min(len(content) + 1, _MAX_BLOCK)),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types={column: pa.string() for column in text_columns}),
    )
    del content
    # The header is line 1. A cell that holds a newline makes this a row number, as spreadsheets count.
    yield from _table_blocks(name, table.column_names, table.to_batches(BLOCK_ROWS), stem_of(name), first=2)


def _read_parquet(name: str, stream: BinaryIO, _: frozenset[str]) -> Blocks:
    # Read on this thread: Arrow's own, still letting go of a stream, may abort a process that exits.
    file = pa_parquet.ParquetFile(stream, pre_buffer=False)
    bytes_per_row = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)) // max(
        file.metadata.num_rows, 1
    )
    rows = max(min(BLOCK_ROWS, BLOCK_BYTES // max(bytes_per_row, 1)), 1)
    batches = file.iter_batches(batch_size=rows, use_threads=False)
    yield from _table_blocks(name, file.schema_arrow.names, batches, stem_of(name), first=1)


def _table_blocks(
    name: str, columns: Sequence[str], batches: Iterable[pa.RecordBatch], stem: str, first: int
) -> Blocks:
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise CorpusError(f"{name}: the column {doubled[0]!r} is there more than once; rename one")
    at = first
    for batch in batches:
        rows = tuple(RawRow(values, f"{name}:{i}", stem) for i, values in enumerate(batch.to_pylist(), start=at))
        at += len(rows)
        yield RawBlock(name, tuple(columns), rows)
    if at == first:
        yield RawBlock(name, tuple(columns), ())


def _is_dataset(fs: _FileSystem, path: str) -> bool:
    return any(fs.exists(f"{path.rstrip('/')}/{mark}") for mark in _DATASET_MARKS)


def _read_dataset(fs: _FileSystem, path: str, options: Mapping[str, object]) -> Blocks:
    from datasets import DatasetDict, load_from_disk

    url = fs.unstrip_protocol(path)
    is_local = url.startswith(("file://", "local://"))
    try:
        remote = {} if is_local else {"storage_options": fsspec_options(url, options)}
        loaded = load_from_disk(path if is_local else url, **remote)
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{url}: not a readable datasets folder ({_one_line(error)})") from error
    name = PurePosixPath(path).name
    if not isinstance(loaded, DatasetDict):
        yield from _dataset_blocks(name, loaded, name)
        return
    notice = f"{name} has the splits {', '.join(loaded)}: all are read, in this order"
    yield RawBlock(name, (), (), (notice,))
    for split, part in loaded.items():
        yield from _dataset_blocks(f"{name}/{split}", part, name)


def _dataset_blocks(name: str, rows: Dataset, stem: str) -> Blocks:
    tables = rows.with_format("arrow").iter(BLOCK_ROWS)
    batches = (batch for table in tables for batch in table.combine_chunks().to_batches())
    return _table_blocks(name, rows.column_names, batches, stem, first=1)


_Reader: TypeAlias = Callable[[str, BinaryIO, frozenset[str]], Blocks]
_READERS: dict[str, _Reader] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
