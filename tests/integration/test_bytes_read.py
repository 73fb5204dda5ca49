"""A filtered query reads the chunks that hold its rows and, but for their indexes, nothing else of the arrays.

moto answers ranges as tensorstore wants them; rclone does not, and is read through zarr-python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from fault_proxy import Weather, proxy
from servers import Storage
from vector_store import VectorStore

from cliffstore.run.store import Store
from cliffstore.store import layout
from cliffstore.store.arrays import ZarrArrays, open_arrays
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

CHUNK_ROWS, LAYER = 256, 1
VECTORS = VectorStore(n_units=5, unit_rows=4_096, width=96, n_layers=2, tokens=512, dtype="bfloat16")
"""Sixteen chunks a unit, and a decision position in every second one."""
OF_ONE_LABEL = (
    "SELECT t.row, resid_post(t.row, {layer}) AS h FROM tokens t JOIN examples e USING (example) "
    "WHERE t.to_decision = 0 AND e.label = '{label}'"
)


@pytest.fixture(scope="module", params=["moto_s3", "rclone_s3"])
def server(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def stored(server: Storage) -> ObjectStore:
    objects = ObjectStore(server.new_url(), server.options)
    VECTORS.make(objects)
    return objects


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray]:
    """Rows of examples with label 1, and their vectors."""
    rows_N, y_N = VECTORS.rows_and_labels()
    every_RD = np.concatenate([VECTORS.vectors_of(LAYER, unit) for unit in range(VECTORS.n_units)])
    return rows_N[y_N == 1], every_RD[rows_N[y_N == 1]]


class Watched:
    """A store seen through a proxy, and what was read of it."""

    def __init__(self, url: str, options: dict[str, object], weather: Weather) -> None:
        self.url, self.options, self._weather = url, options, weather

    def bytes_of(self, folder: str) -> int:
        return sum(size for path, size in self._weather.read.items() if f"/store/{folder}" in path)

    def forget(self) -> None:
        self._weather.read = Counter()


@contextmanager
def watched(storage: Storage, stored: ObjectStore) -> Iterator[Watched]:
    weather = Weather()
    with proxy(storage.port, weather) as port:
        yield Watched(stored.url, storage.through(port).options, weather)


def chunk_sizes(objects: ObjectStore, key: str) -> np.ndarray:
    """Return the stored bytes of each chunk of an array, from the indexes at the ends of its shards."""
    sizes = []
    for unit in range(VECTORS.n_units):
        n_chunks = VECTORS.unit_rows // CHUNK_ROWS
        index = objects.get(layout.shard(key, unit, 2))[-(16 * n_chunks + 4) : -4]
        sizes.append(np.frombuffer(index, dtype="<u8").reshape(n_chunks, 2)[:, 1])
    return np.concatenate(sizes).astype(np.int64)


def minimum(objects: ObjectStore, rows_N: np.ndarray) -> int:
    sizes = chunk_sizes(objects, layout.array("main", "resid_post", LAYER))
    wanted = np.unique(rows_N // CHUNK_ROWS)
    assert len(wanted) < len(sizes) / 2, "a test only where many chunks hold no row"
    return int(sizes[wanted].sum())


def test_a_filtered_query_reads_only_the_chunks_that_hold_its_rows(
    server: Storage, stored: ObjectStore, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    rows_N, h_ND = expected
    least = minimum(stored, rows_N)
    with watched(server, stored) as seen, Store(seen.url, seen.options) as store:
        table = store.sql(OF_ONE_LABEL.format(layer=LAYER, label="1") + " ORDER BY t.row").fetchnumpy()
        np.testing.assert_array_equal(table["row"], rows_N)
        np.testing.assert_array_equal(np.stack(table["h"]), h_ND)
        read = seen.bytes_of("activations/")
        assert least <= read <= 1.1 * least, f"{read:,} bytes of arrays, {least:,} are needed"
        tables = seen.bytes_of("plans/")
        assert 0 < tables < read, f"{tables:,} bytes of tables"
        # Once more: what is decoded is kept.
        seen.forget()
        store.sql(OF_ONE_LABEL.format(layer=LAYER, label="1")).fetchnumpy()
        assert seen.bytes_of("activations/") == 0


def test_no_row_reads_nothing(server: Storage, stored: ObjectStore) -> None:
    with watched(server, stored) as seen, Store(seen.url, seen.options) as store:
        assert store.sql(OF_ONE_LABEL.format(layer=LAYER, label="7")).fetchall() == []
        assert seen.bytes_of("activations/") == 0


@pytest.mark.parametrize("order", ["sorted", "shuffled", "repeated"])
def test_the_reader_reads_only_the_chunks_that_hold_its_rows(
    order: str, server: Storage, stored: ObjectStore, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    rows_N, h_ND = expected
    at = np.arange(len(rows_N))
    if order != "sorted":
        at = np.random.default_rng(0).permutation(np.repeat(at, 3) if order == "repeated" else at)
    least = minimum(stored, rows_N)
    with watched(server, stored) as seen:
        reader = StoreReader(seen.url, seen.options)
        np.testing.assert_array_equal(reader.vectors("resid_post", LAYER, rows_N[at]), h_ND[at])
        read = seen.bytes_of("activations/")
    assert least <= read <= 1.1 * least, f"{read:,} bytes, {least:,} are needed"


@pytest.mark.parametrize("backend", [open_arrays, ZarrArrays])
def test_a_scan_reads_each_chunk_once(backend, server: Storage, stored: ObjectStore) -> None:
    key = layout.array("main", "resid_post", LAYER)
    everything = int(chunk_sizes(stored, key).sum())
    with watched(server, stored) as seen:
        n_rows = VECTORS.n_units * VECTORS.unit_rows
        found = backend(ObjectStore(seen.url, seen.options)).read_range(key, 0, n_rows)
        read = seen.bytes_of("activations/")
    np.testing.assert_array_equal(found[: VECTORS.unit_rows], VECTORS.stored_of(LAYER, 0))
    assert everything <= read <= 1.02 * everything, f"{read:,} bytes, {everything:,} are stored"
