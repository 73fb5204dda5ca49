"""What every array backend must do. A backend's test class inherits `ArraySuite` and gives the store."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import xarray
import zarr

from cliffstore.errors import DamagedStoreError
from cliffstore.store import gather
from cliffstore.store.arrays import ArrayIO, ArraySpec, create_arrays, to_float32, zarr_store
from cliffstore.store.objects import ObjectStore

CHUNK_ROWS = 256
UNIT_ROWS = 512
N_UNITS = 3
WIDTH = 24
BF16 = ArraySpec("main", "resid_post", 0, (WIDTH,), "bfloat16")
FP16 = ArraySpec("main", "resid_post", 1, (WIDTH,), "float16")
FP32 = ArraySpec("main", "final_norm", 5, (WIDTH,), "float32")
Z = ArraySpec("tuned", "z", 2, (3, 8), "float32")
SPECS = (BF16, FP16, FP32, Z)


def block_of(spec: ArraySpec, seed: int = 0, n_rows: int = UNIT_ROWS) -> np.ndarray:
    """Return random vectors [n_rows, ...] as they are stored."""
    generator = np.random.default_rng([seed, spec.layer])
    if spec.dtype == "bfloat16":
        return generator.integers(0, 1 << 16, (n_rows, *spec.row_shape), dtype=np.uint16)
    return generator.normal(size=(n_rows, *spec.row_shape)).astype(spec.dtype)


def bits(block: np.ndarray) -> np.ndarray:
    """Return an array's bits, in which NaN and -0 compare."""
    return np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}")


