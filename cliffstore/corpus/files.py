"""Files to raw rows: JSON Lines, JSON, CSV, Parquet and on-disk `datasets` folders, from any fsspec URL.

An input is a file, a glob, a plain folder (its supported files, sorted by name) or a folder that
`Dataset.save_to_disk` wrote. Each file is read once and wholly; nothing is unpickled, nothing is evaluated.
Cost: the memory of the rows as Python objects.
"""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from cliffstore.access import filesystem, fsspec_options
from cliffstore.errors import CorpusError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_DATASET_MARKS = ("dataset_dict.json", "dataset_info.json")
_MAX_BLOCK = 2**31 - 1


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
class RawFile:
    """The rows of one file and the columns that it has; a column that a row lacks is null there."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[RawRow, ...]
    notices: tuple[str, ...] = ()


def read_files(
    inputs: Sequence[str], text_columns: frozenset[str], storage_options: Mapping[str, object] | None = None
) -> Iterator[RawFile]:
    """Read every file that the inputs name, in the order of the inputs.

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


def _read_input(url: str, text_columns: frozenset[str], options: Mapping[str, object]) -> Iterator[RawFile]:
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
        yield _read_dataset(fs, path, options)
        return
    else:
        paths = sorted(child for child in fs.ls(path, detail=False) if _reader_of(child) is not None)
        if not paths:
            raise CorpusError(f"no corpus file in the folder {url}; known are {_known()}")
    for each in paths:
        if fs.isdir(each):
            if _is_dataset(fs, each):
                yield _read_dataset(fs, each, options)
            continue
        yield _read_file(fs, each, text_columns)


def _filesystem(url: str, options: Mapping[str, object]) -> tuple[_FileSystem, str]:
    """Open the URL's filesystem. Storage options are meant for remote ones; a local path gets none."""
    is_remote = "://" in url and not url.startswith("file://")
    try:
        fs, path = filesystem(url, options if is_remote else {})
    except ValueError as error:
        raise CorpusError(f"cannot read {url}: {_one_line(error)}") from error
    return fs, path


def _read_file(fs: _FileSystem, path: str, text_columns: frozenset[str]) -> RawFile:
    reader = _reader_of(path)
    name = PurePosixPath(path).name
    if reader is None:
        raise CorpusError(f"{name}: unknown file type; known are {_known()}")
    with fsspec.core.OpenFile(fs, path, mode="rb", compression=_compression(path)) as stream:
        content: bytes = stream.read()
    return reader(name, content, text_columns)


def _compression(path: str) -> str | None:
    return COMPRESSIONS.get(PurePosixPath(path.lower()).suffix)


def _reader_of(path: str) -> Callable[[str, bytes, frozenset[str]], RawFile] | None:
    pure = PurePosixPath(path.lower())
    if pure.suffix in COMPRESSIONS:
        pure = pure.with_suffix("")
        return None if pure.suffix == ".parquet" else _READERS.get(pure.suffix)
    return _READERS.get(pure.suffix)


def _known() -> str:
    return ", ".join(_READERS) + f" (all but .parquet also with {', '.join(COMPRESSIONS)}) and datasets folders"


def _read_json_lines(name: str, content: bytes, _: frozenset[str]) -> RawFile:
    rows = []
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{name}:{number}: invalid JSON ({_one_line(error)}); fix the line") from error
        rows.append(_object_row(value, f"{name}:{number}", stem_of(name)))
    return _file_of(name, rows)


def _read_json(name: str, content: bytes, _: frozenset[str]) -> RawFile:
    try:
        value = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
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
    return _file_of(name, [_object_row(each, f"{name}:{i}", stem) for i, each in enumerate(value, start=1)])


def _object_row(value: object, location: str, stem: str) -> RawRow:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise CorpusError(f"{location}: each row must be a JSON object, this is {kind}; fix the line")
    return RawRow(value, location, stem)


def _file_of(name: str, rows: Sequence[RawRow]) -> RawFile:
    columns = dict.fromkeys(column for row in rows for column in row.values)
    return RawFile(name, tuple(columns), tuple(rows))


def _read_csv(name: str, content: bytes, text_columns: frozenset[str]) -> RawFile:
    if not content.strip():
        return RawFile(name, (), ())
    delimiter = "\t" if ".tsv" in PurePosixPath(name.lower()).suffixes[-2:] else ","
    table = pa_csv.read_csv(
        pa.BufferReader(content),
        # One block, so that a column's type is inferred from all its values, not from the first megabyte.
        read_options=pa_csv.ReadOptions(block_size=min(len(content) + 1, _MAX_BLOCK)),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types={column: pa.string() for column in text_columns}),
    )
    # The header is line 1. A cell that holds a newline makes this a row number, as spreadsheets count.
    return _table_file(name, table, stem_of(name), first=2)


def _read_parquet(name: str, content: bytes, _: frozenset[str]) -> RawFile:
    return _table_file(name, pa_parquet.read_table(pa.BufferReader(content)), stem_of(name), first=1)


def _table_file(name: str, table: pa.Table, stem: str, first: int) -> RawFile:
    columns = tuple(table.column_names)
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise CorpusError(f"{name}: the column {doubled[0]!r} is there more than once; rename one")
    rows = (RawRow(values, f"{name}:{i}", stem) for i, values in enumerate(table.to_pylist(), start=first))
    return RawFile(name, columns, tuple(rows))


def _is_dataset(fs: _FileSystem, path: str) -> bool:
    return any(fs.exists(f"{path.rstrip('/')}/{mark}") for mark in _DATASET_MARKS)


def _read_dataset(fs: _FileSystem, path: str, options: Mapping[str, object]) -> RawFile:
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
        return _table_file(name, loaded.with_format("arrow")[:], name, first=1)
    parts = [
        _table_file(f"{name}/{split}", part.with_format("arrow")[:], name, first=1) for split, part in loaded.items()
    ]
    columns = dict.fromkeys(column for part in parts for column in part.columns)
    notice = f"{name} has the splits {', '.join(loaded)}: all are read, in this order"
    return RawFile(name, tuple(columns), tuple(row for part in parts for row in part.rows), (notice,))


_READERS: dict[str, Callable[[str, bytes, frozenset[str]], RawFile]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
