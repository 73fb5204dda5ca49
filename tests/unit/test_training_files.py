"""Files of a training set: they end at sensible sizes, hold every row once, and are the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cliffstore.publish import shards
from cliffstore.publish.shards import DataFile, ShardWriter
from cliffstore.store.objects import ObjectStore

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


def write(folder: Path, n_rows: int, file_bytes: int | None) -> list[DataFile]:
    (folder / "spool").mkdir(parents=True)
    writer = ShardWriter(folder / "spool", "train", SCHEMA, {"selection": "s"}, file_bytes)
    for first in range(0, n_rows, 100):
        rows = [{"number": number, "text": f"{number:04d}" * 25} for number in range(first, min(first + 100, n_rows))]
        writer.add(pa.Table.from_pylist(rows, schema=SCHEMA))
    writer.close()
    return list(writer.put(ObjectStore(str(folder / "out")), "train"))


@pytest.mark.parametrize(("file_bytes", "names"), [
    (None, ["train.parquet"]),
    (60_000, [f"train-{number:05d}-of-00003.parquet" for number in range(3)]),
])  # fmt: skip
def test_rows_and_names(
    file_bytes: int | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "GROUP_ROWS", 300)
    files = write(tmp_path / "one", 1_500, file_bytes)
    assert [file.name for file in files] == names
    assert sorted(path.name for path in (tmp_path / "one" / "out").iterdir()) == names
    numbers = [
        number for name in names for number in pq.read_table(tmp_path / "one" / "out" / name)["number"].to_pylist()
    ]
    assert numbers == list(range(1_500))
    for file in files:
        with pq.ParquetFile(tmp_path / "one" / "out" / file.name) as parquet:
            assert parquet.metadata.num_rows == file.rows
            groups = [parquet.metadata.row_group(group) for group in range(parquet.metadata.num_row_groups)]
            assert {group.num_rows for group in groups} == {300}
            assert parquet.schema_arrow.metadata[b"cliffstore.split"] == b"train"
    assert write(tmp_path / "two", 1_500, file_bytes) == files


def test_large_rows_end_a_group_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_BYTES", 50_000)
    (file,) = write(tmp_path, 1_000, None)
    assert pq.ParquetFile(tmp_path / "out" / file.name).metadata.num_row_groups == 2