class ArraySuite:
    """Contract of `ArrayIO`, and of the format that is left behind."""

    @pytest.fixture
    @abstractmethod
    def objects(self) -> ObjectStore | Iterator[ObjectStore]:
        """Give an empty store."""

    @abstractmethod
    def open(self, objects: ObjectStore) -> ArrayIO:
        """Open the backend anew, without anything cached."""

    @pytest.fixture
    def arrays(self, objects: ObjectStore) -> ArrayIO:
        self.create(objects)
        return self.open(objects)

    def create(self, objects: ObjectStore) -> None:
        create_arrays(objects, SPECS, n_rows=N_UNITS * UNIT_ROWS, chunk_rows=CHUNK_ROWS, unit_rows=UNIT_ROWS)

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.dtype + str(len(spec.row_shape)))
    def test_what_was_written_is_read(self, objects: ObjectStore, arrays: ArrayIO, spec: ArraySpec) -> None:
        blocks = [block_of(spec, unit) for unit in range(N_UNITS)]
        for unit in (2, 0, 1):
            arrays.write(unit * UNIT_ROWS, {spec.key: blocks[unit]})
        whole = np.concatenate(blocks)
        for io in (arrays, self.open(objects)):
            for first, last in ((0, len(whole)), (0, 1), (300, 301), (500, 530), (UNIT_ROWS, 2 * UNIT_ROWS), (7, 7)):
                found = io.read_range(spec.key, first, last)
                assert found.dtype == whole.dtype
                assert found.shape == (last - first, *spec.row_shape)
                assert np.array_equal(bits(found), bits(whole[first:last]))

    @pytest.mark.parametrize("spec", [BF16, Z], ids=["resid_post", "z"])
    def test_rows_come_in_the_order_asked_for(self, arrays: ArrayIO, spec: ArraySpec) -> None:
        blocks = [block_of(spec, unit) for unit in range(N_UNITS)]
        for unit, block in enumerate(blocks):
            arrays.write(unit * UNIT_ROWS, {spec.key: block})
        whole = np.concatenate(blocks)
        last = len(whole) - 1
        for wanted in ([last, 0, 5, 5, 700, 0, last, 511, 512], [3], [9] * 40, list(range(20, 0, -1)), []):
            rows_N = np.array(wanted, dtype=np.int64)
            found = gather.read_rows(arrays, spec.key, rows_N)
            assert found.shape == (len(wanted), *spec.row_shape)
            assert np.array_equal(bits(found), bits(whole[rows_N]))
        random_N = np.random.default_rng(1).integers(0, len(whole), 300)
        assert np.array_equal(bits(gather.read_rows(arrays, spec.key, random_N)), bits(whole[random_N]))

    def test_arrays_written_together_keep_apart_and_their_memory_may_be_used_again(
        self, objects: ObjectStore, arrays: ArrayIO
    ) -> None:
        blocks = {spec.key: block_of(spec, unit) for unit, spec in enumerate(SPECS)}
        expected = {key: block.copy() for key, block in blocks.items()}
        arrays.write(UNIT_ROWS, blocks)
        for block in blocks.values():
            block.view(np.uint8)[...] = 0xFF
        for io in (arrays, self.open(objects)):
            for key, block in expected.items():
                assert np.array_equal(bits(io.read_range(key, UNIT_ROWS, 2 * UNIT_ROWS)), bits(block)), key

    def test_one_array_that_cannot_be_written_is_an_error(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        broken = ArraySpec("main", "resid_post", 77, (WIDTH,), "bfloat16")
        with pytest.raises(DamagedStoreError, match="resid_post/77"):
            arrays.write(0, {BF16.key: block_of(BF16), broken.key: block_of(broken), FP32.key: block_of(FP32)})

    def test_bfloat16_is_kept_bit_for_bit(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        # every pattern there is: -0, subnormals, infinities, NaN with payloads, values above 65,504
        patterns = np.arange(1 << 16, dtype=np.uint16)
        n_rows = N_UNITS * UNIT_ROWS
        for layer, part in enumerate(np.array_split(np.resize(patterns, 2 * n_rows * WIDTH), 2)):
            arrays.write(0, {BF16.key: part.reshape(n_rows, WIDTH)})
            found = self.open(objects).read_range(BF16.key, 0, n_rows)
            assert np.array_equal(found.reshape(-1), part), layer

    def test_bfloat16_is_its_value_in_float32(self, arrays: ArrayIO) -> None:
        values = np.array([65_536.0, -3.0e38, -0.0, 0.0, 1.0, np.inf, -np.inf, 1e-40], dtype=ml_dtypes.bfloat16)
        block = np.zeros((UNIT_ROWS, WIDTH), dtype=np.uint16)
        block[0, : len(values)] = values.view(np.uint16)
        block[1, 0] = 0x7FC1  # a NaN that carries a payload
        arrays.write(0, {BF16.key: block})
        found = to_float32(arrays.read_range(BF16.key, 0, 2), "bfloat16")
        assert found.dtype == np.float32
        assert np.array_equal(bits(found[0, : len(values)]), bits(values.astype(np.float32)))
        assert found[0, 0] > 65_504
        assert bits(found)[1, 0] == 0x7FC1_0000

    def test_metadata_says_what_the_design_says(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        stored = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
        for spec in SPECS:
            metadata = json.loads(objects.get(f"{spec.key}/zarr.json"))
            ones = len(spec.row_shape)
            assert metadata["zarr_format"] == 3
            assert metadata["shape"] == [N_UNITS * UNIT_ROWS, *spec.row_shape]
            assert metadata["data_type"] == stored[spec.dtype]
            assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [UNIT_ROWS, *spec.row_shape]
            assert metadata["dimension_names"] == (["row", "d_model"] if ones == 1 else ["row", "head", "d_head"])
            assert metadata["attributes"]["cliffstore"] == {"dtype": spec.dtype}
            (sharding,) = metadata["codecs"]
            assert sharding["name"] == "sharding_indexed"
            assert sharding["configuration"]["chunk_shape"] == [CHUNK_ROWS, *spec.row_shape]
            codecs = sharding["configuration"]["codecs"]
            assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]
            blosc = codecs[1]["configuration"]
            assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 1, "shuffle")

    def test_one_object_a_unit(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        before = set(objects.list(BF16.key))
        arrays.write(UNIT_ROWS, {BF16.key: block_of(BF16)})
        (shard,) = set(objects.list(BF16.key)) - before
        assert shard == f"{BF16.key}/c/1/0"

    def test_zarr_reads_the_same(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        blocks = {spec: block_of(spec, 1) for spec in SPECS}
        for spec, block in blocks.items():
            arrays.write(UNIT_ROWS, {spec.key: block})
        store = zarr_store(objects)
        root = zarr.open_group(store, mode="r")
        for spec, block in blocks.items():
            array = zarr.open_array(store, path=spec.key, mode="r")
            assert array.chunks == (CHUNK_ROWS, *spec.row_shape)
            assert array.shards == (UNIT_ROWS, *spec.row_shape)
            assert array.attrs["cliffstore"] == {"dtype": spec.dtype}
            assert np.array_equal(bits(array[UNIT_ROWS : 2 * UNIT_ROWS]), bits(block))
            assert np.array_equal(bits(root[spec.key][UNIT_ROWS : 2 * UNIT_ROWS]), bits(block))

    def test_xarray_reads_the_same(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        blocks = {spec: block_of(spec, 2) for spec in (BF16, FP16)}
        for spec, block in blocks.items():
            arrays.write(0, {spec.key: block})
        site = xarray.open_zarr(
            zarr_store(objects), group="activations/main/resid_post", consolidated=False, chunks=None
        )
        assert set(site.data_vars) == {"0", "1"}
        for spec, block in blocks.items():
            variable = site[str(spec.layer)]
            assert variable.dims == ("row", "d_model")
            assert variable.dtype == block.dtype
            assert np.array_equal(bits(variable.values[:UNIT_ROWS]), bits(block))

    def test_what_zarr_wrote_is_read(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        block = block_of(FP32)
        zarr.open_array(zarr_store(objects), path=FP32.key, mode="r+")[UNIT_ROWS : 2 * UNIT_ROWS] = block
        found = self.open(objects).read_range(FP32.key, UNIT_ROWS, 2 * UNIT_ROWS)
        assert np.array_equal(bits(found), bits(block))

    def test_writing_a_unit_again_gives_equal_content(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        block = block_of(BF16)
        shard = f"{BF16.key}/c/1/0"
        arrays.write(UNIT_ROWS, {BF16.key: block})
        first = objects.get(shard)
        self.open(objects).write(UNIT_ROWS, {BF16.key: block})
        assert objects.get(shard) == first
        assert np.array_equal(self.open(objects).read_range(BF16.key, UNIT_ROWS, 2 * UNIT_ROWS), block)

    def test_lost_shard_is_not_taken_for_zeros(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        """Zarr readers fill in zeros for an object that is not there."""
        arrays.write(0, {BF16.key: block_of(BF16)})
        objects.delete(f"{BF16.key}/c/0/0")
        for rows in (np.array([5, 3]), np.array([UNIT_ROWS + 1])):
            with pytest.raises(DamagedStoreError, match="missing"):
                gather.read_rows(self.open(objects), BF16.key, rows)

    def test_rows_outside_are_refused(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        arrays.write(0, {BF16.key: block_of(BF16)})
        for row in (-1, N_UNITS * UNIT_ROWS):
            with pytest.raises(IndexError):
                gather.read_rows(self.open(objects), BF16.key, np.array([row]))

    def test_writing_a_unit_replaces_a_torn_one(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        block = block_of(BF16)
        shard = f"{BF16.key}/c/0/0"
        arrays.write(0, {BF16.key: block})
        whole = objects.get(shard)
        objects.put(shard, whole[: len(whole) // 2])
        self.open(objects).write(0, {BF16.key: block})
        assert objects.get(shard) == whole

    def test_creating_again_keeps_what_is_there(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        block = block_of(FP32)
        arrays.write(0, {FP32.key: block})
        self.create(objects)
        assert np.array_equal(self.open(objects).read_range(FP32.key, 0, UNIT_ROWS), block)

    def test_any_flipped_byte_is_found(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        arrays.write(0, {BF16.key: block_of(BF16)})
        shard = f"{BF16.key}/c/0/0"
        whole = objects.get(shard)
        places = {0, len(whole) - 1, *range(3, len(whole), len(whole) // 15), *range(len(whole) - 36, len(whole), 7)}
        for place in sorted(places):
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            objects.put(shard, bytes(damaged))
            with pytest.raises(DamagedStoreError, match="resid_post/0"):
                self.open(objects).read_range(BF16.key, 0, UNIT_ROWS)
        objects.put(shard, whole)
        assert np.array_equal(self.open(objects).read_range(BF16.key, 0, UNIT_ROWS), block_of(BF16))

    def test_flipped_byte_is_found_by_reading_single_rows(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        arrays.write(0, {BF16.key: block_of(BF16)})
        shard = f"{BF16.key}/c/0/0"
        damaged = bytearray(objects.get(shard))
        damaged[100] ^= 1  # in one inner chunk of two
        objects.put(shard, bytes(damaged))
        outcomes = []
        for row in (0, UNIT_ROWS - 1):
            try:
                found = gather.read_rows(self.open(objects), BF16.key, np.array([row]))
                assert np.array_equal(found[0], block_of(BF16)[row])
                outcomes.append("read")
            except DamagedStoreError:
                outcomes.append("damaged")
        assert sorted(outcomes) == ["damaged", "read"]

    @pytest.mark.parametrize("kept", [1, 10, -1])
    def test_truncated_shard_is_found(self, objects: ObjectStore, arrays: ArrayIO, kept: int) -> None:
        arrays.write(0, {BF16.key: block_of(BF16)})
        shard = f"{BF16.key}/c/0/0"
        objects.put(shard, objects.get(shard)[:kept])
        with pytest.raises(DamagedStoreError, match="resid_post/0"):
            self.open(objects).read_range(BF16.key, 0, UNIT_ROWS)

    def test_emptied_shard_is_found(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        arrays.write(0, {BF16.key: block_of(BF16)})
        objects.put(f"{BF16.key}/c/0/0", b"")
        with pytest.raises(DamagedStoreError, match="resid_post/0"):
            self.open(objects).read_range(BF16.key, 0, UNIT_ROWS)

    def test_missing_array_is_damage(self, objects: ObjectStore, arrays: ArrayIO) -> None:
        objects.delete(BF16.key)
        with pytest.raises((DamagedStoreError, FileNotFoundError)):
            self.open(objects).read_range(BF16.key, 0, 1)
